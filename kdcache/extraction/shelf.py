"""Computed clips on their way into shards, which are committed in a thread while further clips are computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kdcache.extraction.plan import SHARD_BYTES, SHARD_SECONDS, Task
from kdcache.extraction.worker import ClipInputs, Computed, Done, Event, WorkerConfig
from kdcache.store.writer import Record, commit_shard

AHEAD = 2  # shards that are full, one of them being written, while the next is filled


@dataclass
class _Filling:
    """A shard that is being filled."""

    records: list[Record] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    nbytes: int = 0
    opened: float = field(default_factory=time.monotonic)


class Shelf:
    """Collects clips by the streams that they have, and commits those that fill a shard, or have waited for long.

    Used in ``with``: what is left is committed at its end, after an error too. An error of a commit is raised by one of
    the next calls.

    Args:
        config: of the run.
        emit: is told of clips and shards, of the latter in the committing thread.
    """

    def __init__(self, config: WorkerConfig, emit: Callable[[Event], None]) -> None:
        self._config, self._emit = config, emit
        self._filling: dict[tuple[str, ...], _Filling] = {}
        self._thread = ThreadPoolExecutor(1, "kdcache-commit")
        self._commits: deque[Future[None]] = deque()

    def add(self, clip: ClipInputs, streams: tuple[str, ...]) -> None:
        """Take a clip with the arrays of these streams."""
        shard, task = self._filling.setdefault(streams, _Filling()), clip.task
        shard.records.append(Record(task.row, clip.origin, task.keys, clip.frames, clip.arrays))
        shard.tasks.append(task)
        shard.nbytes += clip.nbytes
        self._emit(Computed(task.clip_id))
        for names, one in list(self._filling.items()):
            if one.nbytes >= SHARD_BYTES or time.monotonic() - one.opened >= SHARD_SECONDS:
                self._commit(names)

    def _commit(self, names: tuple[str, ...]) -> None:
        while len(self._commits) >= AHEAD or (self._commits and self._commits[0].done()):
            self._commits.popleft().result()
        self._commits.append(self._thread.submit(self._write, names, self._filling.pop(names)))

    def _write(self, names: tuple[str, ...], shard: _Filling) -> None:
        recipes = {s.name: s.recipe for s in self._config.streams if s.name in names}
        committed = commit_shard(self._config.out, shard.records, recipes, codec=self._config.codec)
        self._emit(Done(committed, tuple(shard.tasks)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._thread:
            for names in list(self._filling):
                self._commit(names)
            while self._commits:
                self._commits.popleft().result()

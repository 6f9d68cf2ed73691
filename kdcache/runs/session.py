"""What several runs of one process may share: streams in memory, trained teachers."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kdcache.data.open import StreamPool
from kdcache.data.training_data import TrainingData
from kdcache.device_errors import release_memory
from kdcache.engine.checkpoint import SUMMARY
from kdcache.errors import WeightsError
from kdcache.files import link_or_copy, temporary_name, writing
from kdcache.methods import method as method_module
from kdcache.methods.contract import Stage
from kdcache.runs.config import RunSettings
from kdcache.runs.prepare import prepare
from kdcache.seals import is_broken

RUN_ONLY_SETTINGS = (
    "seed",
    "save_every",
    "eval_every",
    "keep_stages",
    "method",
)  # they change nothing about what is read


@dataclass
class Session:
    """Pass one to several calls of ``train``, one after the other: streams then stay in memory between them.

    Attributes:
        stages: a folder where trained stages with a ``share_key`` are kept for other runs; None shares none.
        bars: whether progress bars are shown.
        processes: how many such sessions share this machine and its GPU; each may fill its part of the
            ``memory_fraction``.
    """

    stages: Path | None = None
    bars: bool = True
    processes: int = 1
    _pool: StreamPool = field(default_factory=StreamPool, repr=False)
    _cache: str = ""
    _opened: dict[str, TrainingData] = field(default_factory=dict, repr=False)

    def prepare(self, settings: RunSettings, options: Any, before: dict[str, Any]) -> TrainingData:
        """As ``prepare``, but a cache that an earlier run of the session has opened is not read again."""
        settings = replace(settings, memory_fraction=settings.memory_fraction / self.processes)
        if before:  # continued under the conditions that it began under
            return prepare(settings, options, before)
        other = (*RUN_ONLY_SETTINGS, "validation_seed")  # whatever is held out, the same streams are read
        cache = json.dumps({k: v for k, v in asdict(settings).items() if k not in other}, sort_keys=True)
        if cache != self._cache:  # two caches may not fit into memory side by side
            self._cache, self._pool, self._opened = cache, StreamPool(), {}
            release_memory(settings.device)
        inputs = method_module(settings.method).inputs(options)
        frames = any(one.segment is not None for one in inputs)  # their augmentation depends on the seed
        key = repr((inputs, settings.validation_seed, settings.seed if frames else None))
        if key not in self._opened:
            self._opened[key] = prepare(settings, options, pool=self._pool)
        known = self._opened[key]
        return replace(known, data=replace(known.data, seed=settings.seed), resolved=dict(known.resolved))

    def restore_shared_stage(self, stage: Stage, opened: TrainingData, folder: Path, eval_every: int) -> None:
        """Copy a stage that another run has trained into ``folder``, if there is one."""
        kept = self.kept(stage, opened, eval_every)
        if kept is not None and (kept / SUMMARY).exists() and not (folder / SUMMARY).exists():
            folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in kept.iterdir())
            for name in names:
                if is_broken(kept / name):
                    raise WeightsError(
                        f"{kept / name} is not as it was written, its SHA-256 differs: delete the folder {kept}, and "
                        "the stage is trained again where a run still lacks it."
                    )
            for name in [n for n in names if n != SUMMARY] + [SUMMARY]:  # the summary says that it is whole
                link_or_copy(kept / name, folder / name)

    def share_stage(self, stage: Stage, opened: TrainingData, folder: Path, eval_every: int) -> None:
        """Keep a trained stage for other runs."""
        kept = self.kept(stage, opened, eval_every)
        if kept is None or kept.exists():
            return
        temporary = kept.with_name(temporary_name(kept.name))
        try:
            with writing(kept):
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(folder, temporary, copy_function=link_or_copy)
                temporary.rename(kept)
        except BaseException:  # another process kept the same stage in the meantime, or the disk is full
            shutil.rmtree(temporary, ignore_errors=True)
            if not kept.exists():
                raise

    def kept(self, stage: Stage, opened: TrainingData, eval_every: int) -> Path | None:
        """Where a stage is kept for all runs in which it comes out alike; None where it is not shared."""
        if self.stages is None or stage.share_key is None:
            return None
        read = {*stage.train.inputs, *stage.share_inputs}
        other = ("budget", "options", "stream", "recipe")  # the last two are of all inputs of a run
        resolved = {name: value for name, value in opened.resolved.items() if name not in other}
        if eval_every > 1:  # it chooses among other epochs
            resolved["eval_every"] = eval_every
        if opened.data.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
            resolved["deterministic"] = True  # other algorithms, whose last bits differ
        resolved["inputs"] = {name: opened.input_recipes.get(name, "") for name in read}
        seed = opened.data.seed if stage.seed is None else stage.seed
        content = json.dumps([stage.name, stage.share_key, resolved, seed], sort_keys=True)
        return self.stages / f"{stage.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

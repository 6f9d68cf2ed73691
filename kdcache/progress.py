"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then everywhere else.

Where standard error is no terminal (job logs, CI, ``nohup``), a line such as

    extract: 120/960 clips (12 %), 2.05 clips/s, 0:00:58 elapsed, ETA 0:06:50

is written after 5 seconds and then every 30 (``KDCACHE_PROGRESS_S`` sets the interval in seconds; 0 writes none), one
for the whole process however many bars it has. Nothing is shown while the logger ``kdcache`` is limited to errors
(``kdcache -q``).
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.text import size

INTERVAL = "KDCACHE_PROGRESS_S"  # environment variable
EVERY_S = 30.0
FIRST_S = 5.0  # until the first line, so that a log soon shows that work has begun

Item = TypeVar("Item")


class Progress:
    """Counts units of work. This one shows nothing; ``progress`` chooses between it and those that do."""

    def __init__(self, done: int = 0) -> None:
        self.done = done

    def update(self, n: int = 1) -> None:
        """``n`` more units are done."""
        self.done += n

    def note(self, text: str) -> None:
        """What was done last, shown beside the count."""

    def close(self) -> None:
        """Take the bar away, or end the log with a last line; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(
    what: str,
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    before: int = 0,
    after: int = 0,
    since: tuple[float, int] | None = None,
    shown: bool = True,
    leave: bool = True,
    ticks: bool = True,
) -> Progress:
    """Progress of one piece of work, to be closed or used in ``with``.

    Args:
        what: its name.
        total: units to do; None where that is not known.
        unit: what is counted, in the plural; ``B`` for bytes.
        done: of ``total``, what was done before.
        before, after: units of the same work in earlier and in later pieces, such as epochs. Lines count all of them, a
            bar shows its own piece.
        since: when the work began, on ``time.monotonic``, and how much of ``before`` and ``done`` was done by then, of
            which lines take the rate; default: now.
        shown: False counts and shows nothing.
        leave: a bar stays on the terminal when it is closed, and lines end with one that says how long all took.
        ticks: lines are written on time although a unit takes long (by a thread); False: with ``update`` alone.

    Raises:
        OptionError: ``KDCACHE_PROGRESS_S`` is no number of seconds.
    """
    if not shown or not logger.isEnabledFor(logging.WARNING) or sys.stderr is None:  # of a program without a console
        return Progress(done)
    if sys.stderr.isatty():
        return _Bar(what, total, unit, done, leave)
    seconds = interval()
    if not seconds:
        return Progress(done)
    whole = None if total is None else before + total + after
    return Lines(what, whole, unit, before + done, since=since, leave=leave, ticks=ticks, every=seconds)


def counted(
    what: str, items: Sequence[Item], unit: str, *, shown: bool = True, leave: bool = False, every: int = 1
) -> Iterator[Item]:
    """The items, with progress; unless told otherwise it leaves no bar behind, for what is most often done at once.

    ``every``: items between looks at the clock, of which each costs as much as a small item.
    """
    with progress(what, len(items), unit, shown=shown, leave=leave) as bar:
        for first in range(0, len(items), every):
            part = items[first : first + every]
            yield from part
            bar.update(len(part))


def interval() -> float:
    """Seconds between lines: ``KDCACHE_PROGRESS_S``, or 30; ``OptionError`` where it is no number from 0 on."""
    text = os.environ.get(INTERVAL, "")
    try:
        seconds = float(text) if text else EVERY_S
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise OptionError(f"{INTERVAL}={text}: give the seconds between lines of progress, 0 for none.")
    return seconds


class _Bar(Progress):
    """A bar of tqdm on a terminal."""

    def __init__(self, what: str, total: int | None, unit: str, done: int, leave: bool) -> None:
        from tqdm import tqdm

        super().__init__(done)
        of_bytes = unit == "B"
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit if of_bytes else f" {unit}",
            unit_scale=of_bytes,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def update(self, n: int = 1) -> None:
        """See ``Progress``."""
        super().update(n)
        self._bar.update(n)

    def note(self, text: str) -> None:
        """See ``Progress``."""
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """See ``Progress``."""
        self._bar.close()


class _Schedule:
    """When the next line of this process is due, on the clock of its bars."""

    due: float | None = None


class Lines(Progress):
    """Plain lines on standard error; ``clock`` and ``write`` are replaced in tests."""

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        done: int = 0,
        *,
        since: tuple[float, int] | None = None,
        leave: bool = True,
        ticks: bool = True,
        every: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(done)
        self.what, self.total, self.unit = what, total, unit
        self._every, self._leave, self._clock, self._write = every, leave, clock, write or _to_stderr
        self._began, self._done_then = since or (clock(), done)
        self._noted, self._written, self._lock = "", False, threading.Lock()
        if _Schedule.due is None:
            _Schedule.due = clock() + min(FIRST_S, every)
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="kdcache-progress", daemon=True) if ticks else None
        if self._ticker is not None:
            self._ticker.start()

    def update(self, n: int = 1) -> None:
        """See ``Progress``."""
        super().update(n)
        self.show_if_due()

    def note(self, text: str) -> None:
        """See ``Progress``."""
        self._noted = text

    def show_if_due(self) -> None:
        """Write a line where the last one of the process is long enough ago."""
        with self._lock:
            now = self._clock()
            if _Schedule.due is not None and now >= _Schedule.due and not self._closed.is_set():
                _Schedule.due = now + self._every
                self._written = True
                self._write(self.line())

    def line(self) -> str:
        """What is said now."""
        elapsed = self._clock() - self._began
        rate = (self.done - self._done_then) / elapsed if elapsed > 0 else 0.0
        parts = [f"{_counted(self.done, self.unit, self.total)}{_share(self.done, self.total)}"]
        parts += [_rate(rate, self.unit)] if rate else []
        parts.append(f"{_clock_time(elapsed)} elapsed")
        if rate and self.total is not None and self.done < self.total:
            parts.append(f"ETA {_clock_time((self.total - self.done) / rate)}")
        return f"{self.what}: {', '.join(parts)}" + (f" [{self._noted}]" if self._noted else "")

    def close(self) -> None:
        """See ``Progress``."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._ticker is not None:
            self._ticker.join()
        if self._leave and self._written:
            self._write(self.line())

    def _tick(self) -> None:
        while not self._closed.wait(min(1.0, self._every / 4)):
            self.show_if_due()


def _to_stderr(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # whoever read it has left, or it was closed: work goes on without
        return


def _counted(done: int, unit: str, total: int | None) -> str:
    if unit == "B":
        return size(done) + (f" of {size(total)}" if total is not None else "")
    return f"{done}/{total} {unit}" if total is not None else f"{done} {unit}"


def _share(done: int, total: int | None) -> str:
    return f" ({100 * done // total} %)" if total else ""


def _rate(rate: float, unit: str) -> str:
    if unit == "B":
        return f"{size(rate)}/s"
    each, digits = ("s", rate) if rate >= 1 else ("min", 60 * rate)
    return f"{digits:.3g} {unit}/{each}" if digits < 1000 else f"{digits:.0f} {unit}/{each}"


def _clock_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

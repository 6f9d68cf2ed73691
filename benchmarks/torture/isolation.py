"""Cases in forked children, many a child: what hangs, crashes or takes too much memory costs one case and its child.

The parent must not have started threads (torch, numba, OpenCV): ``import`` is harmless, computing is not.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torture.cases import FAILED, Outcome, Progress, Table

Case = Callable[[int], Outcome]

HARNESS = "harness"  # kind of an outcome that says nothing of kdcache: the case has a mistake
_POLL = 0.05  # seconds between two looks at a child's memory


@dataclass(frozen=True)
class Limits:
    """What a case may take."""

    seconds: float = 10.0
    memory: int = 2 * 2**30  # beyond what the child held when the case began
    cases: int = 100  # that one child takes


def run_cases(
    name: str, count: int, seed: int, seconds: float, folder: Path, case: Case, limits: Limits | None = None
) -> Table:
    """Try all cases of a class that ``folder`` has no outcome of; see ``torture.cases``."""
    limits, progress = limits or Limits(), Progress(name, count, seed, folder)
    left = list(progress.missing())
    end = time.monotonic() + seconds
    while left and time.monotonic() < end:
        for outcome in _child(left[: limits.cases], case, limits, end):
            if outcome.kind == HARNESS:
                raise RuntimeError(f"case {outcome.number}: {outcome.how}")
            progress.add(outcome)
            left.remove(outcome.number)
    if left:
        print(f"  {len(left)} cases are left; the same call goes on", flush=True)
    return progress.table


def alone(case: Callable[[], Outcome], limits: Limits) -> Outcome:
    """One case in a child of its own."""
    (outcome,) = _child([0], lambda _: case(), limits, float("inf"))
    return outcome


_pipe: list[int] = []  # of a child to its parent


def announce(kind: str) -> None:
    """Say in a child what its case is about to do, in case it does not come back; its memory is measured from here."""
    message = {"doing": kind, "base": reset_peak()}
    os.write(_pipe[0], json.dumps(message).encode() + b"\n") if _pipe else None


def _child(numbers: Sequence[int], case: Case, limits: Limits, end: float) -> Iterator[Outcome]:
    """Outcomes of the cases that one child finished, and of the one that ended it."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.close(read)
        _serve(write, numbers, case, end)
    os.close(write)
    running: int | None = numbers[0]  # what dies before its first case has tried it
    kind, why, taken, held = "isolation", "", 0.0, 0
    began, base, buffer = time.monotonic(), rss(pid), b""
    try:
        while not why:
            if select.select([read], [], [], _POLL)[0]:
                chunk = os.read(read, 65536)
                if not chunk:
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for text in lines:
                    message = json.loads(text)
                    if "begin" in message:
                        running, began, base = message["begin"], time.monotonic(), message["base"]
                    elif "doing" in message:
                        kind, began, base = message["doing"], time.monotonic(), message["base"]
                    elif "end" in message:
                        running = None
                    else:
                        yield _judged(Outcome(**message), limits)
                        running = None
            taken, held = time.monotonic() - began, rss(pid) - base
            if running is not None and taken > limits.seconds * 1.5:
                why = f"hangs: killed after {taken:.0f} s"
            elif running is not None and held > limits.memory * 1.2:
                why = f"takes more than {held / 1e9:.1f} GB: killed"
    finally:
        os.close(read)
        with suppress(ProcessLookupError, PermissionError):  # gone already
            os.killpg(pid, signal.SIGKILL) if why or sys.exc_info()[0] else None
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if running is not None:
        yield Outcome(running, kind, FAILED, why or f"the process died (status {status})", taken, held)


def _judged(outcome: Outcome, limits: Limits) -> Outcome:
    """A case that took too much has failed, whatever it found."""
    if outcome.peak > limits.memory:
        return replace(outcome, verdict=FAILED, how=f"took {outcome.peak / 1e9:.1f} GB")
    if outcome.seconds > limits.seconds:
        return replace(outcome, verdict=FAILED, how=f"took {outcome.seconds:.0f} s")
    return outcome


def _serve(pipe: int, numbers: Sequence[int], case: Case, end: float) -> None:
    """The child: tries cases until the numbers or the time are over, and never returns."""
    _pipe[:] = [pipe]
    status = 1
    try:
        for number in numbers:
            if time.monotonic() > end:
                break
            base = reset_peak()
            os.write(pipe, json.dumps({"begin": number, "base": base}).encode() + b"\n")
            began = time.perf_counter()
            try:
                outcome = case(number)
            except Exception as error:
                trace = traceback.format_exception(error)
                outcome = Outcome(number, HARNESS, FAILED, "the case itself failed: " + "".join(trace)[-1500:])
            taken = outcome.seconds or time.perf_counter() - began
            outcome = replace(outcome, number=number, seconds=taken, peak=outcome.peak or max(0, peak() - base))
            data = json.dumps(asdict(outcome)).encode() + b"\n"
            while data:
                data = data[os.write(pipe, data) :]
        os.write(pipe, b'{"end": true}\n')
        status = 0
    finally:
        os._exit(status)


def rss(pid: int) -> int:
    """Bytes that a process holds in memory; 0 where it cannot be known. Without mapped files, such as libraries: the
    kernel takes their pages away when it likes, and a case that took as much would not show."""
    path = f"/proc/{pid}/status"
    return _status(path, "RssAnon:") + _status(path, "RssShmem:")


def peak() -> int:
    """The most that this process has held since ``reset_peak``, bytes, less the files that it maps now."""
    return _status("/proc/self/status", "VmHWM:") - _status("/proc/self/status", "RssFile:")


def reset_peak() -> int:
    """Begin to measure ``peak`` anew; what the process holds now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return rss(os.getpid())


def _status(path: str, field: str) -> int:
    with suppress(OSError):
        for text in Path(path).read_text().splitlines():
            if text.startswith(field):
                return int(text.split()[1]) * 1024
    return 0

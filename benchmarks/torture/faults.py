"""Faults in a command's own process: killed, refused or cut short at the k-th system call that changes its files.

``shim.c`` is compiled once with ``cc`` and preloaded, so that calls of Python, of torch's C++ and of safetensors' Rust
are met alike; nothing of the package is changed. The command runs in a fork of a server that has imported everything,
which takes a tenth of the time of a new process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.isolation import rss

NOTHING, KILL_BEFORE, KILL_AFTER, TORN, REFUSE, FULL = range(6)
KILLS = {"before": KILL_BEFORE, "after": KILL_AFTER, "in the middle of": TORN}

_HANG = 120.0  # seconds after which a command that takes two is taken to hang


@dataclass(frozen=True)
class Fault:
    """What happens at the ``call``-th call (from 1) below the watched folder."""

    call: int = -1
    action: int = NOTHING
    number: int = errno.ENOSPC
    """Of the error, where calls are refused."""
    group: bool = True
    """Whether a kill takes the whole process group, or the process that makes the call alone."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    """Its exit status; negative: the signal that killed it."""
    output: str
    """Of standard output and error."""
    calls: int
    """That changed files below the watched folder."""
    seconds: float
    peak: int
    """Bytes of memory beyond what the fork began with; of the command's own process. Pages of libraries that it is the
    first to touch count: a fork begins without them."""

    @property
    def killed(self) -> bool:
        """By the fault."""
        return self.status == -signal.SIGKILL

    @property
    def wrong(self) -> str:
        """Why no command may end like this; empty where it may."""
        if "Traceback (most recent call last)" in self.output:
            return "traceback: " + self.output.strip().splitlines()[-1]
        if self.seconds > _HANG:
            return f"hangs: killed after {self.seconds:.0f} s"
        return f"died with status {self.status}" if self.status < 0 and not self.killed else ""


def preload() -> None:
    """Start this program again with the shim in it, unless it has it."""
    if not hasattr(ctypes.CDLL(None), "torture_arm"):
        source = Path(__file__).with_name("shim.c")
        name = f"kdcache-torture-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
        library = Path(tempfile.gettempdir()) / name
        if not library.exists():
            made = library.with_suffix(f".{os.getpid()}")
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
            made.rename(library)
        os.environ["LD_PRELOAD"] = str(library)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run(
    arguments: Sequence[str],
    watched: Path,
    log: Path,
    fault: Fault | None = None,
    kill_after: float | None = None,
    setting: Callable[[], Any] = lambda: None,
    workers: bool = False,
) -> Ended:
    """Run a command of kdcache to its end, in a fork.

    Args:
        arguments: of the command line, without ``kdcache``.
        watched: folder whose changes are counted, and met by the fault.
        log: file that takes standard output and error.
        fault: what happens at which call.
        kill_after: kill -9 of the whole process group after so many seconds.
        setting: called in the fork before the command, to make shards small.
        workers: the command starts new processes, which the fault meets too.
    """
    fault, library = fault or Fault(), ctypes.CDLL(None)
    library.torture_arm(os.fsencode(watched), ctypes.c_long(fault.call), fault.action, fault.number, int(fault.group))
    began = time.monotonic()
    pid, base = _fork(arguments, log, setting, _environment(watched, fault) if workers else {})
    library.torture_arm(b"", ctypes.c_long(-1), NOTHING, 0, 0)
    library.torture_calls.restype = ctypes.c_long
    status, memory = _wait(pid, base, began + (_HANG if kill_after is None else kill_after))
    seconds = time.monotonic() - began
    _end_group(pid)
    return Ended(status, log.read_text(errors="replace"), library.torture_calls(), seconds, memory)


def together(
    commands: Sequence[Sequence[str]], delays: Sequence[float], log: Path, setting: Callable[[], Any] = lambda: None
) -> list[Ended]:
    """Run commands at the same time, the i-th ``delays[i]`` seconds after the first."""
    began = time.monotonic()
    started = []
    for number, arguments in sorted(enumerate(commands), key=lambda one: delays[one[0]]):
        time.sleep(max(0.0, began + delays[number] - time.monotonic()))
        own = log.with_suffix(f".{number}.log")
        started.append((*_fork(arguments, own, setting, {}), own))
    ended = []
    for pid, base, own in started:
        status, memory = _wait(pid, base, began + _HANG)
        _end_group(pid)
        ended.append(Ended(status, own.read_text(errors="replace"), 0, time.monotonic() - began, memory))
    return ended


def _environment(watched: Path, fault: Fault) -> dict[str, str]:
    """What arms processes that are started anew."""
    return {"TORTURE_WATCH": str(watched), "TORTURE_CALL": str(fault.call), "TORTURE_ACTION": str(fault.action)}


def _wait(pid: int, base: int, end: float) -> tuple[int, int]:
    """Exit status of a forked command, and bytes of memory that it took beyond the ``base`` that it began with.

    It is killed with its group when the time is over.
    """
    pause = 0.001
    while True:
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code), max(0, usage.ru_maxrss * 1024 - base)
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.02, 1.5 * pause)


def _end_group(group: int) -> None:
    """End workers whose parent was killed, and wait until none of them writes any more."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for _ in range(500):
        if not _alive(group):
            return
        time.sleep(0.01)


def _alive(group: int) -> bool:
    """Whether a process of the group runs; dead ones whose parent is slow to notice do not count."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state not in "ZX":
                    return True
    return False


def _fork(
    arguments: Sequence[str], log: Path, setting: Callable[[], Any], environment: dict[str, str]
) -> tuple[int, int]:
    """Process of the command, and bytes of memory that it began with."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        os.close(write)
        base = os.read(read, 32)
        os.close(read)
        return pid, int(base or 0)
    status = 98
    try:
        os.setpgid(0, 0)
        os.write(write, str(rss(os.getpid())).encode())
        os.close(read)
        os.close(write)
        os.environ |= environment
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(out, 1)
        os.dup2(out, 2)
        setting()
        status = _command(list(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _command(arguments: list[str]) -> int:
    """As the program ``kdcache`` does it."""
    import traceback

    from kdcache.cli import main

    try:
        main(arguments, prog_name="kdcache")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0

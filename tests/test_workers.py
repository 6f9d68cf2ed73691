"""Workers: in this process or in several that die, are stopped, or refuse; nothing hangs and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from worker_cases import Fatal, Observant, Scripted

from kdcache.errors import KdcacheError, OptionError
from kdcache.workers import Interrupts, Processes, Serial, StopFlag, _Worker, stop_on_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def forbidden(*death: object) -> NoReturn:
    raise AssertionError(death)


def executors(count: int = 2) -> list[Any]:
    return [Serial(Scripted()), Processes(Scripted(), count, forbidden)]


@pytest.fixture(autouse=True)
def nothing_hangs_or_stays() -> Iterator[None]:
    def too_long(*_: object) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("executor", executors(), ids=["serial", "processes"])
def test_all_units_are_run_by_workers_that_start_once(executor):
    events: list[tuple[int, int, str]] = []
    executor.run([("work", c) for c in "abcde"], events.append, StopFlag())
    assert sorted(argument for _, _, argument in events) == list("abcde")
    workers = {worker for worker, _, _ in events}
    assert workers <= {0, 1}
    for worker in workers:
        assert [n for w, n, _ in events if w == worker] == list(range(sum(w == worker for w, _, _ in events)))


def test_without_units_nothing_is_started():
    Serial(Fatal()).run([], forbidden, StopFlag())
    Processes(Fatal(), 2, forbidden).run([], forbidden, StopFlag())


@pytest.mark.parametrize("executor", executors(1), ids=["serial", "processes"])
def test_after_stop_no_unit_begins(executor):
    stop, events = StopFlag(), []

    def on_event(event: object) -> None:
        events.append(event)
        stop.set()

    executor.run([("work", c) for c in "abc"], on_event, stop)
    assert events == [(0, 0, "a")]


def test_a_dead_worker_is_told_of_with_what_it_had_done_and_replaced():
    events, deaths = [], []

    def on_death(unit: object, done: Any, how: str) -> list[tuple[str, str]]:
        deaths.append((unit, [argument for _, _, argument in done], how))
        return [("work", "b again")]

    Processes(Scripted(), 1, on_death).run([("work", "a"), ("kill", "b"), ("work", "c")], events.append, StopFlag())
    assert deaths == [(("kill", "b"), ["b"], "killed by signal 9")]
    assert events == [(0, 0, "a"), (0, 1, "b"), (0, 0, "b again"), (0, 1, "c")]


def test_a_worker_that_dies_while_it_starts_held_no_unit():
    deaths: list[object] = []

    def on_death(*death: object) -> list[object]:
        deaths.append(death)
        if len(deaths) == 2:
            raise KdcacheError("Enough.")
        return []

    with pytest.raises(KdcacheError, match="Enough"):
        Processes(Fatal(), 1, on_death).run([("work", "a")], forbidden, StopFlag())
    assert deaths == [(None, [], "killed by signal 9")] * 2


def test_an_error_of_the_package_ends_the_run():
    for executor in executors():
        with pytest.raises(OptionError, match="b is refused"):
            executor.run([("work", "a"), ("refuse", "b"), ("work", "c")], lambda event: None, StopFlag())


def test_another_error_is_a_death_and_shown(capfd):
    """Even one that a closed pipe would raise."""
    deaths = []

    def on_death(unit: object, done: object, how: str) -> list[object]:
        deaths.append((unit, how))
        return []

    Processes(Scripted(), 1, on_death).run([("end", "a")], lambda event: None, StopFlag())
    assert deaths == [(("end", "a"), "exit code 1")]
    assert "EOFError: the file has ended" in capfd.readouterr().err


def test_a_worker_that_dies_in_the_middle_of_a_message_is_dead():
    worker: _Worker[Any, Any] = object.__new__(_Worker)
    worker.pipe, child = multiprocessing.get_context("spawn").Pipe()
    os.write(child.fileno(), struct.pack("!i", 100) + b"a tenth of it")
    child.close()
    assert worker.receive() == ("death", None)
    worker.pipe.close()


def test_a_worker_killed_while_it_looks_at_the_flag_blocks_nobody(tmp_path):
    """As it would, had the flag a lock; each look is then a chance to die with the lock held."""
    stop, killed = StopFlag(), []

    def on_death(unit: Any, done: object, how: str) -> list[Any]:
        killed.append(how)
        threading.Timer(0.2, kill).start()
        return [unit]

    def kill() -> None:
        started = [p for p in tmp_path.iterdir() if p.name not in seen]
        if len(killed) < 5 and started:
            seen.add(started[0].name)
            os.kill(int(started[0].name), signal.SIGKILL)
        elif len(killed) < 5:
            threading.Timer(0.05, kill).start()
        else:
            stop.set()

    seen: set[str] = set()
    threading.Timer(0.5, kill).start()
    Processes(Scripted(), 2, on_death).run([("wait", tmp_path)] * 2, lambda event: None, stop)
    assert killed == ["killed by signal 9"] * 5


@pytest.mark.parametrize("interruptible", [False, True])
def test_signals_are_arranged_before_anything_heavy_is_imported(interruptible):
    seen: list[object] = []
    Processes(Observant(), 1, forbidden, interruptible=interruptible).run(["a"], seen.append, StopFlag())
    assert seen == [(True, False, False, False) if interruptible else (False, True, True, False)]


@pytest.mark.parametrize("ending", ["error", "sigterm", "ctrl-c"])
def test_interruptible_workers_save_before_the_run_ends(tmp_path, ending):
    class EnoughError(Exception):
        pass

    raised = {"error": EnoughError, "sigterm": SystemExit, "ctrl-c": KeyboardInterrupt}[ending]

    def finish(event: object) -> None:
        until = time.monotonic() + 30
        while not list(tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.005)
        if ending == "error":
            raise EnoughError
        os.kill(os.getpid(), signal.SIGTERM if ending == "sigterm" else signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised) as caught:
        Processes(Scripted(), 1, forbidden, interruptible=True).run([("save", tmp_path)], finish, StopFlag())
    assert [p.name.endswith("-saved") for p in sorted(tmp_path.iterdir())] == [False, True]
    assert signal.getsignal(signal.SIGTERM) == before
    if ending == "sigterm":
        assert caught.value.code == 128 + signal.SIGTERM


def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from kdcache.workers import Processes, StopFlag\n"
        "from worker_cases import Scripted\n"
        "def die(event):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Processes(Scripted(), 2, print).run([('work', c) for c in 'ab'], die, StopFlag())\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    _, errors = program.communicate(timeout=60)  # ends when the last worker has let go of standard error
    assert program.returncode == -signal.SIGKILL
    assert "Traceback" not in errors


def test_the_flag_is_set_by_signals_and_the_second_one_ends_at_once():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stop = StopFlag()
    with stop_on_signals(stop):
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_signals_stay_as_they_are():
    found: list[object] = []

    def look() -> None:
        with stop_on_signals(StopFlag()), Interrupts().watch():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_interrupts_are_noted_and_the_second_one_gets_the_earlier_handler():
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        interrupts = Interrupts()
        with interrupts.watch():
            os.kill(os.getpid(), signal.SIGTERM)
            assert (interrupts.received, received) == (signal.SIGTERM, [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
        with pytest.raises(SystemExit) as caught:
            interrupts.leave()
        assert caught.value.code == 143
        interrupts.received = signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interrupts.leave()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_module_is_imported_without_torch():
    code = "import sys, kdcache.workers, kdcache.runs.ablation.pool; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

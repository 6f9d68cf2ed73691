"""Progress where there is no terminal: plain lines on time, for the whole process; none where they are not wanted."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import time

import pytest

from kdcache import progress as module
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.progress import Lines, Progress, counted, progress


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(module._Schedule, "due", None)
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


def plain(clock, lines, *arguments, **options) -> Lines:
    return Lines(*arguments, **{"ticks": False, "clock": clock, "write": lines.append, **options})


def test_lines_come_early_and_then_at_the_interval(clock, lines):
    bar = plain(clock, lines, "extract", 960, "clips")
    for _ in range(100):  # two clips a second
        clock.now += 0.5
        bar.update()
    assert lines == [
        "extract: 10/960 clips (1 %), 2 clips/s, 0:00:05 elapsed, ETA 0:07:55",
        "extract: 70/960 clips (7 %), 2 clips/s, 0:00:35 elapsed, ETA 0:07:25",
    ]
    bar.close()
    bar.close()
    assert lines[2:] == ["extract: 100/960 clips (10 %), 2 clips/s, 0:00:50 elapsed, ETA 0:07:10"]
    assert not any("\r" in line for line in lines)


def test_what_is_over_at_once_says_nothing(clock, lines):
    bar = plain(clock, lines, "verify", 2000, "B")
    clock.now += 4
    bar.update(2000)
    bar.close()
    assert lines == []


def test_bytes_and_slow_units_have_units_of_their_own(clock, lines):
    bar = plain(clock, lines, "i3d.pt", 50_000_000, "B")
    clock.now += 5
    bar.update(10_000_000)
    slow = plain(clock, lines, "runs", 10, "runs", done=2)
    slow.note("both, seed 0")
    clock.now += 120
    slow.update()
    assert lines == [
        "i3d.pt: 10.0 MB of 50.0 MB (20 %), 2.0 MB/s, 0:00:05 elapsed, ETA 0:00:20",
        "runs: 3/10 runs (30 %), 0.5 runs/min, 0:02:00 elapsed, ETA 0:14:00 [both, seed 0]",
    ]


def test_bars_of_one_process_share_the_interval_and_epochs_count_as_one_work(clock, lines):
    since = (clock.now, 0)
    for epoch in range(10):  # of four seconds each
        bar = plain(clock, lines, f"student {epoch + 1}/10", 400, "clips", 40 * epoch, since=since, leave=False)
        for _ in range(4):
            clock.now += 1
            bar.update(10)
        bar.close()
    assert lines == [
        "student 2/10: 50/400 clips (12 %), 10 clips/s, 0:00:05 elapsed, ETA 0:00:35",
        "student 9/10: 350/400 clips (87 %), 10 clips/s, 0:00:35 elapsed, ETA 0:00:05",
    ]


def test_lines_come_on_time_although_a_unit_takes_long(monkeypatch):
    monkeypatch.setattr(module._Schedule, "due", None)
    written: list[str] = []
    with Lines("runs", 3, "runs", every=0.02, write=written.append):
        deadline = time.monotonic() + 10
        while len(written) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(written) >= 3  # the last one by close
    assert all(line.startswith("runs: 0/3 runs (0 %), 0:00:0") for line in written)


def test_none_without_a_terminal_where_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("KDCACHE_PROGRESS_S", "0")
    assert type(progress("x", 1, "clips")) is Progress
    monkeypatch.setenv("KDCACHE_PROGRESS_S", "0.5")
    with progress("x", 5, "clips", done=1, before=10, after=4, ticks=False) as bar:
        assert isinstance(bar, Lines)
        assert (bar.done, bar.total) == (11, 19)
    assert type(progress("x", 1, "clips", shown=False)) is Progress
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        assert type(progress("x", 1, "clips")) is Progress
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_an_interval_that_is_no_number_of_seconds_is_refused(monkeypatch, text):
    monkeypatch.setenv("KDCACHE_PROGRESS_S", text)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(OptionError, match=re.escape(f"KDCACHE_PROGRESS_S={text}: give the seconds")):
        progress("x", 1, "clips")


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("extract", 3, "clips") as bar:
        bar.update(3)
        bar.note("c")
    assert "\r" in screen.getvalue()
    assert "3/3" in screen.getvalue()


def test_counted_gives_the_items(monkeypatch):
    monkeypatch.setenv("KDCACHE_PROGRESS_S", "0")
    assert list(counted("x", ["a", "b"], "sources")) == ["a", "b"]


def test_a_log_that_nobody_reads_any_more_does_not_end_the_work():
    code = (
        "import sys, kdcache.progress as p\n"
        "bar = p.Lines('x', 3, 'clips', every=0.001)\n"
        "sys.stderr.close()\n"
        "import time; time.sleep(0.05); bar.update(3); bar.close(); print(bar.done)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"

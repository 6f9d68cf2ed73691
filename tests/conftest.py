"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from remote_servers import bucket, s3_server  # noqa: F401  (fixtures)

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch would take every core in each of the processes

os.environ.setdefault("KDCACHE_PROGRESS_S", "0")  # tests of progress set it themselves

settings.register_profile("kdcache", database=None)
settings.load_profile("kdcache")


def pytest_configure(config: pytest.Config) -> None:
    """Keep hypothesis from writing into the current folder, which need not be writable."""
    folder = tempfile.TemporaryDirectory(prefix="hypothesis-")
    config.add_cleanup(folder.cleanup)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder.name


NEED_CLIPS = "need real clips"
"""Where tests that skip for want of them are counted, and how their reason begins."""


def shared_root() -> Path:
    """Where real clips are looked for."""
    return Path(os.environ.get("KDCACHE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and annotations (``KDCACHE_SHARED``, default ``../shared``)."""
    root = shared_root()
    if not (root / "data").is_dir():
        pytest.skip(f"{NEED_CLIPS}: {root / 'data'} is absent")
    return root


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Tests that need real clips are counted by themselves: they are one line at the end, not one each."""
    if report.skipped and isinstance(report.longrepr, tuple) and NEED_CLIPS in report.longrepr[2]:
        return NEED_CLIPS, "s", "SKIPPED"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The line of the tests that need real clips."""
    if count := len(terminalreporter.stats.get(NEED_CLIPS, [])):
        what = "tests need" if count > 1 else "test needs"
        terminalreporter.line(
            f"{count} {what} real clips, not found at {shared_root() / 'data'}; set KDCACHE_SHARED to the folder that "
            "holds them."
        )


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell starts background jobs with SIGINT ignored, and so would the processes that tests interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors of these tests are tiny: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests, saying so, where there is no CUDA device."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))

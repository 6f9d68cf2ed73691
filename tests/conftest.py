"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Without this, hypothesis writes the examples that it tried into the current folder, which need not be writable.
settings.register_profile("kdcache", database=None)
settings.load_profile("kdcache")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and golden outputs (``KDCACHE_SHARED``, default ``../shared``)."""
    root = Path(os.environ.get("KDCACHE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"real data not found: {root}/data is absent; set KDCACHE_SHARED to the folder that holds it")
    return root


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

"""On which devices a test runs: on the CPU everywhere, and the same on a GPU where there is one (``pytest -m gpu``)."""

from __future__ import annotations

import pytest

ON_EACH = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

"""A ``DataLoader`` that reads ahead in a thread: cached arrays are read too fast to be worth other processes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from kdcache.prefetch import prefetch

PREFETCH = 3  # batches that wait ready while the caller computes


class ThreadedLoader(DataLoader[dict[str, Any]]):
    """A ``DataLoader`` without workers whose batches are read by a thread while the caller computes.

    Its ``generator`` is seeded from torch's own when an epoch begins: what an epoch draws does not depend on how many
    numbers the caller draws meanwhile.
    """

    def __iter__(self) -> Any:
        assert self.generator is not None
        self.generator.manual_seed(int(torch.randint(2**63 - 1, ())))
        return prefetch(super().__iter__(), PREFETCH)

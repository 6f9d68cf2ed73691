"""A stream in memory, for tests of methods and of the loop."""

from __future__ import annotations

import contextlib

import torch

from kdcache.data.training_data import batches_on
from kdcache.methods.contract import Data

CPU = torch.device("cpu")


class MemoryStream:
    """``data`` is ``[rows, views, …]``; so many ``free`` bytes may be filled beside it."""

    resident, available = True, None

    def __init__(self, data: torch.Tensor, free: int = 10**9) -> None:
        self.data, self.free = data, free
        self.views, self.shape = data.shape[1], tuple(data.shape[2:])

    def fits(self, nbytes):
        return nbytes <= self.free

    def fetch(self, rows, views, keys):
        return self.data[rows, views]

    def to_device(self, fetched):
        return fetched

    def map(self, fn):
        return self


def data_on(inputs, **fields) -> Data:
    """``Data`` of streams in memory."""
    values = {
        "splits": {},
        "classes": {},
        "inputs": inputs,
        "roles": {},
        "layers": dict.fromkeys(inputs, "MaxPool3d_4a_3x3"),
        "seed": 0,
        "device": CPU,
        "autocast": contextlib.nullcontext,
        "batches": batches_on(CPU),
        "backbone": lambda name: {},
    }
    return Data(**(values | fields))

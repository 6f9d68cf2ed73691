"""Which device to compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcache.errors import DeviceError, unknown

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``; ``DeviceError`` for one that is not there."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if there else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cpu":
        return torch.device("cpu")
    if int(number or 0) >= there:
        raise DeviceError(f"device={name}: this machine shows {there} CUDA device(s); use device=auto or device=cpu.")
    return torch.device("cuda", int(number or 0))

"""A network's answers for a batch source: class probabilities in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.device_errors import device_errors
from kdcache.methods.contract import Batch, BatchSource, Data
from kdcache.numerics import full_precision

Probabilities = NDArray[np.float32]


@torch.no_grad()
def probabilities(
    module: nn.Module, predict: Callable[[Batch], Tensor], data: Data, source: BatchSource, batch_size: int
) -> Probabilities:
    """Softmax of the logits of every example, float32 ``[n, ..., C]``, in evaluation mode and view 0.

    Raises:
        DeviceError: a batch does not fit into the device's memory, or the device is broken.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    parts = []
    remedy = "end what else uses it, set a smaller batch_size, or memory_fraction=0 to keep the stream off the device"
    with full_precision(), device_errors(data.device, f"scoring {batch_size} examples at once", remedy):
        for batch in data.batches(source, batch_size, 0):
            with data.autocast():
                logits = predict(batch)
            if not isinstance(logits, Tensor):
                raise TypeError(f"predict returns {type(logits).__name__}; it returns the logits, a tensor [B, ..., C]")
            parts.append(torch.softmax(logits.float(), -1).cpu().numpy())
    for part, mode in modes:
        part.training = mode
    return np.concatenate(parts)

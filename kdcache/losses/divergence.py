"""Divergences that several losses share."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)) over the last axis, ``[..., C]`` → ``[...]``, natural logarithm.

    The gradient flows into both; whoever wants a constant target detaches it.
    """
    log_p, log_q = torch.log_softmax(target.float(), -1), torch.log_softmax(logits.float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)

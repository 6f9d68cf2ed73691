"""Motion imprinting (Papicchio, Poeta & Pes, *Imprinting the Motion*, equations (3), (5) and (6))."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def l_ms(
    l: Tensor,  # noqa: E741
    m: Tensor,
    loss: Literal["cls", "reg_mse", "reg_l1"] = "cls",
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """L_ms of motion imprinting, added up over the N frames, ``[B]``; m, the motion map of s × s cells, is a constant.

    - ``cls``, equation (3): cross entropy. With logits ``[B, N, 2, s, s]`` each cell is still (0) or moves (1); with
      ``[B, N, s, s]`` it is -Σ_j m(j) log softmax(l)(j) over the cells j, as printed.
    - ``reg_mse``, equation (5), and ``reg_l1``, equation (6): squared or absolute difference, of ``[B, N, s, s]``.

    ``mean`` averages over the cells, as the authors' code does, and equation (5); ``sum`` adds them up, as equations
    (3) and (6) are printed.

    Args:
        l: what the head says.
        m: labels 0 and 1, or shares of motion, float ``[B, N, s, s]``.
        loss: which.
        reduction: of the cells of a frame.
    """
    with torch.autocast(l.device.type, enabled=False):
        l, m = l.float(), m.detach().float()  # noqa: E741
        if loss == "cls" and l.ndim == 5:
            each = F.cross_entropy(l.flatten(0, 1), m.flatten(0, 1).long(), reduction="none").view(m.shape)
        elif loss == "cls":
            each = -m * l.flatten(2).log_softmax(-1).view(m.shape)
        else:
            each = (l - m).square() if loss == "reg_mse" else (l - m).abs()
        frames = each.flatten(2).mean(-1) if reduction == "mean" else each.flatten(2).sum(-1)
        return frames.sum(1)

"""Anticipation (Tran, Wang, Zhang & Hoai, *Knowledge Distillation for Human Action Anticipation*), equations (1) to
(5).

Feature maps are ``[B, d, l, h, w]`` (or ``[B, d, n]``); in formulas they are matrices A, R of ``n = l·h·w`` column
vectors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.losses.divergence import kl

Distance = Literal["huber", "mse", "kl"]
Reduction = Literal["mean", "sum"]


def vectors(feature_map: Tensor) -> Tensor:
    """The ``n`` vectors of a map ``[B, d, ...]`` as float32 rows ``[B, n, d]``."""
    return feature_map.flatten(2).transpose(1, 2).float()


def phi(q: Tensor, K: Tensor, alpha: float | None = None) -> Tensor:
    """Attentional pooling φ(q, K) = K softmax(α Kᵀ q): the amount of each ``q`` in ``K`` (§2.2).

    ``q`` is ``[B, m, d]``, ``K`` is ``[B, n, d]``, the result ``[B, m, d]``. ``alpha=None`` is the paper's 1/√d;
    0 gives the average of K, large values the vector of K with the greatest dot product.
    """
    scale = K.shape[-1] ** -0.5 if alpha is None else alpha
    return torch.softmax(scale * (q @ K.transpose(1, 2)), dim=-1) @ K


def attention_entropy(q: Tensor, K: Tensor, alpha: float | None = None) -> Tensor:
    """Mean entropy of φ's weights in units of log n, ``[B]``: 1 is average pooling, 0 picks a single vector."""
    scale = K.shape[-1] ** -0.5 if alpha is None else alpha
    log_weights = torch.log_softmax(scale * (q @ K.transpose(1, 2)), dim=-1)
    entropy = -(log_weights.exp() * log_weights).sum(-1).mean(-1)
    return entropy / math.log(max(K.shape[1], 2))


def discrepancy(target: Tensor, value: Tensor, distance: Distance, reduction: Reduction) -> Tensor:
    """Distance of matching vectors ``[B, n, d]``, reduced to ``[B]``.

    - ``mse``: (t - v)², as equations (4) and (5) are printed;
    - ``huber``: e²/2 for |e| ≤ 1, else |e| - 1/2 (δ = 1; §3.2);
    - ``kl``: KL(softmax(t) ‖ softmax(v)) over the d channels of each vector [reconstructed].

    ``mean`` averages over vectors and channels (over vectors for ``kl``) [reconstructed]; ``sum`` adds them up, as
    printed.
    """
    if distance == "kl":
        log_t, log_v = torch.log_softmax(target, -1), torch.log_softmax(value, -1)
        each = (log_t.exp() * (log_t - log_v)).sum(-1)
    elif distance == "huber":
        each = F.huber_loss(value, target, reduction="none", delta=1.0).flatten(1)
    else:
        each = F.mse_loss(value, target, reduction="none").flatten(1)
    return each.mean(1) if reduction == "mean" else each.sum(1)


def l_tilde(
    Q: Tensor,
    A: Tensor,
    R: Tensor,
    alpha: float | None = None,
    distance: Distance = "huber",
    reduction: Reduction = "mean",
) -> Tensor:
    """One direction of L_d over rows ``[B, n, d]``: Σᵢ ‖φ(qᵢ, R) - φ(qᵢ, A)‖².

    With Q = A it is L̃_d(A, R), equation (4); with Q = R it is L̃_d(R, A), equation (5).
    """
    return discrepancy(phi(Q, R, alpha), phi(Q, A, alpha), distance, reduction)


def l_d(
    A: Tensor,
    R: Tensor,
    which: Literal["AR", "RA", "both"] = "both",
    alpha: float | None = None,
    distance: Distance = "huber",
    reduction: Reduction = "mean",
    stopgrad_query: bool = False,
) -> Tensor:
    """L_d(A, R) = L̃_d(A, R) + L̃_d(R, A), equation (3), or one of the two (``which``), for maps ``[B, d, ...]``.

    Both directions are unchanged when the positions of R are permuted. In L̃_d(A, R) the gradient reaches A as query
    and as key; ``stopgrad_query=True`` cuts the query [reconstructed].
    """
    with torch.autocast(A.device.type, enabled=False):
        a, r = vectors(A), vectors(R.detach())
        total = a.new_zeros(len(a))
        if which in ("AR", "both"):
            total = total + l_tilde(a.detach() if stopgrad_query else a, a, r, alpha, distance, reduction)
        if which in ("RA", "both"):
            total = total + l_tilde(r, a, r, alpha, distance, reduction)
        return total


def l_direct(A: Tensor, R: Tensor, distance: Distance = "huber", reduction: Reduction = "mean") -> Tensor:
    """L_direct(A, R) = ‖A - R‖², position by position (§2.2); the maps must have the same shape."""
    with torch.autocast(A.device.type, enabled=False):
        return discrepancy(vectors(R.detach()), vectors(A), distance, reduction)


def l_c(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """L_c = KL(target ‖ softmax(logits)), ``[B]`` (§3.2).

    ``target`` is either int64 classes ``[B]``, for which the divergence is the cross entropy, or the teacher's logits
    ``[B, C]``, taken as softmax(target / T) without gradient; both sides are then softened and the loss scaled by T²,
    so that its gradient keeps its size (T = 1 in the paper).
    """
    with torch.autocast(logits.device.type, enabled=False):
        if not target.is_floating_point():
            return F.cross_entropy(logits.float(), target, reduction="none")
        return kl(target.detach().float() / temperature, logits.float() / temperature) * temperature**2

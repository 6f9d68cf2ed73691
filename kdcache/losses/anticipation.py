"""Anticipation (Tran, Wang, Zhang & Hoai, *Knowledge Distillation for Human Action Anticipation*), equations (1) to
(5).

Feature maps are ``[B, d, l, h, w]`` (or ``[B, d, n]``); in formulas they are matrices A, R of ``n = l·h·w`` column
vectors. Where clips have different numbers of positions, maps are padded and come with a mask, bool ``[B, n]``: what is
masked out takes no part in any softmax or mean.
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


def phi(q: Tensor, K: Tensor, alpha: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Attentional pooling φ(q, K) = K softmax(α Kᵀ q): the amount of each ``q`` in ``K`` (§2.2).

    ``q`` is ``[B, m, d]``, ``K`` is ``[B, n, d]``, the result ``[B, m, d]``. ``alpha=None`` is the paper's 1/√d;
    0 gives the average of K, large values the vector of K with the greatest dot product. ``mask``, bool ``[B, n]``,
    says which vectors of K there are; none: all.
    """
    return torch.softmax(_scores(q, K, alpha, mask), dim=-1) @ K


def _scores(q: Tensor, K: Tensor, alpha: float | None, mask: Tensor | None) -> Tensor:
    """α Kᵀ q of every pair, ``[B, m, n]``; -∞ for vectors of K that are not there."""
    scale = K.shape[-1] ** -0.5 if alpha is None else alpha
    scores = scale * (q @ K.transpose(1, 2))
    return scores if mask is None else scores.masked_fill(~mask[:, None], -math.inf)


def attention_entropy(
    q: Tensor,
    K: Tensor,
    alpha: float | None = None,
    mask_q: Tensor | None = None,
    mask_K: Tensor | None = None,
) -> Tensor:
    """Mean entropy of φ's weights in units of log n, ``[B]``: 1 is average pooling, 0 picks a single vector."""
    log_weights = torch.log_softmax(_scores(q, K, alpha, mask_K), dim=-1)
    weights = log_weights.exp()
    if mask_K is not None:
        log_weights = log_weights.masked_fill(~mask_K[:, None], 0.0)  # 0 · log 0 = 0
    entropy = -(weights * log_weights).sum(-1)
    if mask_K is None:
        return _over_positions(entropy, mask_q, "mean") / math.log(max(K.shape[1], 2))
    return _over_positions(entropy, mask_q, "mean") / mask_K.sum(1).clamp(min=2).log()


def discrepancy(
    target: Tensor, value: Tensor, distance: Distance, reduction: Reduction, mask: Tensor | None = None
) -> Tensor:
    """Distance of matching vectors ``[B, n, d]``, reduced to ``[B]``.

    - ``mse``: (t - v)², as equations (4) and (5) are printed;
    - ``huber``: e²/2 for |e| ≤ 1, else |e| - 1/2 (δ = 1; §3.2);
    - ``kl``: KL(softmax(t) ‖ softmax(v)) over the d channels of each vector [reconstructed].

    ``mean`` averages over vectors and channels (over vectors for ``kl``) [reconstructed]; ``sum`` adds them up, as
    printed. ``mask``, bool ``[B, n]``, says which of the vectors count; none: all.
    """
    if distance == "kl":
        log_t, log_v = torch.log_softmax(target, -1), torch.log_softmax(value, -1)
        each = (log_t.exp() * (log_t - log_v)).sum(-1)
    elif distance == "huber":
        each = F.huber_loss(value, target, reduction="none", delta=1.0)
    else:
        each = F.mse_loss(value, target, reduction="none")
    if mask is None:
        return each.flatten(1).mean(1) if reduction == "mean" else each.flatten(1).sum(1)
    if each.ndim == 3:
        each = each.mean(-1) if reduction == "mean" else each.sum(-1)
    return _over_positions(each, mask, reduction)


def _over_positions(each: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """The mean or sum over positions of ``[B, n]``, without those that are masked out."""
    if mask is None:
        return each.mean(1) if reduction == "mean" else each.sum(1)
    total = each.masked_fill(~mask, 0.0).sum(1)
    return total / mask.sum(1) if reduction == "mean" else total


def l_tilde(
    Q: Tensor,
    A: Tensor,
    R: Tensor,
    alpha: float | None = None,
    distance: Distance = "huber",
    reduction: Reduction = "mean",
    masks: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> Tensor:
    """One direction of L_d over rows ``[B, n, d]``: Σᵢ ‖φ(qᵢ, R) - φ(qᵢ, A)‖².

    With Q = A it is L̃_d(A, R), equation (4); with Q = R it is L̃_d(R, A), equation (5). ``masks`` are of Q, A and R.
    """
    of_q, of_a, of_r = masks
    return discrepancy(phi(Q, R, alpha, of_r), phi(Q, A, alpha, of_a), distance, reduction, of_q)


def l_d(
    A: Tensor,
    R: Tensor,
    which: Literal["AR", "RA", "both"] = "both",
    alpha: float | None = None,
    distance: Distance = "huber",
    reduction: Reduction = "mean",
    stopgrad_query: bool = False,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """L_d(A, R) = L̃_d(A, R) + L̃_d(R, A), equation (3), or one of the two (``which``), for maps ``[B, d, ...]``.

    Both directions are unchanged when the positions of R are permuted. In L̃_d(A, R) the gradient reaches A as query
    and as key; ``stopgrad_query=True`` cuts the query [reconstructed]. ``masks``, bool ``[B, n]`` each, say which
    positions of A and of R there are; none: all.
    """
    of_a, of_r = masks
    with torch.autocast(A.device.type, enabled=False):
        a, r = vectors(A), vectors(R.detach())
        total = a.new_zeros(len(a))
        if which in ("AR", "both"):
            q = a.detach() if stopgrad_query else a
            total = total + l_tilde(q, a, r, alpha, distance, reduction, (of_a, of_a, of_r))
        if which in ("RA", "both"):
            total = total + l_tilde(r, a, r, alpha, distance, reduction, (of_r, of_a, of_r))
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

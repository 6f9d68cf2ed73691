"""Early recognition (Tran, Balasubramanian & Hoai, *Progressive Knowledge Distillation for Early Action Recognition*,
equations (1) to (3)) and its baselines.

Sequences are logits ``[B, N, C]`` or latents ``[B, N, D]`` at N degrees of progress.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.losses.divergence import kl


def l_ts(S: Tensor, T: Tensor) -> Tensor:
    """L_ts(S, T) = 1/N Σ_n KL(T(x_n) ‖ S(x_n)), equation (1) of early recognition; logits ``[B, N, C]`` → ``[B]``.

    The teacher's T is a constant.
    """
    with torch.autocast(S.device.type, enabled=False):
        return kl(T.detach(), S).mean(1)


def l_self(S: Tensor, tau: int = 1, detach: bool = True) -> Tensor:
    """L_self(S) = 1/(N-τ) Σ_{n≤N-τ} KL(S(x_{n+τ}) ‖ S(x_n)), equation (2); logits ``[B, N, C]``, τ < N → ``[B]``.

    ``detach``: the later answer is a constant [reconstructed]; else it is also drawn towards the earlier one.
    """
    with torch.autocast(S.device.type, enabled=False):
        later = S[:, tau:].detach() if detach else S[:, tau:]
        return kl(later, S[:, :-tau]).mean(1)


def l_cls(S: Tensor, y: Tensor) -> Tensor:
    """L_cls(S, y) = 1/N Σ_n ℓ(S(x_n), y), equation (3), ℓ the cross entropy; ``[B, N, C]``, ``[B]`` → ``[B]``."""
    with torch.autocast(S.device.type, enabled=False):
        logits, at_each = S.flatten(0, 1).float(), y.repeat_interleave(S.shape[1])
        return F.cross_entropy(logits, at_each, reduction="none").view(S.shape[:2]).mean(1)


def l_mse(s: Tensor, t: Tensor) -> Tensor:
    """TS-LSTM's L_MSE = 1/N Σ_n ‖s_n - t_n‖² of the latents ``[B, N, D]`` → ``[B]``; t, the teacher's, is a constant.

    Wang et al., *Progressive Teacher-Student Learning for Early Action Prediction*, CVPR 2019. [reconstructed]
    """
    with torch.autocast(s.device.type, enabled=False):
        return (s.float() - t.detach().float()).square().sum(-1).mean(1)


BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernels of ``l_mmd``, in units of the median squared distance. [reconstructed]"""


def l_mmd(s: Tensor, t: Tensor) -> Tensor:
    """TS-LSTM's L_MMD: how far the latents of a batch ``[B, N, D]`` are from the teacher's as distributions, ``[B]``.

    At each n the squared maximum mean discrepancy, 1/B² Σ_{b,b'} [k(s, s') + k(t, t') - 2 k(s, t')] ≥ 0, then the mean
    over n; k(u, v) = Σ_f exp(-‖u - v‖² / (f m)) with f in ``BANDWIDTHS`` and m the median of the squared distances
    between different vectors, s and t together, taken as a constant. It belongs to the batch as a whole, so every
    sample has the same value. Source as ``l_mse``. [reconstructed]
    """
    with torch.autocast(s.device.type, enabled=False):
        both = torch.cat([s.float(), t.detach().float()]).transpose(0, 1)  # [N, 2B, D]
        distances = _squared_distances(both)
        i, j = torch.triu_indices(both.shape[1], both.shape[1], 1, device=s.device)
        pairs = distances.detach()[:, i, j].sort(-1).values  # not median(): it is not deterministic on a GPU
        median = pairs[:, (pairs.shape[1] - 1) // 2].clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
        k = torch.stack([torch.exp(-distances / (f * median)) for f in BANDWIDTHS]).sum(0)
        B = len(s)
        at_each = (k[:, :B, :B] + k[:, B:, B:] - 2 * k[:, :B, B:]).mean((1, 2))
        return at_each.mean().expand(B)


def _squared_distances(x: Tensor) -> Tensor:
    """Between all vectors ``[..., n, D]`` → ``[..., n, n]``; smooth at 0, unlike the root in ``torch.cdist``."""
    square = x.square().sum(-1)
    return (square[..., :, None] + square[..., None, :] - 2 * x @ x.transpose(-1, -2)).clamp(min=0)


def l_rank(S: Tensor, y: Tensor, which: Literal["score", "margin", "both"] = "both", detach: bool = True) -> Tensor:
    """RankLSTM's ranking loss: what is known of the true class must not fall as more is seen; ``[B, N, C]`` → ``[B]``.

    With p_n = softmax(S(x_n)): ``score`` is 1/N Σ_{n>1} max(0, max_{m<n} p_m[y] - p_n[y]), ``margin`` the same of
    p_n[y] - max_{c≠y} p_n[c], and ``both`` their sum. ``detach``: the best of the earlier ones is a constant, so that a
    fall is mended at its end and not at its beginning [reconstructed].

    Ma, Sigal & Sclaroff, *Learning Activity Progression in LSTMs*, CVPR 2016. Formulas are [reconstructed] from their
    description: the score and the margin are monotonically non-decreasing, violations cost linearly.
    """
    with torch.autocast(S.device.type, enabled=False):
        p = torch.softmax(S.float(), -1)
        true = F.one_hot(y, p.shape[-1]).bool()[:, None]
        score = (p * true).sum(-1)
        curves = [score] if which != "margin" else []
        if which != "score":
            curves.append(score - p.masked_fill(true, 0.0).amax(-1))
        total = torch.zeros_like(score[:, 0])
        for curve in curves:
            best = (curve.detach() if detach else curve).cummax(1).values[:, :-1]
            total = total + (best - curve[:, 1:]).clamp(min=0).sum(1) / S.shape[1]
        return total

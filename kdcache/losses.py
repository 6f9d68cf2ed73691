"""Each distillation loss once, with its equation. All return one value for each sample, ``float32 [B]``.

Anticipation (Tran, Wang, Zhang & Hoai, *Knowledge Distillation for Human Action Anticipation*, equations (1) to (5)):
``l_c``, ``l_d``, ``l_direct``. Feature maps are ``[B, d, l, h, w]`` (or ``[B, d, n]``); in formulas they are matrices
A, R of ``n = l·h·w`` column vectors.

Early recognition (Tran, Balasubramanian & Hoai, *Progressive Knowledge Distillation for Early Action Recognition*,
equations (1) to (3)) and its baselines: ``l_ts``, ``l_self``, ``l_cls``; ``l_mse``, ``l_mmd``, ``l_rank``. Sequences
are logits ``[B, N, C]`` or latents ``[B, N, D]`` at N degrees of progress.

Motion imprinting (Papicchio, Poeta & Pes, *Imprinting the Motion*, equations (3), (5) and (6)): ``l_ms``.

The teacher's side is always a constant: no gradient flows into it. Everything is computed in float32, also inside
autocast: dot products of post-ReLU maps pass 100, where a bfloat16 score is off by 0.4 before the exponential.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)) over the last axis, ``[..., C]`` → ``[...]``, natural logarithm.

    The gradient flows into both; whoever wants a constant target detaches it.
    """
    log_p, log_q = torch.log_softmax(target.float(), -1), torch.log_softmax(logits.float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


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


def l_ms(
    l: Tensor,  # noqa: E741
    m: Tensor,
    loss: Literal["cls", "reg_mse", "reg_l1"] = "cls",
    reduction: Reduction = "mean",
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

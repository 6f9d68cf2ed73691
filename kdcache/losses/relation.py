"""Internal relationship of motion features (the ICONIP 2020 paper of which only the abstract is at hand).

The losses are [reconstructed] from what the paper cites: ``l_rep`` is MARS's (Crasto et al., CVPR 2019); the relation
of channels is the Gram matrix of Gatys et al. (*A Neural Algorithm of Artistic Style*) and Johnson et al. (*Perceptual
Losses*). That of the clips of a batch is Tung & Mori's (*Similarity-Preserving Knowledge Distillation*, ICCV 2019).

Maps are ``[B, c, t, h, w]``; in formulas they are matrices X of c rows (channels) and M = t·h·w columns (positions).
S is the student's, F the flow teacher's, which is a constant.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["channel", "position", "temporal", "batch"]
Norm = Literal["frobenius", "gatys"]
_TINY = 1e-8


def l_rep(s: Tensor, f: Tensor) -> Tensor:
    """L_rep = mean over the d numbers of (s - f)², of pooled features ``[B, d]`` → ``[B]``. [MARS]"""
    with torch.autocast(s.device.type, enabled=False):
        return (s.float() - f.detach().float()).square().mean(1)


def relation(F_: Tensor, kind: Kind) -> Tensor:
    """What of the teacher's map, float32, ``l_ir`` compares with: the smallest that will do.

    - ``channel``: the map's matrix ``[B, c, M]``, from which the c × c products follow;
    - ``position``: cosines between the channels of all positions, ``[B, M, M]``;
    - ``temporal``: cosines between the spatial means of all time steps, ``[B, t, t]``;
    - ``batch``: the pooled features themselves, ``[B, d]``.
    """
    with torch.autocast(F_.device.type, enabled=False):
        X = F_.float()
        if kind == "channel":
            return X.flatten(2)
        if kind == "position":
            return _cosines(X.flatten(2))
        return _cosines(X.mean((3, 4))) if kind == "temporal" else X


def l_ir(
    S: Tensor,
    target: Tensor,
    kind: Kind = "channel",
    norm: Norm = "frobenius",
    through: Literal["channels", "positions"] | None = None,
) -> Tensor:
    """L_ir, how far the student's relations are from the teacher's, ``[B]``. [reconstructed]

    - ``channel``, with G(X) = X Xᵀ/(c M): Σ_ij (Ĝ_S - Ĝ_F)², Ĝ = G/‖G‖_F; with ``norm="gatys"`` as in style transfer,
      (1/4c²M²) Σ_ij (S Sᵀ - F Fᵀ)². It does not change when positions are permuted.
    - ``position`` and ``temporal``: mean of (Q_S - Q_F)², Q the cosines of ``relation``.
    - ``batch``, of pooled features z ``[B, d]``: G = z zᵀ with each row divided by its length, B⁻¹ Σ_j (G_S - G_F)²_ij
      for sample i, so that the mean over the batch is ‖G_S - G_F‖²_F / B².

    Args:
        S: the student's map ``[B, c, t, h, w]``, or its pooled features ``[B, d]`` for ``batch``.
        target: ``relation`` of the teacher's, a constant.
        kind: of relation.
        norm: of ``channel``.
        through: the c × c products of ``channel`` are compared themselves, or by way of M × M ones:
            ‖S Sᵀ - F Fᵀ‖² = ‖SᵀS‖² + ‖FᵀF‖² - 2 ‖SᵀF‖². None: the smaller.
    """
    with torch.autocast(S.device.type, enabled=False):
        target = target.detach()
        if kind == "channel":
            return _channels(relation(S, kind), target, norm, through)
        if kind == "batch":
            gap = F.normalize(S.float() @ S.float().T, dim=1) - F.normalize(target @ target.T, dim=1)
            return gap.square().mean(1)
        return (relation(S, kind) - target).square().mean((1, 2))


def _channels(S: Tensor, F_: Tensor, norm: Norm, through: str | None) -> Tensor:
    """‖a S Sᵀ - b F Fᵀ‖², where a and b are what ``norm`` divides by."""
    c, M = S.shape[1:]
    direct = c <= M if through is None else through == "channels"
    products = [X @ X.transpose(1, 2) if direct else X.transpose(1, 2) @ X for X in (S, F_)]
    if norm == "gatys":
        a = b = torch.full_like(products[0][:, 0, 0], 0.5 / (c * M))
    else:
        a, b = (1 / (_length(G) + _TINY * c * M) for G in products)  # S Sᵀ and SᵀS have one length
    if direct:
        G_S, G_F = products
        return (a[:, None, None] * G_S - b[:, None, None] * G_F).square().sum((1, 2))
    (SS, FF), SF = (G.square().sum((1, 2)) for G in products), (S.transpose(1, 2) @ F_).square().sum((1, 2))
    return (a.square() * SS + b.square() * FF - 2 * a * b * SF).clamp(min=0)


def _length(G: Tensor) -> Tensor:
    """Frobenius norms ``[B]``, with a gradient of 0 at 0."""
    square = G.square().sum((1, 2))
    return torch.where(square > 0, square.clamp(min=torch.finfo(square.dtype).tiny).sqrt(), square)


def _cosines(X: Tensor) -> Tensor:
    """Between the columns of ``[B, c, n]`` → ``[B, n, n]``; a column of zeros is at right angles to all."""
    columns = F.normalize(X, dim=1, eps=_TINY)
    return columns.transpose(1, 2) @ columns

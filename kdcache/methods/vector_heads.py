"""Heads on cached vectors: sequences ``[T, D]``, of one length or padded with their lengths, and positions of maps.

Padding never enters a number: what is padded takes no part in batch statistics, in a softmax or in a mean, so the
answer for a clip does not depend on the clips beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.methods.contract import Batch, Outputs
from kdcache.numerics import no_autocast


def own_positions(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Which vectors of ``[B, T, D]`` are not padding, bool ``[B, T]``."""
    if lengths is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def attention_pool(x: Tensor, scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of vectors ``[B, T, D]`` under softmax weights of ``scores`` ``[B, T]`` over the ``own`` ones.

    Returns:
        float32 ``[B, D]`` and the weights ``[B, T]``, 0 where there is padding.
    """
    weights = torch.softmax(scores.float().masked_fill(~own, -math.inf), dim=1)
    with no_autocast(x):
        return (weights[:, None] @ x.float()).squeeze(1), weights


class VectorHead(nn.Module):
    """The light head of anticipation on a sequence of vectors: projection, attention pooling, linear classifier.

    As ``LightHead`` on maps: each vector is projected to ``width`` channels with batch norm and ReLU, the sequence is
    pooled with learned softmax weights, and classified. The positions of its map are the time steps. [reconstructed:
    the paper has maps alone]
    """

    def __init__(self, features: int, num_classes: int, width: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.project = nn.Linear(features, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.attend = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(width, num_classes)
        nn.init.zeros_(self.attend.weight)  # starts as average pooling
        nn.init.zeros_(self.attend.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Outputs:
        """``[B, T, D]``, padded where there are ``lengths`` ``[B]`` → ``logits`` ``[B, num_classes]``, ``map``
        ``[B, width, T, 1, 1]`` (0 in padding), ``weights`` ``[B, T]`` and ``pooled`` ``[B, width]`` of its time steps;
        with lengths also ``own``, bool ``[B, T]``: which time steps there are."""
        own = own_positions(x, lengths)
        if lengths is None:
            steps = self._normed(self.project(x).flatten(0, 1)).view(*x.shape[:2], -1)
        else:
            projected = self._normed(self.project(x[own]))
            steps = projected.new_zeros((*x.shape[:2], projected.shape[1])).masked_scatter(own[..., None], projected)
        pooled, weights = attention_pool(steps, self.attend(steps).squeeze(2), own)
        feature_map = steps.transpose(1, 2)[..., None, None]
        outputs = {"logits": self.classify(self.dropout(pooled)), "map": feature_map}
        outputs |= {"weights": weights, "pooled": pooled}
        return outputs if lengths is None else outputs | {"own": own}

    def _normed(self, x: Tensor) -> Tensor:
        """Batch norm and ReLU of vectors ``[n, width]``; one alone has no variance and takes the running one."""
        n = self.norm
        if len(x) > 1:
            return F.relu(n(x))
        return F.relu(F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps))


class Standardise(nn.Module):
    """Subtracts a mean from vectors ``[..., D]`` and divides them by a scale; both are part of the state dict.

    Until ``fit`` it changes nothing.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take mean and standard deviation from the vectors ``x`` of all batches, ``[B, D]``, ``[B, T, D]`` or padded;
        features that never vary become 0."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            x = batch["x"].double()
            vectors = x if x.ndim == 2 else x[own_positions(x, batch.get("x.lengths"))]
            count += len(vectors)
            total, squares = total + vectors.sum(0), squares + vectors.square().sum(0)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().float()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, 1 / std, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` → ``[..., D]``."""
        return (x - self.mean) * self.scale


class FeatureClassifier(nn.Module):
    """A classifier of clips on cached features: standardise → pool → dropout → linear, or a small MLP.

    Args:
        features: D.
        num_classes: C.
        attention: pool sequences with learned softmax weights; else the input is one vector.
        width: hidden units of an MLP with ReLU; none: linear.
        dropout: share of the pooled features, and of the hidden units, that is dropped.
    """

    def __init__(
        self, features: int, num_classes: int, *, attention: bool, width: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.standardise = Standardise(features)
        self.attend = nn.Linear(features, 1) if attention else None
        if self.attend is not None:  # starts as average pooling
            nn.init.zeros_(self.attend.weight)
            nn.init.zeros_(self.attend.bias)
        self.dropout = nn.Dropout(dropout)
        self.hidden = None if width is None else nn.Linear(features, width)
        self.classify = nn.Linear(features if width is None else width, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Outputs:
        """``[B, D]``, or with attention ``[B, T, D]``, padded where there are ``lengths`` ``[B]`` → ``logits``
        ``[B, C]``, ``pooled`` ``[B, D]``, and with attention ``weights`` ``[B, T]``."""
        outputs: Outputs = {}
        pooled = self.standardise(x)
        if self.attend is not None:
            scores = self.attend(pooled).squeeze(2)
            pooled, outputs["weights"] = attention_pool(pooled, scores, own_positions(x, lengths))
        kept = self.dropout(pooled)
        if self.hidden is not None:
            kept = self.dropout(F.relu(self.hidden(kept)))
        return outputs | {"logits": self.classify(kept), "pooled": pooled}

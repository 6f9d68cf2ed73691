"""What early recognition is compared with beside recurrent networks: a classifier for each level, nearest neighbours.

Both answer at every level n from x_1 … x_n, either from their mean or from all of them (``Observed``). Like the
recurrent networks they take fewer levels than they were made for, and can go ``step`` by step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.methods.contract import Outputs

Observed = Literal["mean", "concat"]


class Prefixes(nn.Module):
    """A network whose answer at n depends on x_1 … x_n alone."""

    @torch.no_grad()
    def step(self, x_n: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As ``Recurrent.step``: x_n ``[B, d]`` → logits ``[B, C]``; the state is all that came, ``[B, n, d]``."""
        state = x_n[:, None] if state is None else torch.cat([state, x_n[:, None]], dim=1)
        return self(state)["logits"][:, -1], state


class Levels(Prefixes):
    """An independent linear classifier for each level. [reconstructed]"""

    def __init__(self, levels: int, features: int, num_classes: int, observed: Observed, dropout: float = 0.0) -> None:
        super().__init__()
        self.observed = observed
        self.input: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        widths = [features * (n if observed == "concat" else 1) for n in range(1, levels + 1)]
        self.classify = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, x: Tensor) -> Outputs:
        """``[B, n, d]`` with n ≤ N → ``logits`` ``[B, n, num_classes]``; ``ValueError`` for more levels."""
        if x.shape[1] > len(self.classify):
            raise ValueError(f"{x.shape[1]} levels given to classifiers of {len(self.classify)}")
        x = self.dropout(self.input(x))
        if self.observed == "mean":
            inputs = list(running_mean(x).unbind(1))
        else:
            inputs = [x[:, :n].flatten(1) for n in range(1, x.shape[1] + 1)]
        return {"logits": torch.stack([f(v) for f, v in zip(self.classify, inputs, strict=False)], dim=1)}


class Neighbours(Prefixes):
    """The share of each class among the k nearest training clips (Euclidean) that were observed as far. [reconstructed]

    Equal shares are told apart by the order of the neighbours. There is nothing to train and nothing in the state dict:
    it is made from the training clips ``x`` ``[M, N, d]`` and their classes ``y`` ``[M]``.
    """

    x: Tensor
    y: Tensor
    weights: Tensor

    def __init__(self, x: Tensor, y: Tensor, num_classes: int, k: int, observed: Observed) -> None:
        super().__init__()
        self.num_classes, self.observed = num_classes, observed
        self.input: nn.Module = nn.Identity()
        k = min(k, len(y))
        self.register_buffer("x", running_mean(x) if observed == "mean" else x, persistent=False)
        self.register_buffer("y", y, persistent=False)
        self.register_buffer("weights", 1 + 1e-3 * torch.arange(k - 1, -1, -1, device=x.device), persistent=False)

    def forward(self, x: Tensor) -> Outputs:
        """``[B, n, d]`` with n ≤ N → ``logits``: log shares ``[B, n, num_classes]``; ``ValueError`` for more levels."""
        if x.shape[1] > self.x.shape[1]:
            raise ValueError(f"{x.shape[1]} levels given to neighbours of {self.x.shape[1]}")
        queries, known = self.input(running_mean(x) if self.observed == "mean" else x), self.input(self.x)
        far, shares = x.new_zeros(()), []
        for n in range(x.shape[1]):
            at_n = torch.cdist(queries[:, n], known[:, n]).square()
            far = far + at_n if self.observed == "concat" else at_n
            nearest = self.y[far.topk(len(self.weights), largest=False).indices]
            votes = F.one_hot(nearest, self.num_classes) * self.weights[:, None]
            shares.append(votes.sum(1) / self.weights.sum())
        return {"logits": torch.stack(shares, dim=1).clamp(min=1e-6).log()}


def running_mean(x: Tensor) -> Tensor:
    """Mean of x_1 … x_n for every n, ``[B, N, d]``."""
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]

"""The networks of relation distillation: branches F, S and A, and what joins A and S. [reconstructed]"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.backbones.i3d import I3D, I3DTail
from kdcache.backbones.resnext3d import ResNeXt3D, ResNeXt3DTail
from kdcache.methods.contract import Outputs
from kdcache.methods.heads import LightHead

Net = I3DTail | I3D | ResNeXt3D | ResNeXt3DTail | LightHead


class Branch(nn.Module):
    """One of F, S and A: a light head, or a 3-D network or the rest of one, with the features that are compared.

    ``taps`` are layers whose maps it returns by name. The pooled features z are the mean over the positions of the last
    map (of the light head: weighted).
    """

    def __init__(self, net: Net, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.net, self.taps = net, tuple(taps)

    @property
    def width(self) -> int:
        """d, the length of z."""
        classifier = self.classifier
        return classifier.weight.shape[1]

    @property
    def classifier(self) -> nn.Linear | nn.Conv3d:
        """Its last layer."""
        if isinstance(self.net, LightHead):
            return self.net.classify
        found = self.net.get_submodule(self.net.classifier[0].rpartition(".")[0])
        assert isinstance(found, (nn.Linear, nn.Conv3d))
        return found

    def classify(self, outputs: Outputs) -> Tensor:
        """Logits ``[B, K]`` of what ``forward`` gave, whose gradient reaches the classifier alone."""
        if isinstance(self.net, LightHead):
            made: Tensor = self.net.classify(self.net.dropout(outputs["z"].detach()))
            return made
        *_, (_, logits) = self.net.endpoints(outputs["last"].detach(), after=self.net.order[-3])
        return logits.mean(2) if logits.ndim == 3 else logits

    def without_classifier(self) -> Iterator[nn.Parameter]:
        """Parameters on which z depends."""
        own = {id(p) for p in self.classifier.parameters()}
        yield from (p for p in self.parameters() if id(p) not in own)

    def forward(self, x: Tensor) -> Outputs:
        """Maps ``[B, C, t, h, w]``, or frames uint8 ``[B, T, S, S, C]`` → ``logits`` ``[B, K]``; ``z`` ``[B, d]``;
        ``last``, the map whose mean z is, and ``where`` ``[B, t, h, w]``, its positions' weights; the taps' maps."""
        if isinstance(self.net, LightHead):
            out = self.net(x)
            found = {"logits": out["logits"], "z": out["pooled"], "last": out["map"], "where": out["weights"]}
            return found | dict.fromkeys(self.taps, out["map"])
        if isinstance(self.net, (I3D, ResNeXt3D)):
            x = self.net.prepare(x)
        found = {}
        for name, output in self.net.endpoints(x):
            if output.ndim == 5:
                found["last"] = output
            if name in self.taps:
                found[name] = output
        last = found["last"]
        found["z"] = last.float().mean((2, 3, 4))
        found["where"] = last.new_full((len(last), *last.shape[2:]), 1 / last[0, 0].numel())
        found["logits"] = output.mean(2) if output.ndim == 3 else output  # I3D's are at each of several time steps
        return found


class Fusion(nn.Module):
    """Joins the pooled features a of A and m of S, each of ``width`` d, and classifies.

    - ``attention``: u = [a; m] → linear 2d → 2d/r → ReLU → linear → 2d, as [2, d] → softmax over the two streams: w_a
      and w_m; f = w_a ⊙ a + w_m ⊙ m;
    - ``gate``: u → linear → 2 → softmax: one weight for each stream;
    - ``se``: a sigmoid gate of u's bottleneck on u; ``concat``: u as it is;
    - ``sum``: a + m.

    f → dropout → linear classifier. The layers that give weights start at zero, so that both streams start alike.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        kind: Literal["attention", "gate", "se", "concat", "sum"] = "attention",
        ratio: int = 16,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.kind = kind
        joined = 2 * width
        self.weigh: nn.Module | None = None
        if kind in ("attention", "se"):
            last = nn.Linear(max(1, joined // ratio), joined)
            self.weigh = nn.Sequential(nn.Linear(joined, max(1, joined // ratio)), nn.ReLU(), last)
        elif kind == "gate":
            self.weigh = last = nn.Linear(joined, 2)
        if self.weigh is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(joined if kind in ("se", "concat") else width, num_classes)

    def weights(self, a: Tensor, m: Tensor) -> Tensor:
        """How much each channel of a and m counts, ``[B, 2, d]``."""
        u = torch.cat([a, m], 1)
        if self.weigh is None:
            return torch.ones_like(u).view(len(u), 2, -1)
        given: Tensor = self.weigh(u).view(len(u), 2, -1)
        return given.sigmoid() if self.kind == "se" else given.softmax(1).expand(-1, -1, a.shape[1])

    def forward(self, a: Tensor, m: Tensor) -> Outputs:
        """a and m ``[B, d]`` → ``logits`` ``[B, K]`` and ``weights`` ``[B, 2, d]``."""
        w = self.weights(a, m)
        weighted = w * torch.stack([a, m], 1)
        f = weighted.flatten(1) if self.kind in ("se", "concat") else weighted.sum(1)
        return {"logits": self.classify(self.dropout(f)), "weights": w}

    def evidence(self) -> tuple[Tensor, Tensor]:
        """The classifier's weights for a and for m, ``[K, d]`` each."""
        if self.kind in ("se", "concat"):
            a, m = self.classify.weight.chunk(2, 1)
            return a, m
        return self.classify.weight, self.classify.weight


class Fused(nn.Module):
    """A and S on RGB, joined."""

    def __init__(self, A: Branch, S: Branch, fusion: Fusion) -> None:
        super().__init__()
        self.A, self.S, self.fusion = A, S, fusion

    def forward(self, x: Tensor) -> Outputs:
        """What a branch takes → as ``Fusion``, with A's and S's ``last`` and ``where`` as ``A.last`` …"""
        A, S = self.A(x), self.S(x)
        under = {f"{name}.{key}": of[key] for name, of in (("A", A), ("S", S)) for key in ("last", "where")}
        return {**self.fusion(A["z"], S["z"]), **under}


class Average(nn.Module):
    """The mean of several branches' class probabilities, each on the input that it reads."""

    def __init__(self, branches: Mapping[str, Branch], reads: Mapping[str, str]) -> None:
        super().__init__()
        self.branches, self.reads = nn.ModuleDict(branches), dict(reads)

    def forward(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Inputs by name → ``logits`` ``[B, K]``, the logarithm of the mean."""
        logits = [net(inputs[self.reads[name]])["logits"].float() for name, net in self.branches.items()]
        each = torch.stack([F.log_softmax(of, -1) for of in logits])
        return {"logits": each.logsumexp(0) - math.log(len(each))}

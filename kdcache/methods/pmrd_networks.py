"""PMRD's branches together: multiplicative connections, two-branch heads, the hallucination branch with its α_t.

Source: Liu, Zhao, Xiao & Lam, "Progressive motion representation distillation with two-branch networks", Section II-A;
Feichtenhofer et al., "Spatiotemporal multiplier networks", CVPR 2017, for the connections.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kdcache.backbones.egornn import EgoRNN
from kdcache.backbones.resnet import Unit
from kdcache.methods.contract import Outputs

Start = Literal["images", "layer4"]
Signals = dict[str, Tensor]
"""Name of a residual unit (``layer2.1``) → s_l, the input ``[N, C, h, w]`` of that unit in the source branch."""


def recorded(signals: Signals, unit: int) -> Unit:
    """Runs residual blocks as they are, and keeps the input of the ``unit``-th of each layer."""

    def run(name: str, block: nn.Module, x: Tensor) -> Tensor:
        if name.endswith(f".{unit}"):
            signals[name] = x
        result: Tensor = block(x)
        return result

    return run


def multiplied(signals: Signals) -> Unit:
    """Runs residual blocks, those that a signal reaches as x_{l+1} = ReLU(x_l + F_l(x_l ⊙ s_l))."""

    def run(name: str, block: nn.Module, x: Tensor) -> Tensor:
        if name not in signals:
            result: Tensor = block(x)
            return result
        conv1, bn1, conv2, bn2 = (block.get_submodule(n) for n in ("conv1", "bn1", "conv2", "bn2"))
        down = block._modules.get("downsample")
        skip = x if down is None else down(x)
        residual: Tensor = bn2(conv2(torch.relu(bn1(conv1(x * signals[name])))))
        return torch.relu(skip + residual)

    return run


def embeddings(outputs: Outputs, embed: Literal["vector", "map"] = "vector") -> Tensor:
    """E_t, ``[B, T, 512]``: the average of the cell state c_t; ``map``: c_t itself, ``[B, T, 512·h·w]``."""
    cells = outputs["cells"]
    return cells.mean((3, 4)) if embed == "vector" else cells.flatten(2)


class TwoBranch(nn.Module):
    """The RGB branch, which receives, and a motion branch (optical flow or hallucination), which is the source.

    Outputs, by name: ``logits`` ``[B, C]`` of both, ``rgb`` and ``motion`` logits of each, ``attention`` of RGB.
    ``fusion="avg_logits"``: the mean of both; ``concat``: a classifier on both descriptors.
    """

    def __init__(self, rgb: EgoRNN, motion: EgoRNN, unit: int, fusion: Literal["avg_logits", "concat"]) -> None:
        super().__init__()
        self.rgb, self.motion, self.unit = rgb, motion, unit
        self.dropout = nn.Dropout(0.5)
        self.classify = nn.Linear(rgb.hidden + motion.hidden, rgb.num_classes) if fusion == "concat" else None

    def forward(self, x: Tensor, motion: Tensor, start: Start = "images") -> Outputs:
        """Inputs of both branches, ``[B, T, …]`` → named outputs."""
        signals: Signals = {}
        of_motion = self.motion(motion, start, recorded(signals, self.unit))
        of_rgb = self.rgb(x, start, multiplied(signals))
        scores = {"rgb": of_rgb["logits"], "motion": of_motion["logits"]}
        if self.classify is None:
            logits = (scores["rgb"] + scores["motion"]) / 2
        else:
            both = torch.cat([of_rgb["descriptor"], of_motion["descriptor"]], 1)
            logits = self.classify(self.dropout(both))
        return {"logits": logits, "attention": of_rgb["attention"], **scores}


class Hallucination(nn.Module):
    """The hallucination branch and what weighs its steps: α_t = σ(MLP(E_t^h)), one perceptron for all t (Section II-B).

    The perceptron is Linear(hidden, width), tanh, Linear(width, 1), hidden the ConvLSTM's 512. [reconstructed]

    ``flow``: the flow branch, where its signals are received at test time too.
    """

    def __init__(self, branch: EgoRNN, width: int, flow: EgoRNN | None = None) -> None:
        super().__init__()
        self.branch, self.flow = branch, flow
        self.attend = nn.Sequential(nn.Linear(branch.hidden, width), nn.Tanh(), nn.Linear(width, 1))

    def alpha(self, outputs: Outputs, norm: Literal["mean1", "none"]) -> Tensor:
        """α_t, ``[B, T]``: in (0, 1) as printed (``none``), or adding up to T (``mean1``), so that α → 0 is no way to a
        small loss [reconstructed]."""
        weights = torch.sigmoid(self.attend(embeddings(outputs)).float().squeeze(-1))
        if norm == "none":
            return weights
        return weights.shape[1] * weights / weights.sum(1, keepdim=True)

"""Ego-RNN: ResNet-34 maps, weighted by where the ImageNet classifier looks, through a ConvLSTM; alone and with flow.

Source: Sudhakaran & Lanz, "Attention is all we need: nailing down object-centric attention for egocentric activity
recognition", BMVC 2018, and its code (swathikirans/ego-rnn), whose published checkpoints load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from kdcache.backbones import egornn_layers as plan
from kdcache.backbones.base import Backbone, State
from kdcache.backbones.convlstm import ConvLSTM, fused
from kdcache.backbones.framewise import RESIDUAL_GAIN
from kdcache.backbones.resnet import ResNet34, Unit, cam_attention
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.errors import OptionError, WeightsError

IMAGENET_CLASSES = 1000
HIDDEN = 512  # channels of the ConvLSTM's state
DROPOUT, JOINT_DROPOUT = 0.7, 0.5  # before the classifiers [ego-rnn]


class EgoRNN(Backbone):
    """ResNet-34 → attention from the class activation map → ConvLSTM(512) → classifier of the last cell state.

    The ImageNet classifier ``resnet.fc`` stays: the map of its best-scoring class is the attention. Without
    ``attention`` the ConvLSTM reads F, as the row "ConvLSTM" of the imprint paper's Table 3.

    Outputs, by name: ``logits`` ``[B, num_classes]``, ``descriptor`` ``[B, 512]`` (average of c_T), ``attention``
    ``[B, T, h, w]`` (adds up to 1 over each frame), and for training ``maps`` F ``[B, T, 512, h, w]`` and ``cells`` c_t
    ``[B, T, 512, h, w]``.
    """

    classifier = ("classify.weight", "classify.bias")

    def __init__(
        self,
        num_classes: int = plan.CLASSES,
        spec: InputSpec | None = None,
        channels: int = 3,
        imagenet_classes: int = IMAGENET_CLASSES,
        dropout: float = DROPOUT,
        attention: bool = True,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        self.input = spec or InputSpec("rgb" if channels == 3 else "flow", frames=25, default_layer="descriptor")
        self.num_classes, self.attention = num_classes, attention
        self.resnet = ResNet34(imagenet_classes, channels)
        self.hidden = hidden
        self.lstm = ConvLSTM(512, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden, num_classes)

    def init_constant(self, name: str) -> float | None:
        """As its ResNet-34."""
        return RESIDUAL_GAIN if name.startswith("resnet.layer") and name.endswith("bn2.weight") else None

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer → its shape for one standard input."""
        spec = self.input
        return {n: plan.shape(n, spec.channels, spec.frames, spec.size, self.num_classes) for n in plan.ORDER}

    def resolve(self, layer: str) -> str:
        """``layer`` itself; ``OptionError`` for an unknown one."""
        return plan.resolve(layer)

    def prepare(self, x: Tensor) -> Tensor:
        """``uint8 [B, T, H, W, C]`` → normalised ``float32 [B, T, C, H, W]``."""
        return self.resnet.prepare(x)

    def forward(
        self, x: Tensor, start: Literal["images", "layer1", "layer4"] = "images", unit: Unit | None = None
    ) -> dict[str, Tensor]:
        """``float [B, T, C, H, W]``, or maps ``[B, T, 64 | 256, h, w]`` with ``start`` → named outputs; see the class.

        ``unit`` runs the residual blocks, see ``ResNet34.maps``.
        """
        if start == "images":
            self.resnet.check(x)
        folded = x.flatten(0, 1)
        maps, pre = self.resnet.maps(folded, start) if unit is None else self.resnet.maps(folded, start, unit)
        return self.encode(*(each.reshape(*x.shape[:2], *each.shape[1:]) for each in (maps, pre)))

    def encode(self, maps: Tensor, pre: Tensor) -> dict[str, Tensor]:
        """F and F~ ``[B, T, 512, h, w]`` → named outputs."""
        fc = self.resnet.get_submodule("fc")
        assert isinstance(fc, nn.Linear)
        attention = cam_attention(maps, fc.weight, fc(maps.mean((3, 4))))
        cells = self.lstm((pre * attention.unsqueeze(2) if self.attention else maps).contiguous())
        descriptor = cells[:, -1].mean((2, 3))
        logits = self.classify(self.dropout(descriptor))
        return {"logits": logits, "descriptor": descriptor, "attention": attention, "maps": maps, "cells": cells}

    def features(self, x: Tensor, layer: str) -> Tensor:
        """``attention`` ``[B, T, h, w]``, ``descriptor`` ``[B, 512]`` or ``logits`` for ``float [B, T, C, H, W]``."""
        return self.forward(x)[self.resolve(layer)]

    def truncate(self, layer: str) -> None:
        """Nothing is dropped: the attention is read where all but the last layers have been computed."""
        self.resolve(layer)

    def adapt(self, state: State) -> State:
        """A published state dict under the names here; any other as it is."""
        if "resNet.conv1.weight" not in state:
            return state
        state = _with_aliases(state, {"weight_softmax": "resNet.fc.weight", **_classifier("classifier.1", "fc")})
        names = {name: f"resnet.{name.removeprefix('resNet.')}" for name in state if name.startswith("resNet.")}
        found = _renamed(state, names)
        found |= {f"lstm.{name}": value for name, value in fused(state).items()}
        return found | _renamed(state, _classifier("fc", "classify"))


class EgoRNNJoint(Backbone):
    """Ego-RNN beside a plain ResNet-34 on a stack of flow, one classifier on both descriptors.

    Outputs, by name: those of ``EgoRNN`` but that ``logits`` are the joint classifier's, ``flow_logits``
    ``[B, num_classes]`` and ``flow_descriptor`` ``[B, 512]``.
    """

    classifier = (
        "flow.fc.weight", "flow.fc.bias", "rgb.classify.weight", "rgb.classify.bias",
        "classify.weight", "classify.bias",
    )  # fmt: skip

    def __init__(
        self,
        num_classes: int = plan.CLASSES,
        spec: InputSpec | None = None,
        imagenet_classes: int = IMAGENET_CLASSES,
        flow_channels: int = 10,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        self.input = spec or InputSpec("rgb+flow", frames=25, default_layer="logits", stack=flow_channels // 2)
        self.flow = ResNet34(num_classes, flow_channels)
        self.rgb = EgoRNN(num_classes, imagenet_classes=imagenet_classes, hidden=hidden)
        self.dropout = nn.Dropout(JOINT_DROPOUT)
        self.classify = nn.Linear(512 + hidden, num_classes)

    def init_constant(self, name: str) -> float | None:
        """As of its ResNet-34s."""
        residual = name.startswith(("flow.layer", "rgb.resnet.layer")) and name.endswith("bn2.weight")
        return RESIDUAL_GAIN if residual else None

    @property
    def layers(self) -> dict[str, Shape]:
        """What Ego-RNN has."""
        return self.rgb.layers

    def resolve(self, layer: str) -> str:
        """``layer`` itself; ``OptionError`` for an unknown one."""
        return plan.resolve(layer)

    def forward(self, x: Tensor, flow: Tensor) -> dict[str, Tensor]:
        """Frames ``float [B, T, 3, H, W]`` and a stack of flow ``[B, 10, H, W]`` → named outputs; see the class.

        Raises:
            OptionError: arrays of another shape, such as the two swapped.
        """
        if flow.ndim != 4 or flow.shape[1] != self.flow.channels or x.ndim != 5:
            raise OptionError(
                f"egornn-joint takes frames [B, T, 3, H, W] and a stack of flow [B, {self.flow.channels}, H, W]; got "
                f"{list(x.shape)} and {list(flow.shape)}."
            )
        of_flow, outputs = snippet(self.flow, flow), self.rgb(x)
        both = torch.cat([of_flow["descriptor"], outputs["descriptor"]], 1)
        named = {"flow_logits": of_flow["logits"], "flow_descriptor": of_flow["descriptor"]}
        return {**outputs, **named, "logits": self.classify(self.dropout(both))}

    def adapt(self, state: State) -> State:
        """A published state dict under the names here; any other as it is."""
        if "flowModel.conv1.weight" not in state:
            return state
        state = _with_aliases(state, _classifier("classifier.1", "fc2"))
        flow = {k.removeprefix("flowModel."): v for k, v in state.items() if k.startswith("flowModel.")}
        frame = {k.removeprefix("frameModel."): v for k, v in state.items() if k.startswith("frameModel.")}
        found = {f"flow.{name.replace('fc_action', 'fc')}": value for name, value in flow.items()}
        found |= {f"rgb.{name}": value for name, value in self.rgb.adapt(frame).items()}
        return found | _renamed(state, _classifier("fc2", "classify"))


def snippet(net: ResNet34, x: Tensor, dropout: float = 0.0) -> dict[str, Tensor]:
    """A plain ResNet-34 on images ``[N, C, H, W]``: ``logits`` ``[N, K]`` and ``descriptor`` ``[N, 512]``."""
    descriptor = net.maps(x)[0].mean((2, 3))
    kept = nn.functional.dropout(descriptor, dropout, net.training)
    return {"logits": net.get_submodule("fc")(kept), "descriptor": descriptor}


def make(spec: InputSpec, num_classes: int | None = None, joint: bool = False) -> EgoRNN | EgoRNNJoint:
    """The network that takes ``spec``, with the 61 classes of GTEA61 unless told otherwise."""
    return (EgoRNNJoint if joint else EgoRNN)(num_classes or plan.CLASSES, spec)


def _classifier(one: str, other: str) -> dict[str, str]:
    return {f"{one}.{part}": f"{other}.{part}" for part in ("weight", "bias")}


def _renamed(state: State, names: Mapping[str, str]) -> State:
    return {ours: state[theirs] for theirs, ours in names.items() if theirs in state}


def _with_aliases(state: State, aliases: Mapping[str, str]) -> State:
    """Ego-RNN's checkpoints hold some parameters under two names, of which one will do; ``WeightsError`` where they
    differ."""
    for alias, name in aliases.items():
        if alias in state and name in state and not torch.equal(state[alias], state[name]):
            raise WeightsError(
                f"{alias} and {name} of the checkpoint differ, but are one parameter in Ego-RNN: it was written by "
                "another program; leave the first out."
            )
    return {name: state[alias] for alias, name in aliases.items() if alias in state} | state

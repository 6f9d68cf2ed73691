"""ResNet-34 on frames or on stacks of flow, with the attention that Ego-RNN reads from its ImageNet classifier.

Sources: He et al., "Deep residual learning for image recognition", CVPR 2016 (torchvision's network and parameter
names); Sudhakaran & Lanz, "Attention is all we need: nailing down object-centric attention for egocentric activity
recognition", BMVC 2018, and its code (swathikirans/ego-rnn) for ``layer4-pre``, ``attended`` and the flow network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet34

from kdcache.backbones import resnet_layers as plan
from kdcache.backbones.base import State
from kdcache.backbones.framewise import Framewise, stem
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.errors import OptionError
from kdcache.numerics import no_autocast

Unit = Callable[[str, nn.Module, Tensor], Tensor]
"""Name of a residual block (``layer2.1``), the block and its input ``[N, C, h, w]`` → its output."""

FLOW_MEAN, FLOW_STD = 0.449, 0.226  # of 8-bit flow images: the means of ImageNet's three values [ego-rnn]


class LastBlock(nn.Module):
    """The last residual block, which gives two maps: F after batch norm and ReLU, and F~ before them.

    The ReLU is registered between ``conv2`` and ``bn2`` so that folding leaves those two apart: F~ needs ``conv2``
    as it was trained.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.relu, self.bn2 = (
            block.get_submodule(name) for name in ("conv1", "bn1", "conv2", "relu", "bn2")
        )

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """F~ = conv2 + x, and conv2 alone; each ``[N, 512, h, w]``."""
        out: Tensor = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return out + x, out

    def after(self, x: Tensor, out: Tensor) -> Tensor:
        """F = ReLU(bn2(conv2) + x) from the block's input and the second output of ``before``."""
        result: Tensor = self.relu(self.bn2(out) + x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 512, h, w]`` → F, as in torchvision's block."""
        return self.after(x, self.before(x)[1])


class ResNet34(Framewise):
    """ResNet-34 on each image of ``float [B, T, C, H, W]``; state dicts of torchvision's network load unchanged.

    3 channels are RGB; 6 or 10 are stacks of 3 or 5 flow fields as 8-bit images, x and y in turn (x0 y0 x1 y1 …).
    Flow networks take checkpoints of the RGB network too, see ``cross_modality``. ``prepare`` divides by 255 and
    takes off ImageNet's mean and deviation (flow: 0.449 and 0.226 throughout).

    Layers, for each image: ``layer1`` … ``layer4`` (F, after ReLU), ``layer4-pre`` (F~, before the last batch norm
    and ReLU), ``pool`` [512], ``logits``, and ``attended``: F~ weighted by ``cam_attention``, Ego-RNN's input to its
    ConvLSTM.
    """

    classifier = ("fc.weight", "fc.bias")
    order = plan.ORDER
    last_norm = "bn2"
    owners = {"layer2": "layer2", "layer3": "layer3", "layer4-pre": "layer4", "logits": "fc"}  # noqa: RUF012

    def __init__(self, num_classes: int = 1000, channels: int = 3, spec: InputSpec | None = None) -> None:
        super().__init__()
        if channels != 3 and (channels < 2 or channels % 2):
            raise OptionError(f"ResNet34 takes 3 channels (RGB) or an even number of flow channels; got {channels}.")
        net = resnet34(weights=None, num_classes=num_classes)
        if channels != 3:
            net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            self.mean, self.scale = (255 * FLOW_MEAN,) * channels, (1 / (255 * FLOW_STD),) * channels
        net.layer4[2] = LastBlock(net.layer4[2])
        for name, child in net.named_children():
            self.add_module(name, child)
        self.channels, self.num_classes = channels, num_classes
        self.input = spec or InputSpec("rgb" if channels == 3 else "flow", frames=20, default_layer="layer4")

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer → its shape for one standard input of 20 images at 224 pixels."""
        n, size = self.input.frames, self.input.size
        return {name: plan.shape(name, self.channels, n, size, self.num_classes) for name in self.order}

    def adapt(self, state: State) -> State:
        """RGB weights for a flow network: ``cross_modality``. All others are taken as they are."""
        kernel = state.get("conv1.weight")
        rgb = kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 3
        return cross_modality(state, self.channels) if rgb and self.channels != 3 else state

    def endpoints(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and output for images ``[N, C, H, W]`` in turn, computed only when asked for."""
        x = stem(self, images)
        for name in plan.STAGES[:3]:
            x = self.get_submodule(name)(x)
            yield name, x
        *blocks, last = self.get_submodule("layer4").children()
        for block in blocks:
            x = block(x)
        assert isinstance(last, LastBlock)
        pre, out = last.before(x)
        yield "layer4-pre", pre
        maps = last.after(x, out)
        yield "layer4", maps
        pooled = maps.mean((2, 3))
        yield "pool", pooled
        fc = self.get_submodule("fc")
        assert isinstance(fc, nn.Linear)
        scores = fc(pooled)
        yield "logits", scores
        yield "attended", pre * cam_attention(maps, fc.weight, scores).unsqueeze(1)

    def maps(
        self,
        x: Tensor,
        start: Literal["images", "layer1", "layer4"] = "images",
        unit: Unit = lambda name, block, x: block(x),
    ) -> tuple[Tensor, Tensor]:
        """F and F~ of layer 4, ``[N, 512, h, w]`` each, from some depth on, with residual blocks run by the caller.

        Args:
            x: images ``[N, C, H, W]``, or what enters ``layer1`` or ``layer4``.
            start: what ``x`` is.
            unit: runs each block but the last, which gives F and F~.
        """
        if start == "images":
            x = stem(self, x)
        for stage in plan.STAGES[plan.STAGES.index("layer1" if start == "images" else start) :]:
            for name, block in self.get_submodule(stage).named_children():
                if isinstance(block, LastBlock):
                    pre, out = block.before(x)
                    return block.after(x, out), pre
                x = unit(f"{stage}.{name}", block, x)
        raise AssertionError("layer4 ends in a LastBlock")


def cam_attention(maps: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    """Where the classifier looks: softmax over the cells of the class activation map of the best-scoring class.

    With k* the class of the largest score, a = softmax(w_k*ᵀ F) over the h × w cells; no temperature, no bias. The
    choice of k* has no gradient; ``maps`` and ``weight`` do. [ego-rnn]

    Args:
        maps: F, float [..., C, h, w].
        weight: of the classifier, float [K, C].
        scores: float [..., K].

    Returns:
        float [..., h, w], in the dtype of ``maps``, adding up to 1.
    """
    chosen = weight[scores.argmax(-1)]
    with no_autocast(maps):
        energy = torch.einsum("...c,...chw->...hw", chosen.float(), maps.float())
    return energy.flatten(-2).softmax(-1).reshape(energy.shape).to(maps.dtype)


def cross_modality(state: Mapping[str, Tensor], channels: int) -> State:
    """A state dict for ``channels`` input channels: conv1's kernels averaged over theirs and repeated, not rescaled.

    Turns ImageNet's RGB weights into a flow network's start [Wang et al., "Temporal segment networks", ECCV 2016;
    ego-rnn; PMRD step 1], and 6-channel flow weights into a 3-channel network's (PMRD's hallucination branch)
    [reconstructed].
    """
    kernel = state["conv1.weight"]
    repeated = kernel.mean(1, keepdim=True).repeat(1, channels, *(1,) * (kernel.ndim - 2))
    return {**state, "conv1.weight": repeated}


def make(spec: InputSpec, num_classes: int | None = None) -> ResNet34:
    """The ResNet-34 that takes ``spec``, with ImageNet's 1000 classes unless told otherwise."""
    return ResNet34(num_classes or 1000, spec.channels, spec)

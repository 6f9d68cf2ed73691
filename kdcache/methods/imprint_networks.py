"""The networks of motion imprinting: motion segmentation beside the action recognition block, and the feedback branch.

Source: Papicchio, Poeta & Pes, "Imprinting the Motion", §3, and its authors' code for what the paper leaves out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.backbones.egornn import EgoRNN
from kdcache.methods.contract import Outputs

CHANNELS = 100  # of the Conv100 block
MAPS = {"conv1": 64, "layer3": 256}
"""Where β and γ modulate, and how many channels there are."""


class MotionSegmentation(nn.Module):
    """The MS head on F, frame by frame: ReLU → Conv100 (1 × 1) → flatten → fully connected layer.

    ``two``: the layer has 2 s² outputs, still and moving for each of the s × s cells (the authors' code); else s² (the
    paper, and regression). Weights start Xavier-normal, biases at 0.
    """

    def __init__(self, cells: int, two: bool = True) -> None:
        super().__init__()
        self.cells, self.two = cells, two
        self.conv100 = nn.Conv2d(512, CHANNELS, 1)
        self.fc = nn.Linear(CHANNELS * cells**2, (1 + two) * cells**2)
        for layer in (self.conv100, self.fc):
            nn.init.xavier_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def features(self, maps: Tensor) -> Tensor:
        """F ``[N, 512, s, s]`` → U, the output of Conv100 ``[N, 100, s, s]``."""
        features: Tensor = self.conv100(F.relu(maps))
        return features

    def forward(self, maps: Tensor) -> Tensor:
        """F ``[B, T, 512, s, s]`` → ``[B, T, 2, s, s]`` with ``two``, else ``[B, T, s, s]``."""
        flat = self.fc(self.features(maps.flatten(0, 1)).flatten(1))
        each = (2, self.cells, self.cells) if self.two else (self.cells, self.cells)
        return flat.reshape(*maps.shape[:2], *each)  # type: ignore[no-any-return]


class Feedback(nn.Module):
    """The feedback branch: U_{t-1}, up-sampled → β_t and γ_t, each by Conv1 × 1, ReLU, Conv1 × 1 with own weights.

    U is up-sampled bilinearly to the map that is modulated: the paper's 64 × 64 is not the size of conv1's output, and
    its authors' up-sampler is not published [reconstructed]. ``identity``: β starts as 1 and γ as 0, for with PyTorch's
    initialisation β would start near 0 and erase conv1 [reconstructed].
    """

    def __init__(self, channels: int, identity: bool = True) -> None:
        super().__init__()

        def factor() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(CHANNELS, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

        self.beta, self.gamma = factor(), factor()
        if identity:
            for name, bias in (("beta.2", 1.0), ("gamma.2", 0.0)):
                nn.init.zeros_(self.get_parameter(f"{name}.weight"))
                nn.init.constant_(self.get_parameter(f"{name}.bias"), bias)

    def forward(self, U: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """U ``[N, 100, s, s]`` → β and γ, ``[N, channels, *size]``."""
        large = F.interpolate(U, size, mode="bilinear", align_corners=False)
        return self.beta(large), self.gamma(large)


def theta(features: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """θ(F^rgb) = β ⊙ F^rgb + γ, equation (1)."""
    return beta * features + gamma


class Imprint(nn.Module):
    """The action recognition block, with the MS head and the feedback branch where they are.

    Attributes:
        action: ResNet-34, spatial attention, ConvLSTM and classifier.
        ms: the MS head.
        feedback: the feedback branch, which needs the MS head.
        at: where it modulates: after ``conv1``, or after ``layer3``, on cached maps.
    """

    def __init__(
        self,
        action: EgoRNN,
        ms: MotionSegmentation | None = None,
        feedback: Feedback | None = None,
        at: Literal["conv1", "layer3"] = "conv1",
    ) -> None:
        super().__init__()
        self.action, self.ms, self.feedback, self.at = action, ms, feedback, at

    def forward(self, x: Tensor) -> Outputs:
        """Frames uint8 ``[B, T, S, S, 3]``, or layer-3 maps ``[B, T, 256, h, w]`` → outputs of ``EgoRNN``."""
        if self.feedback is None:
            return self.action(*((self._prepared(x),) if x.dtype == torch.uint8 else (x, "layer4")))  # type: ignore[no-any-return]
        early = self.early(x)
        maps: list[Tensor] = []
        pre: list[Tensor] = []
        for t in range(early.shape[1]):
            features = early[:, t]
            if t > 0:  # β_1 = 1 and γ_1 = 0
                features = theta(features, *self.factors(maps[-1], features))
            for found, each in zip((maps, pre), self._onwards(features), strict=True):
                found.append(each)
        return self.action.encode(torch.stack(maps, 1), torch.stack(pre, 1))

    def early(self, x: Tensor) -> Tensor:
        """What is modulated, of all frames ``[B, T, C, h, w]``: conv1's output of frames, or layer-3 maps as they
        are."""
        if self.at == "layer3":
            return x
        made: Tensor = self.action.resnet.get_submodule("conv1")(self._prepared(x).flatten(0, 1))
        return made.reshape(*x.shape[:2], *made.shape[1:])

    def factors(self, maps: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """β_t and γ_t for ``features`` ``[N, C, h, w]`` from F of the frame before, ``[N, 512, s, s]``.

        No gradient flows into the frame before. [authors' code]"""
        assert self.ms is not None
        assert self.feedback is not None
        factors: tuple[Tensor, Tensor] = self.feedback(self.ms.features(maps).detach(), features.shape[-2:])
        return factors

    def _onwards(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """F and F~ of one frame of each clip from what has been modulated."""
        net = self.action.resnet
        if self.at == "layer3":
            return net.maps(features, "layer4")
        for name in ("bn1", "relu", "maxpool"):
            features = net.get_submodule(name)(features)
        return net.maps(features, "layer1")

    def _prepared(self, x: Tensor) -> Tensor:
        return self.action.prepare(x)


def motion_share(maps: Tensor, cells: int) -> Tensor:
    """How much of each cell moves: motion maps uint8 ``[B, T, S, S]`` (0 or 255) → float32 ``[B, T, cells, cells]`` in
    [0, 1].

    Resized as Pillow's ``BILINEAR`` does: antialiased, along the rows and then along the columns, with the 8-bit values
    rounded after each. [authors' code]"""
    S = maps.shape[-1]
    share = maps.float()
    for size in ((S, cells), (cells, cells)):
        share = F.interpolate(share, size, mode="bilinear", align_corners=False, antialias=True)
        share = (share + 0.5).floor().clamp(0, 255)
    return share / 255

"""VA-CNN: a small network finds the view from which to look at a skeleton image, a ResNet-50 classifies what it sees.

Source: Zhang et al., "View adaptive neural networks for high performance skeleton-based human action recognition",
TPAMI 2019, section 4, and its code (microsoft/View-Adaptive-…, ``transform_cnn.py``), whose numbers are kept, the
batch norms' momentum of 0.99 (hardly any running average) among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from kdcache.backbones import vacnn_layers as plan
from kdcache.backbones.framewise import Framewise, constant, trunk
from kdcache.backbones.metadata import FitMetadata
from kdcache.backbones.resnet_layers import STAGES
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.errors import OptionError, WeightsError
from kdcache.numerics import no_autocast
from kdcache.skeletons.image import NTU_LIMITS
from kdcache.skeletons.rotation import rotation

OFFSET = 110.0  # taken off every channel of a skeleton image


class VACNN(Framewise):
    """VA-CNN on skeleton images ``float [B, N, 3, 224, 224]``, one for each of N levels.

    ``prepare`` takes what ``skeleton_image`` gives, ``[B, N, 224, 224, 3]``, uint8 or float32, and takes 110 off.
    State dicts of the published network load unchanged. No weights are published: fit them.

    Layers, for each image: ``params`` [6] (three angles, three shifts), ``image`` [3, 224, 224] (seen from there),
    ``layer1`` … ``layer4``, ``pool`` [2048], ``logits``.

    ``limits`` are the c_min and c_max that scaled the images. Weights that ``kdcache fit`` wrote bring their own; set
    them where other weights are not for NTU's: they are no parameter of the network and in no published checkpoint.
    """

    classifier = ("classifier.fc.weight", "classifier.fc.bias")
    order = plan.ORDER
    mean = (OFFSET,) * 3
    scale = (1.0,) * 3
    owners = {  # noqa: RUF012
        **{name: f"classifier.{name}" for name in STAGES},
        "logits": "classifier.fc",
    }

    side: int = plan.SIDE
    """Of the images that the network sees, in pixels."""
    shape: ClassVar[Callable[..., Shape]] = staticmethod(plan.shape)
    """Of a layer."""
    view_channels: int = 128
    """Of the network that chooses the view."""
    resnet_name: str = "ResNet-50"
    make_resnet: ClassVar[Callable[..., nn.Module]] = staticmethod(resnet50)
    norm_momentum: float = 0.99
    """Of the view network's batch norms."""

    def __init__(self, num_classes: int = 60, limits: tuple[float, float] = NTU_LIMITS) -> None:
        super().__init__()
        width = self.view_channels
        self.conv1 = nn.Conv2d(3, width, 5, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3, momentum=self.norm_momentum)
        self.conv2 = nn.Conv2d(width, width, 5, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-3, momentum=self.norm_momentum)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(7)
        cells = ((((self.side - 3) // 2) - 3) // 2 // 7) ** 2
        self.fc = nn.Linear(width * cells, 6)
        # The published name of the ResNet is also the name of the tuple above, so it is reached through _modules.
        self._modules["classifier"] = self.make_resnet(weights=None, num_classes=num_classes)
        self.limits, self.num_classes = limits, num_classes
        self.input = InputSpec("skeleton", frames=10, size=plan.SIDE, resize=plan.SIDE)

    def init_constant(self, name: str) -> float | None:
        """The identity view, as in training's start; else as in any ResNet."""
        return 0.0 if name in ("fc.weight", "fc.bias") else super().init_constant(name)

    def load_metadata(self, metadata: FitMetadata) -> None:
        """Set the limits of the skeletons that the network was fitted on."""
        if metadata.limits is not None:
            self.limits = metadata.limits

    @property
    def resnet(self) -> nn.Module:
        """The classifier, a ResNet."""
        net = self._modules["classifier"]
        assert net is not None
        return net

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer → its shape for one clip of 10 levels."""
        return {name: self.shape(name, 3, self.input.frames, plan.SIDE, self.num_classes) for name in self.order}

    def check(self, x: Tensor) -> None:
        """``OptionError`` for a batch that is not ``float [B, N, 3, 224, 224]``."""
        super().check(x)
        if x.shape[3:] != (self.side, self.side):
            raise OptionError(
                f"{type(self).__name__} takes images of {self.side} × {self.side} pixels; got {list(x.shape[3:])}."
            )

    def prepare(self, x: Tensor) -> Tensor:
        """Skeleton images ``uint8`` or ``float32 [B, N, 224, 224, 3]`` → ``float32 [B, N, 3, 224, 224]``, less 110."""
        if x.dtype == torch.float32 and x.ndim == 5 and x.shape[-1] == 3:
            return (x - OFFSET).permute(0, 1, 4, 2, 3)
        return super().prepare(x)

    def view_params(self, images: Tensor) -> Tensor:
        """Three angles and three shifts, ``[N, 6]``, for images ``[N, 3, side, side]``."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        params: Tensor = self.fc(self.pool(x).flatten(1))
        return params

    def endpoints(self, images: Tensor, limits: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and output for images ``[N, 3, side, side]`` in turn, computed only when asked for.

        ``limits``: float [N, 2], c_min and c_max of each image, in place of the network's.
        """
        params = self.view_params(images)
        yield "params", params
        if limits is None:
            limits = constant(tuple(self.limits), images.device).unsqueeze(0)
        image = seen_from(images, params, limits)
        yield "image", image
        pooled = image
        for name, pooled in trunk(self.resnet, image):
            yield name, pooled
        scores: Tensor = self.resnet.get_submodule("fc")(pooled)
        yield "logits", scores


def seen_from(images: Tensor, params: Tensor, limits: Tensor) -> Tensor:
    """Skeleton images after turning and moving the skeletons behind them: equation (12) on pixels.

    v' = R v + 255 (R (c_min + d) − c_min) / (c_max − c_min) for each pixel's (x, y, z). The 110 that were taken off
    before are not put back for the rotation [code].

    Args:
        images: float [N, 3, H, W].
        params: float [N, 6], angles and shift d.
        limits: float [N or 1, 2], c_min and c_max.

    Returns:
        Same shape and dtype as ``images``; computed in float32.
    """
    with no_autocast(images):  # it would round angles and pixels
        params, limits = params.float(), limits.float()
        turn = rotation(params[:, :3])
        low, span = limits[:, :1], limits[:, 1:] - limits[:, :1]
        moved = (turn @ (low + params[:, 3:]).unsqueeze(-1)).squeeze(-1)
        shift = 255 * (moved - low) / span
        turned = torch.einsum("nij,njhw->nihw", turn, images.float()) + shift[:, :, None, None]
    return turned.to(images.dtype)


@torch.no_grad()
def start(net: VACNN, seed: int = 0, imagenet: Mapping[str, Tensor] | None = None) -> VACNN:
    """Set a network to the published start of training, in place: identity view, ImageNet's ResNet.

    The view network's convolutions are Xavier-uniform and its last layer zero, so that every skeleton is first seen
    as it is; the class scores' layer keeps its random values.

    Args:
        net: as ``build("vacnn", weights="random:SEED", num_classes=…)`` gives it.
        seed: of the convolutions.
        imagenet: state dict of torchvision's ``resnet50`` (of the small network's, ``resnet18``); without it the
            ResNet stays random.

    Raises:
        WeightsError: ``imagenet`` is not of the network's ResNet.
    """
    generator = torch.Generator().manual_seed(seed)
    for conv in (net.conv1, net.conv2):
        nn.init.xavier_uniform_(conv.weight, generator=generator)
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    if imagenet is not None:
        layers = {name: value for name, value in imagenet.items() if not name.startswith("fc.")}
        try:
            found = net.resnet.load_state_dict(layers, strict=False)
        except RuntimeError as error:
            raise WeightsError(
                f"These are not a {net.resnet_name}'s weights: {str(error).splitlines()[-1].strip()}."
            ) from error
        missing = [name for name in found.missing_keys if not name.startswith("fc.") and "num_batches" not in name]
        if missing or found.unexpected_keys:
            raise WeightsError(
                f"These are not a {net.resnet_name}'s weights: {len(missing)} parameters are missing and "
                f"{len(found.unexpected_keys)} are unknown ({(missing + found.unexpected_keys)[0]})."
            )
    return net


def make(spec: InputSpec, num_classes: int | None = None) -> VACNN:
    """The published network for NTU RGB+D's 60 classes unless told otherwise."""
    return VACNN(num_classes or 60)

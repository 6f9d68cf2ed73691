"""A small VA-CNN, for fits of a few hundred clips on a CPU. [reconstructed: the paper has none]

The idea is the paper's: a small network chooses the view from which a skeleton image is seen, a ResNet classifies what
it sees. Smaller are the images (averaged down from 224 to 96 pixels), the view network (32 channels in place of 128)
and the classifier (ResNet-18 in place of ResNet-50).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchvision.models import resnet18

from kdcache.backbones import vacnn_small_layers as plan
from kdcache.backbones.spec import InputSpec
from kdcache.backbones.vacnn import VACNN


class SmallVACNN(VACNN):
    """VA-CNN on skeleton images that ``prepare`` averages down to ``float [B, N, 3, 96, 96]``.

    It takes the images of ``VACNN``, ``[B, N, 224, 224, 3]``. Layers, for each: ``params`` [6], ``image`` [3, 96, 96],
    ``layer1`` … ``layer4``, ``pool`` [512], ``logits``.
    """

    side = plan.SIDE
    shape = staticmethod(plan.shape)
    view_channels = 32
    norm_momentum = 0.1  # PyTorch's: with 0.99 test images are normalised by the last batch of a short fit
    resnet_name = "ResNet-18"
    make_resnet = staticmethod(resnet18)
    last_norm = "bn2"

    def init_constant(self, name: str) -> float | None:
        """As in VA-CNN; the view network's ``bn2`` ends no residual branch."""
        return None if name == "bn2.weight" else super().init_constant(name)

    def prepare(self, x: Tensor) -> Tensor:
        """Skeleton images ``uint8`` or ``float32 [B, N, 224, 224, 3]`` → ``float32 [B, N, 3, 96, 96]``, less 110."""
        images = super().prepare(x)
        small = F.interpolate(images.flatten(0, 1), size=(self.side, self.side), mode="area")
        return small.reshape(*images.shape[:3], self.side, self.side)


def make(spec: InputSpec, num_classes: int | None = None) -> SmallVACNN:
    """The network for NTU RGB+D's 60 classes unless told otherwise."""
    return SmallVACNN(num_classes or 60)

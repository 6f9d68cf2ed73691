"""Backbones as fast pure functions: cut at a layer, batch norm folded, layout and precision chosen by measurement.

On the CPU, convolutions and pools run several times faster channels-last, and clips are run one at a time: their maps
stay in cache, memory does not grow with the batch, and a clip's features do not depend on its neighbours, to the bit.
``benchmarks/i3d.py`` holds the figures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdcache.backbones.base import Backbone
from kdcache.backbones.compiled import compiled, refuse_on_cpu
from kdcache.backbones.i3d import SameConv3d
from kdcache.errors import OptionError
from kdcache.numerics import deterministic_cudnn, full_precision
from kdcache.replay import Graphs, ReplayedNetwork, cuda_graphs
from kdcache.runtime import onednn_available, resolve_device, resolve_precision, torch_dtype


class FrozenLayers:
    """A backbone up to some of its layers: ``uint8 [B, T, H, W, C]`` → each one's ``float32 [B, …]`` on the device.

    The network given is not touched. Weights and activations are in the precision asked for, sums in float32 (on the
    CPU by oneDNN, on CUDA by cuDNN with deterministic algorithms), without TF32 whatever the process has switched on.
    Relative error of bf16 at I3D's ``mixed4a``, in norm: 5e-3. On the CPU the result for a clip is the same bits in any
    batch, and beside any other layers; on CUDA it may differ in the last digits of the precision. There the second
    batch of a shape is captured as a CUDA graph, which is replayed for later ones; with ``compile``, the network is
    compiled before, see ``kdcache.backbones.compiled``.

    Raises:
        OptionError: unknown layer or precision, a precision that this CPU does not compute, layers that no single pass
            gives (``Backbone.deepest``), or ``compile`` on a CPU, where oneDNN's own convolutions are what is fast.
        DeviceError: a device that is not there.
    """

    def __init__(
        self,
        net: Backbone,
        layers: Sequence[str],
        precision: str = "fp32",
        device: str = "cpu",
        compile: bool = False,
    ) -> None:
        self.layers = [net.resolve(layer) for layer in layers]
        deepest = net.deepest(self.layers)
        if deepest is None:
            raise OptionError(f"No single pass gives {' and '.join(layers)}: freeze each by itself.")
        self.device = resolve_device(device)
        if compile:
            refuse_on_cpu(self.device.type)
        self._compile = compile
        self.dtype = torch_dtype(resolve_precision(precision, self.device))
        self._net = copy.deepcopy(net).eval().requires_grad_(False)
        self._net.truncate(deepest)
        if net.folds:
            fold_batch_norm(self._net)
        if self.device.type == "cpu" and onednn_available():
            _use_onednn(self._net)
        self._net.to(self.device, self.dtype)
        _channels_last(self._net)
        self._graphs = Graphs(cuda_graphs(self.device), type(net).__name__)
        self._on_gpu: dict[tuple[str, ...], ReplayedNetwork] = {}

    @torch.inference_mode()
    def at(self, layers: Sequence[str], clips: Tensor) -> list[Tensor]:
        """Features of a batch at some of the layers; nothing beyond the last of them is computed.

        Raises:
            OptionError: a batch of another dtype, shape or modality than the network's.
        """
        wanted = tuple(self._net.resolve(layer) for layer in layers)
        with full_precision():
            if self.device.type == "cpu":
                found = [self._features(wanted, clip) for clip in torch.split(clips, 1)]
                return [torch.cat(of_layer) for of_layer in zip(*found, strict=True)]
            if wanted not in self._on_gpu:
                self._on_gpu[wanted] = ReplayedNetwork(self._compute(wanted), self._graphs)
            with deterministic_cudnn(), torch.cuda.device(self.device):
                return self._on_gpu[wanted](clips.to(self.device, non_blocking=True))

    def _compute(self, layers: tuple[str, ...]) -> Callable[[Tensor], list[Tensor]]:
        compute = partial(self._features, layers)
        return compiled(compute, type(self._net).__name__) if self._compile else compute

    def _features(self, layers: Sequence[str], clips: Tensor) -> list[Tensor]:
        found = self._net.several(self._net.prepare(clips).to(self.dtype), layers)
        return [output.float().contiguous() for output in found]


class Frozen(FrozenLayers):
    """The same up to one layer: ``uint8 [B, T, H, W, C]`` → ``float32 [B, …]``."""

    def __init__(self, net: Backbone, layer: str, precision: str = "fp32", device: str = "cpu") -> None:
        super().__init__(net, [layer], precision, device)
        (self.layer,) = self.layers

    def __call__(self, clips: Tensor) -> Tensor:
        """Features of a batch of clips; ``OptionError`` for another dtype, shape or modality than the network's."""
        return self.at(self.layers, clips)[0]


def fold_batch_norm(net: nn.Module) -> None:
    """Fold, in place, each batch norm into the convolution registered right before it in the same module.

    That order is the order of computation where ``Backbone.folds``. The network must be in evaluation mode.
    """
    for parent in net.modules():
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)


def _use_onednn(net: nn.Module) -> None:
    # For a single small clip torch picks its slow native convolution, which also undoes the channels-last layout.
    for module in net.modules():
        if isinstance(module, SameConv3d):
            module.engine = _onednn


def _channels_last(net: nn.Module) -> None:
    for parameter in net.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

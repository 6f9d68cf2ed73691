"""Networks from elsewhere as backbones: what is stated of one, and the module that makes it one of ours.

A library or a user states what cannot be known from a module: the order of axes that it takes, sizes, normalisation,
and the axes of its layers. Layers are its modules by their dotted names (``blocks.10``); ``output``, what the network
itself returns; and ``pool``, the mean of one layer over positions (and time, unless it sees images one by one).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcache.backbones.base import Backbone, State
from kdcache.backbones.framewise import normalised
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.backbones.tap import OUTPUT, Tapped, first_tensor, tap
from kdcache.errors import OptionError, unknown

Takes = Literal["CTHW", "TCHW", "CHW"]
POOL, LOGITS = "pool", "logits"
PRETRAINED, BUILT, RANDOM = "pretrained", "built", "random"
HEAD = ("head.weight", "head.bias")
"""The classifier that ``kdcache fit`` puts on the pooled features; its scores are the layer ``logits``."""

_LETTERS = set("TCHWPD")
_CHANNELS = "CD"  # the axis that pooling keeps


@dataclass(frozen=True, kw_only=True, eq=False)
class External:
    """A network from elsewhere, and all that is stated of it."""

    name: str
    """As recipes have it."""
    library: str
    version: str
    takes: Takes
    """Order of the axes of one input; ``CHW``: images, frame by frame."""
    input: InputSpec
    """Modality, frames of a segment, side of the crop, short side before cropping."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of each channel, for values from 0 to 1: the network sees (x / 255 − mean) / std."""
    make: Callable[[str], nn.Module]
    """The module by where its weights come from: ``pretrained``, ``built`` or ``random``."""
    axes: Callable[[str, int], str | None]
    """Layer and its number of axes for one input (or image, without that of frames) → axes; None: not known."""
    pooled: str = OUTPUT
    """The layer that ``pool`` averages."""
    origin: str = PRETRAINED
    """Where weights come from when none are named."""
    configuration: str = ""
    """Digest of what else decides how the network computes, where its name and its library's version do not."""
    ignored: tuple[str, ...] = ()
    """Beginnings of names in checkpoints for which the module has no place: classifiers that are left out."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the forward."""
    on_meta: bool = True
    """Whether it can be made without memory, on the meta device, to learn shapes."""

    @property
    def images(self) -> bool:
        """Whether frames are seen one by one."""
        return self.takes == "CHW"

    def to_recipe(self) -> dict[str, Any]:
        """What determines the features beside layer and weights."""
        shown = {"takes": self.takes, "mean": list(self.mean), "std": list(self.std), **dict(self.arguments)}
        recipe = {"library": self.library, "version": self.version, "input": shown, "pooled": self.pooled}
        return {**recipe, "configuration": self.configuration} if self.configuration else recipe


class ExternalBackbone(Backbone):
    """A module from elsewhere with the interface of ours; with ``num_classes`` also a classifier on ``pool``."""

    classifier = HEAD
    folds = False

    def __init__(self, external: External, net: nn.Module, num_classes: int | None = None) -> None:
        super().__init__()
        self.external, self.input, self.net = external, external.input, net
        self.unloaded: tuple[str, ...] = ()
        self._names = frozenset(name for name, _ in net.named_modules())
        if num_classes is not None:
            self.head = nn.Linear(layer_shape(external, POOL)[-1], num_classes)

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer that can be cached → its shape for one standard input."""
        return {name: layer_shape(self.external, name) for name in layer_names(self.external)}

    def resolve(self, layer: str) -> str:
        """``layer`` itself; ``OptionError`` for an unknown one."""
        if isinstance(self.net, Tapped):
            return layer
        if layer not in (POOL, OUTPUT) and layer not in self._names and not self._is_head(layer):
            raise unknown("layer", layer, layer_names(self.external))
        return layer

    def features(self, x: Tensor, layer: str) -> Tensor:
        """Output of ``layer`` for what ``prepare`` gives, ``[B, …]``, of images ``[B, T, …]``."""
        pooled = self.resolve(layer) == POOL or self._is_head(layer)
        module = self.external.pooled if pooled else layer
        shown = x.flatten(0, 1) if self.external.images else x
        if isinstance(self.net, Tapped):
            out: Tensor = self.net(shown)
        else:
            out = tap(self.net, module, shown, self.external.arguments)
        if pooled:
            out = _averaged(out, pooled_axes(self.external, out.ndim - 1))
        if self._is_head(layer):
            out = self.head(out)
        return out.reshape(len(x), -1, *out.shape[1:]) if self.external.images else out

    def prepare(self, x: Tensor) -> Tensor:
        """``uint8 [B, T, H, W, C]`` → normalised ``float32``, ``[B, C, T, H, W]`` or ``[B, T, C, H, W]``."""
        channels = self.input.channels
        if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != channels:
            raise OptionError(
                f"{self.external.name} takes {self.input.modality} as uint8 [B, T, H, W, {channels}]; got {x.dtype} "
                f"{list(x.shape)}: check the modality and the order of dimensions."
            )
        mean, scale = [255 * m for m in self.external.mean], [1 / (255 * s) for s in self.external.std]
        values = normalised(x, mean, scale)
        return values.permute(0, 4, 1, 2, 3) if self.external.takes == "CTHW" else values.permute(0, 1, 4, 2, 3)

    def truncate(self, layer: str) -> None:
        """Drop, in place, what ``layer`` does not need, as far as the network can be traced."""
        pooled = self.resolve(layer) == POOL or self._is_head(layer)
        module = self.external.pooled if pooled else layer
        missing = [name for name in self.unloaded if not _before(self.external, module, name.rpartition(".")[0])]
        if missing:
            raise OptionError(f"{layer} needs {missing[0]}, which the checkpoint does not hold: choose another layer.")
        self.net = Tapped(self.net, module, self.external.arguments)

    def _is_head(self, layer: str) -> bool:
        """Whether a layer is the scores of the classifier that ``kdcache fit`` trained."""
        return layer == LOGITS and LOGITS not in self._names and "head" in self._modules

    def adapt(self, state: State) -> State:
        """A library's checkpoint under our names."""
        return {f"net.{name}": value for name, value in state.items() if not name.startswith(self.external.ignored)}


def layer_shape(
    external: External, layer: str, frames: int | None = None, size: int | None = None, classes: int | None = None
) -> Shape:
    """Shape of a layer for one segment of ``frames`` × ``size`` × ``size``, of images with T in front.

    ``logits`` is of fitted weights alone: the scores of their ``classes``.

    Raises:
        OptionError: no such layer, one that cannot be cached, or an input that the network does not take.
    """
    frames, size = frames or external.input.frames, size or external.input.size
    if layer == LOGITS and LOGITS not in _modules(external):
        if classes is None:
            raise OptionError(
                f"{external.name}/{LOGITS} are the scores of the classifier that `kdcache fit` puts on {POOL}: give "
                f"the weights of a fit, or take another layer of {', '.join(layer_names(external)[-3:])} …"
            )
        return (*layer_shape(external, POOL, frames, size)[:-1], classes)
    found, failure = _probed(external, 1 if external.images else frames, size)
    module = external.pooled if layer == POOL else layer
    if module not in found and failure and module in (OUTPUT, *_modules(external)):
        raise OptionError(
            f"{external.name} does not take {frames} frames of {size} × {size} as far as {layer} ({failure}): its own "
            f"are {external.input.frames} of {external.input.size}."
        )
    if module not in found:
        raise unknown("layer", layer, layer_names(external))
    shape = found[module]
    if isinstance(shape, str):
        raise OptionError(f"{external.name}: layer {layer!r} {shape}; choose another.")
    if layer == POOL:
        axes = pooled_axes(external, len(shape))
        shape = tuple(n for letter, n in zip(axes, shape, strict=True) if letter in _CHANNELS)
    return (frames, *shape) if external.images else shape


def layer_axes(
    external: External, layer: str, stated: str | None = None, frames: int | None = None, size: int | None = None
) -> str:
    """Axes of a layer, in the order of ``layer_shape``: as ``stated`` by the user, or as is known of the network.

    Raises:
        OptionError: they are not known and not stated, or do not fit the layer.
    """
    own = layer == LOGITS and LOGITS not in _modules(external)
    shape = layer_shape(external, layer, frames, size, classes=1)
    if layer == POOL or own:
        if stated is not None:
            raise OptionError(f"axes={stated}: those of {layer} are known; leave axes out.")
        return "TD" if external.images else "D"
    known = external.axes(layer, len(shape) - external.images)
    axes = stated or (None if known is None else "T" * external.images + known)
    if axes is None:
        raise OptionError(
            f"{external.name}: the axes of layer {layer!r}, {list(shape)}, are not known: state them with --axes, one "
            f"letter each (T time, C channels, H rows, W columns, P positions, D numbers of a vector)."
        )
    if len(axes) != len(shape) or set(axes) - _LETTERS or len(set(axes)) < len(axes):
        raise OptionError(
            f"axes={axes}: layer {layer!r} of {external.name} has the shape {list(shape)}; write one letter of "
            f"{''.join(sorted(_LETTERS))} for each of its axes."
        )
    return axes


def layer_names(external: External) -> list[str]:
    """The layers that can be cached: ``pool``, ``output`` and modules that are run once and keep clips apart."""
    found, _ = _probed(external, 1 if external.images else external.input.frames, external.input.size)
    return [POOL, *(name for name, shape in found.items() if not isinstance(shape, str))]


def pooled_axes(external: External, dimensions: int) -> str:
    """Axes of the layer that ``pool`` averages, for one input or image; ``OptionError`` where they are not known."""
    axes = external.axes(external.pooled, dimensions)
    if axes is None or len(axes) != dimensions:
        raise OptionError(f"{external.name}: the axes of {external.pooled!r} are not known, so it cannot be pooled.")
    return axes


def state_digest(net: nn.Module) -> str:
    """32 hex digits over the names, types, shapes and values of a module's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        total.update(f"{name}|{plain.dtype}|{list(plain.shape)}|".encode())
        total.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:32]


def outline(external: External) -> ExternalBackbone:
    """The network without weights where it can be made so, else as it is built."""
    if not external.on_meta:
        return ExternalBackbone(external, external.make(BUILT)).eval()
    with torch.device("meta"):
        return ExternalBackbone(external, external.make(RANDOM)).eval()


def _averaged(x: Tensor, axes: str) -> Tensor:
    """Mean over all axes but those of the batch and of channels."""
    dims = [1 + i for i, letter in enumerate(axes) if letter not in _CHANNELS]
    return x.float().mean(dims).to(x.dtype) if dims else x


@functools.lru_cache(maxsize=8)
def _probed(external: External, frames: int, size: int) -> tuple[dict[str, Shape | str], str]:
    """Of each module, in the order in which they end, the shape for one input (or image) or why it cannot be cached.

    Also why those that are not among them cannot be reached with such an input; empty where all can.
    """
    net = outline(external)
    shapes, failure = [], ""
    for clips in (2, 3):  # so that layers which mix clips or fold them into another axis show
        seen, failure = _run(external, net, clips, frames, size)
        shapes.append({name: _shape(outputs, clips, name) for name, outputs in seen.items()})
    first, second = shapes
    return {
        name: shape if isinstance(shape, str) else second.get(name, "is not always run")
        for name, shape in first.items()
    }, failure


def _run(
    external: External, net: ExternalBackbone, clips: int, frames: int, size: int
) -> tuple[dict[str, list[Any]], str]:
    """What each module gave for some clips, and what ended the forward early."""
    seen: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: seen.setdefault(name, []).append(out))
        for name, module in net.net.named_modules()
        if name
    ]
    device = next((p.device for p in net.net.parameters()), torch.device("cpu"))
    x = torch.zeros((clips, frames, size, size, external.input.channels), dtype=torch.uint8, device=device)
    try:
        with torch.no_grad():
            prepared = net.prepare(x)
            out = net.net(prepared.flatten(0, 1) if external.images else prepared, **external.arguments)
            seen[OUTPUT], failure = [out], ""
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, NotImplementedError) as error:
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        for handle in handles:
            handle.remove()
    return seen, failure


@functools.lru_cache(maxsize=8)
def _modules(external: External) -> list[str]:
    return [name for name, _ in outline(external).net.named_modules() if name]


def _shape(outputs: list[Any], clips: int, layer: str) -> Shape | str:
    """Shape without the axis of clips, or why there is none."""
    if len(outputs) > 1:
        return f"is run {len(outputs)} times in a forward"
    try:
        shape = tuple(first_tensor(outputs[0], layer).shape)
    except OptionError:
        return "gives no tensor"
    if len(shape) < 2 or shape[0] != clips:
        return f"gives {list(shape)} for {clips} clips, so clips cannot be told apart"
    return shape[1:]


def last_module(external: External) -> str:
    """The module with parameters of its own that ends last: the classifier, where there is one."""
    net = outline(external).net
    found, _ = _probed(external, 1 if external.images else external.input.frames, external.input.size)
    own = [name for name in found if name != OUTPUT and list(net.get_submodule(name).parameters(recurse=False))]
    return own[-1] if own else ""


def _before(external: External, layer: str, module: str) -> bool:
    """Whether a layer has its output before a module has run, so that it cannot depend on it."""
    found, _ = _probed(external, 1 if external.images else external.input.frames, external.input.size)
    order = list(found)
    return layer in order and module in order and order.index(layer) < order.index(module)

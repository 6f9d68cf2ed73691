"""Streams whose arrays a frozen network computes; what features of videos and of skeletons have in common."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from kdcache import backbones
from kdcache.backbones.metadata import read_metadata
from kdcache.backbones.weights import Choice
from kdcache.errors import OptionError
from kdcache.recipe import Recipe, digest
from kdcache.streams.base import Array, ClipSpan, Stream, Strip
from kdcache.streams.sharing import shared_axes


@dataclass(frozen=True, kw_only=True)
class BackboneStream(Stream):
    """Features [V, …] of one layer of a network, with levels [V, N, …]."""

    backbone: str
    layer: str
    weights: Choice
    precision: str
    dtype: str

    @classmethod
    def accepts(cls, name: str) -> bool:
        """``backbone/layer`` of a network that takes what this kind feeds."""
        backbone = backbones.canonical(name.rpartition("/")[0] or name)
        known = backbone in backbones.names() or backbones.is_external(backbone)
        return known and cls._feeds(backbones.input_spec(backbone))

    @classmethod
    @abstractmethod
    def _feeds(cls, spec: backbones.InputSpec) -> bool:
        """Whether networks with such an input are fed by this kind."""

    @classmethod
    def examples(cls) -> list[str]:
        """Every backbone, with its aliases."""
        return [f"{name}/…" for name in (*backbones.names(), *backbones.ALIASES) if cls.accepts(name)]

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """As the backbone says."""
        axes = layer_axes(recipe)
        return None if axes is None else f"V{axes}"

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Array, frames: NDArray[np.int32]) -> list[Strip]:
        """Energy of maps over time; vectors are no picture."""
        return energy_strips(name, array, frames, cls.axes_in(recipe))

    def _backbone_recipe(self) -> dict[str, Any]:
        layer = backbones.layer_shape(self.backbone, self.layer, classes=self.classes)[0]
        identity = self.weights.identity()
        return {"name": self.backbone, "layer": layer, "precision": self.precision, "weights": identity}

    @functools.cached_property
    def network(self) -> str:
        """Which network it is and what that is given: streams in which this is equal are layers of one pass."""
        recipe = {name: value for name, value in self.recipe.items() if name not in ("stream", "dtype", "quantised")}
        backbone = {
            name: value for name, value in self.recipe["backbone"].items() if name not in ("layer", "axes", "shape")
        }
        return digest(recipe | {"backbone": backbone, "kind": type(self).__name__})

    def part_of(self, clip_id: str) -> int | None:
        """The part of cross-fitted weights whose network computes a clip; ``None``: that of all."""
        cross = self.weights.cross_fit
        return None if cross is None else cross.clips.get(clip_id)

    def digest_of(self, clip_id: str) -> str:
        """See ``Stream``; a clip is computed by one of several networks where weights are cross-fitted."""
        part = self.part_of(clip_id)
        return self.digest if part is None else digest({"recipe": self.digest, "part": part})

    def digests_of(self, clip_ids: Iterable[str]) -> Iterable[str]:
        """See ``Stream``."""
        return super().digests_of(clip_ids) if self.weights.cross_fit is None else map(self.digest_of, clip_ids)

    @functools.cached_property
    def classes(self) -> int | None:
        """How many class scores fitted weights give; ``None``: as many as the published network."""
        fitted = None if self.weights.path is None else read_metadata(self.weights.path)
        return None if fitted is None else fitted.num_classes

    def _with_dtype(self, recipe: Recipe) -> Recipe:
        """A recipe that says along which axes bytes share a scale, where the stream is stored as bytes."""
        if self.dtype != "uint8":
            return recipe
        assert self.shape is not None
        return recipe | {"quantised": {"steps": 255, "shared": shared_axes(self.axes_in(recipe), self.shape)}}

    @functools.cached_property
    def shared(self) -> tuple[int, ...]:
        """Of a stream that is stored as bytes: axes along which numbers share a scale."""
        axes = self.axes_in(self.recipe) or ""
        return tuple(axes.index(letter) for letter in self.recipe["quantised"]["shared"])

    @staticmethod
    def _common_in(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The fields that all streams of networks take from a recipe, but the weights."""
        backbone = recipe["backbone"]
        layer = recipe["stream"].rpartition("/")[2]  # as it was asked for; the backbone's is the published name
        return {
            "name": name,
            "backbone": backbone["name"],
            "layer": layer,
            "precision": backbone["precision"],
            "dtype": recipe["dtype"],
        }

    def nbytes(self, start_s: float, stop_s: float) -> int:
        """Exact, the same for every span."""
        return self._clip_bytes

    @functools.cached_property
    def _clip_bytes(self) -> int:
        assert self.shape is not None
        scales = 0
        if self.dtype == "uint8":
            scales = math.prod(n for axis, n in enumerate(self.shape) if axis not in self.shared)
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize + 8 * scales

    def assemble(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network gave for the segments of some clips → [clips × V, …], with levels [clips × V, N, …]."""
        return features

    @abstractmethod
    def compute(self, clip: Any) -> Array:
        """Input of the network for a clip, [segments, …]; a view of a clip or of one of its levels is a segment."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Of what the network is given of the first view of a clip, [segments, T, H, W, C]."""

    @abstractmethod
    def first_view(self) -> Self:
        """The same stream for a clip of one level, seen in its first view alone: what runs answer from."""

    @abstractmethod
    def level_inputs(self, span: ClipSpan, threads: int, device: str = "cpu") -> Iterator[tuple[float, Array]]:
        """The network's input for the first view of each level in turn, and the second at which its part ends.

        Nothing after a part is read before its input was handed on.

        Raises:
            SourceError: a source that cannot be read.
            ClipError: a span that it does not have.
        """


def passes(streams: Iterable[Stream]) -> list[tuple[BackboneStream, ...]]:
    """Those of the streams that have networks, by these: what the first of each is given the others are given, too."""
    found: dict[str, list[BackboneStream]] = {}
    for stream in streams:
        if isinstance(stream, BackboneStream):
            found.setdefault(stream.network, []).append(stream)
    return list(map(tuple, found.values()))


def split_name(name: str) -> tuple[str, str, backbones.InputSpec]:
    """Backbone, layer and input of a stream's name: ``tsm/pool`` → (``tsm-resnet50``, ``pool``, …).

    Raises:
        OptionError: no layer.
    """
    head, slash, layer = name.rpartition("/")
    head, layer = (head, layer) if slash else (name, "")
    spec = backbones.input_spec(head)
    if not layer:
        raise OptionError(f"Stream {name!r} names no layer: write for example {name}/{spec.default_layer}.")
    return backbones.canonical(head), layer, spec


def layer_axes(recipe: Mapping[str, Any]) -> str | None:
    """Axes of the layer that a recipe names; ``None`` for one that this version lacks.

    Recipes of networks from elsewhere state them: no library is loaded, and no code imported, to read a cache.
    """
    backbone = recipe.get("backbone", {})
    if "library" in backbone:
        return str(backbone["axes"])
    try:
        return backbones.layer_axes(backbone["name"], backbone["layer"])
    except (KeyError, OptionError):  # extracted by another version, which had such a network or layer
        return None


def energy_strips(name: str, array: Array, frames: NDArray[np.int32], axes: str | None) -> list[Strip]:
    """The first view's map over time (or levels), as heat; none where the array is no map over time."""
    if array.ndim != 5:
        return []
    energy = map_energy(array[0].astype(np.float32), axes and axes[1:])
    scaled = (255 * np.clip(energy / (np.percentile(energy, 99.5) + 1e-12), 0, 1)).astype(np.uint8)
    images = heat_colours(scaled)
    at = frames[np.linspace(0, len(frames) - 1, len(images)).round().astype(int)] if len(frames) else frames
    return [Strip("energy", images, at, order=4, note=name, curve=energy.mean(axis=(1, 2)))]


def heat_colours(maps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Maps [T, H, W] from 0 (black) to 255 (light yellow) as RGB [T, H, W, 3]."""
    coloured = [cv2.cvtColor(cv2.applyColorMap(m, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB) for m in maps]
    return np.asarray(coloured, np.uint8)


def map_energy(features: NDArray[np.float32], axes: str | None) -> NDArray[np.float32]:
    """Mean square over channels of a map with four axes, such as ``CTHW``: [T, H, W] (levels count as time).

    Where the axes are not known (an import that does not say), H and W are taken to be last, and the longer of the
    other two to be the channels.
    """
    if axes is None:
        axes = "TCHW" if features.shape[0] < features.shape[1] else "CTHW"
    order = [axes.index(letter) for letter in ("C", "N" if "N" in axes else "T", "H", "W")]
    return np.asarray(np.square(features.transpose(order)).mean(axis=0), np.float32)

"""What backbones offer: their layers, and what a clip takes in a cache of each; torch is not imported."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from kdcache import backbones
from kdcache.backbones.custom import LIBRARIES, is_external
from kdcache.backbones.published import published_for
from kdcache.backbones.weights import FITTED, Choice, list_weights
from kdcache.errors import OptionError
from kdcache.streams.registry import KINDS
from kdcache.streams.settings import StreamSettings
from kdcache.text import aligned, size

_BLOCK = re.compile(r"(^|\.)\d+$")  # a numbered module: encoder.layer.3
_PAGE = 60  # layers listed at most, where further ones are left to --json


@dataclass(frozen=True)
class LayerDescription:
    """One layer, as ``extract`` would cache it."""

    name: str
    published: str
    """Its name in the published checkpoint."""
    stream: str
    """What ``--stream`` takes; empty for a layer that is not cached by itself."""
    axes: str
    """V views, N levels, then those of the layer: T time, C channels, H rows, W columns, D numbers of a vector."""
    shape: tuple[int, ...]
    """Of one clip."""
    bytes: int
    """Of one clip."""
    problem: str = ""
    """Why there is none under these settings."""


@dataclass(frozen=True)
class BackboneSummary:
    """One backbone in a line."""

    name: str
    aliases: list[str]
    modality: str
    frames: int
    size: int
    default_layer: str
    weights: str
    """Whether published weights are here, can be fetched, or there are none."""
    fitted: bool
    """Whether ``kdcache fit`` trains it."""


@dataclass(frozen=True)
class BackboneList:
    """All backbones."""

    backbones: list[BackboneSummary]

    def __str__(self) -> str:
        rows = [("backbone", "takes", "frames × size", "layer", "weights", "fit")]
        for one in self.backbones:
            name = ", ".join([one.name, *one.aliases])
            taken = f"{one.frames} × {one.size}"
            rows.append((name, one.modality, taken, one.default_layer, one.weights, "yes" if one.fitted else ""))
        others = f"Also {', '.join(f'{prefix}:NAME' for prefix in LIBRARIES)}, and package.module:function of your own."
        lines = [*aligned(rows), "", others, "`kdcache backbones NAME` lists its layers: axes, shapes, bytes a clip."]
        return "\n".join(lines)

    def to_json(self) -> list[BackboneSummary]:
        """As a list."""
        return self.backbones


@dataclass(frozen=True)
class BackboneDescription:
    """All of one backbone."""

    summary: BackboneSummary
    resize: int
    """Short side in pixels before cropping, as it was trained."""
    stack: int
    """Flow fields that make up one frame of a flow network."""
    dtype: str
    layers: list[LayerDescription]

    def __str__(self) -> str:
        its = self.summary
        lines = [f"{', '.join([its.name, *its.aliases])}: {its.frames} × {its.size} px of {its.modality}"]
        lines[0] += f", short side {self.resize} px" if its.modality != "skeleton" else ""
        lines[0] += f", {self.stack} flow fields a frame" if self.stack > 1 else ""
        lines.append(f"weights: {its.weights}" + (f"; `kdcache fit {its.name}` trains it" if its.fitted else ""))
        rows: list[tuple[str, ...]] = [("layer", "published name", "stream", "axes", "shape", f"a clip ({self.dtype})")]
        outer = self._outer()
        for one in outer:
            shape = " × ".join(map(str, one.shape))
            other = "" if one.published == one.name else one.published
            rows.append((one.name, other, one.stream, one.axes, shape, one.problem or size(one.bytes)))
        if not any(row[1] for row in rows[1:]):
            rows = [(row[0], *row[2:]) for row in rows]
        hidden = len(self.layers) - len(outer)
        more = ["", f"{hidden} modules further inside are layers, too: --json lists them."] if hidden else []
        return "\n".join([*lines, "", *aligned(rows), *more])

    def _outer(self) -> list[LayerDescription]:
        """The layers to list: of networks from elsewhere also the blocks and what lies a level further inside, where
        these are few enough for a page.
        """
        near = [one for one in self.layers if one.name.count(".") < 2]
        if not is_external(self.summary.name):
            return near
        blocks = [one for one in self.layers if one in near or _BLOCK.search(one.name)]
        further = [one for one in self.layers if one.name.count(".") < 3]
        both = [one for one in self.layers if one in blocks or one in further]
        return next((some for some in (both, blocks, further) if len(some) <= _PAGE), near)


def describe_backbones() -> BackboneList:
    """Every backbone in a line."""
    return BackboneList([_summary(name) for name in backbones.names()])


def describe_backbone(name: str, settings: StreamSettings | None = None) -> BackboneDescription:
    """All of one backbone.

    Args:
        name: as ``kdcache.backbones.build`` takes it.
        settings: frames, size, views, levels and type with which its layers would be cached.

    Raises:
        OptionError: an unknown backbone, or settings that none of its layers can honour.
    """
    settings = settings or StreamSettings()
    spec = backbones.input_spec(name)
    layers, problems = list[LayerDescription](), list[OptionError]()
    short = backbones.short_names(name)
    for layer in (short.get(published, published) for published in backbones.layer_names(name)):
        try:
            layers.append(_layer(backbones.canonical(name), layer, settings))
        except OptionError as error:
            layers.append(LayerDescription(layer, layer, "", "", (), 0, str(error)))
            problems.append(error)
    if len(problems) == len(layers):
        raise problems[0]
    return BackboneDescription(_summary(backbones.canonical(name)), spec.resize, spec.stack, settings.dtype, layers)


def _layer(backbone: str, layer: str, settings: StreamSettings) -> LayerDescription:
    name = f"{backbone}/{layer}"
    kind = next((kind for kind in KINDS if kind.accepts(name)), None)
    if kind is None:  # networks of two modalities are built, not cached
        published, shape = backbones.layer_shape(backbone, layer, settings.frames, settings.size)
        nbytes = math.prod(shape) * np.dtype(settings.dtype).itemsize
        return LayerDescription(layer, published, "", backbones.layer_axes(backbone, layer), shape, nbytes)
    kind.check(name, settings)
    stream = kind.from_settings(name, settings, lambda _: Choice(seed=0))  # weights change neither shape nor size
    assert stream.shape is not None
    published = stream.recipe["backbone"]["layer"]
    nbytes = math.prod(stream.shape) * np.dtype(settings.dtype).itemsize
    return LayerDescription(layer, published, name, kind.axes_in(stream.recipe) or "", stream.shape, nbytes)


def _summary(name: str) -> BackboneSummary:
    spec = backbones.input_spec(name)
    row = published_for(name)
    weights = "those of its library or function" if is_external(name) else "none published"
    if row is not None:
        here = next((one["path"] for one in list_weights() if one["name"] == row.name), None)
        weights = f"{row.name}, here" if here else f"{row.name}, not here"
    aliases = [alias for alias, of in backbones.ALIASES.items() if of == name]
    return BackboneSummary(
        name, aliases, spec.modality, spec.frames, spec.size, spec.default_layer, weights, name in FITTED
    )

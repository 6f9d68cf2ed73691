"""The kinds of streams, and the ways to them: by name and settings, or by recipe. A new kind is one more entry."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from kdcache import backbones
from kdcache.backbones.weights import Choice
from kdcache.errors import OptionError, unknown
from kdcache.recipe import Recipe, differences, digest
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import CachedKind, Choose, Stream
from kdcache.streams.features import FeatureStream
from kdcache.streams.flow import FlowStream
from kdcache.streams.idt import IdtStream
from kdcache.streams.imported import ImportedStream
from kdcache.streams.rgb import RgbStream
from kdcache.streams.settings import StreamSettings
from kdcache.streams.skeleton import SkeletonStream
from kdcache.streams.video import DenseStream

KINDS: list[type[Stream]] = [RgbStream, FlowStream, IdtStream, FeatureStream, SkeletonStream]


def kind_of(recipe: Mapping[str, Any]) -> type[CachedKind]:
    """The kind of a cached stream; ``ImportedStream`` for what this version cannot compute."""
    if ImportedStream.owns(recipe):  # under whatever name
        return ImportedStream
    return next((kind for kind in KINDS if kind.owns(recipe)), ImportedStream)


def resolve(
    names: Sequence[str], settings: StreamSettings | None = None, weights: Mapping[str, Any] | None = None
) -> list[Stream]:
    """Turn stream names and settings into streams with their recipes.

    Args:
        names: ``rgb``, ``flow``, ``flow-warped``, ``idt`` or ``backbone/layer`` such as ``i3d-rgb/mixed4a``.
        settings: sampling, views, precision and storage.
        weights: backbone → checkpoint path or ``random:SEED``; a backbone that is left out uses its published
            checkpoint, which must be on this machine or reachable. Each is looked for once.

    Raises:
        OptionError: an unknown stream, backbone or layer; a setting that these streams cannot honour; streams of videos
            beside streams of skeletons.
        WeightsError: a checkpoint that is missing or of another network.
    """
    settings = settings or StreamSettings()
    if not names:
        raise OptionError("No stream was asked for: name one, for example i3d-rgb/mixed4a or flow.")
    if len(set(names)) != len(names):
        raise OptionError(f"A stream is named twice in {', '.join(names)}: name each once.")
    for name in names:
        backbones.allow(name.rpartition("/")[0])  # the user names them
    kinds = [_kind_named(name) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if kind.medium != kinds[0].medium:
            raise OptionError(
                f"{names[0]} reads {kinds[0].medium} and {name} {kind.medium}: extract them in two calls."
            )
        kind.check(name, settings)
    if settings.levels is not None and not any(issubclass(kind, (FeatureStream, SkeletonStream)) for kind in kinds):
        raise OptionError(f"levels is {settings.levels}, but {', '.join(names)} is of whole clips: leave it out.")
    choose = chooser(weights)
    return [kind.from_settings(name, settings, choose) for name, kind in zip(names, kinds, strict=True)]


def without_effect(streams: Sequence[Stream], given: Mapping[str, Any]) -> list[str]:
    """One sentence for each size among the ``given`` settings that is of none of the streams."""
    names = ", ".join(s.name for s in streams)
    sizes = (
        ("size", BackboneStream, "of a backbone's input; frames have short_side"),
        ("resize", BackboneStream, "of a backbone's input; frames have short_side"),
        ("short_side", DenseStream, "of rgb, flow and idt; a backbone's input has size"),
    )
    return [
        f"{option}={given[option]} changes nothing for {names}: it is {whose}."
        for option, kind, whose in sizes
        if given.get(option) is not None and not any(isinstance(s, kind) for s in streams)
    ]


def restore(name: str, recipe: Recipe, weights: Mapping[str, Any] | None = None) -> Stream:
    """The stream that wrote a recipe.

    Raises:
        OptionError: one that was imported, or that this version would compute by other rules.
        WeightsError: its weights are missing.
    """
    kind = kind_of(recipe)
    if not issubclass(kind, Stream):
        raise OptionError(f"{name} was imported, so how to compute it from a source is not known here.")
    stream = kind.from_recipe(name, recipe, chooser(weights))
    if stream.digest != digest(recipe):
        shown = "; ".join(differences(recipe, stream.recipe))
        raise OptionError(f"{name} was cached by other rules than this version has ({shown}): extract it anew.")
    return stream


def chooser(weights: Mapping[str, Any] | None) -> Choose:
    """A function from backbone to its weights that looks for each once."""
    given = named(weights)

    @functools.cache
    def choose(backbone: str) -> Choice:
        return backbones.choose(backbone, given.get(backbone))

    return choose


def named(weights: Mapping[str, Any] | None) -> dict[str, Any]:
    """``weights`` by the backbones' own names, aliases replaced."""
    if weights is not None and not isinstance(weights, Mapping):
        raise OptionError(f"weights={weights!r}: name the backbone of each, as in weights={{'i3d-rgb': {weights!r}}}.")
    return {backbones.canonical(name): value for name, value in (weights or {}).items()}


def _kind_named(name: str) -> type[Stream]:
    for kind in KINDS:
        if kind.accepts(name):
            return kind
    raise unknown("stream", name, [example for kind in KINDS for example in kind.examples()])

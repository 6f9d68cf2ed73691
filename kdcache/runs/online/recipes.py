"""From the recipes that a run kept back to the streams and weights with which its features were computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.backbones.weights import Choice, find_digest, resolve
from kdcache.errors import OptionError, WeightsError, unknown
from kdcache.recipe import Recipe
from kdcache.streams import has_levels, registry
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.registry import named


def restore(name: str, recipe: Recipe, weights: Choice) -> BackboneStream:
    """The stream ``name`` that a recipe describes.

    Raises:
        OptionError: a stream without observation levels, or one that this version would compute otherwise.
    """
    stream = registry.restore(name, recipe, {recipe["backbone"]["name"]: weights}) if has_levels(recipe) else None
    if not isinstance(stream, BackboneStream):
        raise OptionError(
            f"{name} was cached without observation levels, so nothing is known before a clip's end: extract with "
            "--levels and train again."
        )
    return stream


def find_weights(recipes: Mapping[str, Recipe], given: Any, of_run: str | None) -> dict[str, Choice]:
    """For each stream the weights with which it was computed.

    Args:
        recipes: of each stream.
        given: backbone → file or ``random:SEED``, or one for all; the others are looked for.
        of_run: the run's setting ``weights``, tried before the folders of ``kdcache weights``.

    Raises:
        OptionError: weights for a backbone that the run does not read, a stream whose backbone is not known.
        WeightsError: weights that are not here, or whose digest is not the recipe's.
    """
    for name, recipe in recipes.items():
        if "backbone" not in recipe:
            raise OptionError(f"{name} was imported, so how to compute it from a source is not known here.")
    backbones = {recipe["backbone"]["name"] for recipe in recipes.values()}
    chosen = named(given) if isinstance(given, Mapping) else dict.fromkeys(backbones, given)
    for name in chosen:
        if name not in backbones:
            raise unknown("backbone of the run", name, sorted(backbones))
    return {name: _weights(name, recipe["backbone"], chosen, of_run) for name, recipe in recipes.items()}


def _weights(stream: str, recipe: Recipe, chosen: Mapping[str, Any], of_run: str | None) -> Choice:
    backbone, known = recipe["name"], recipe["weights"]
    given = chosen.get(backbone)
    described = known.get("spec") or f"sha256 {known['sha256'][:12]}…"
    if given is not None:
        if (choice := resolve(backbone, given)).identity() != known:
            raise WeightsError(
                f"{given} is not what {stream} was computed with ({described}): pass --weights with that one."
            )
        return choice
    if "spec" in known:
        return resolve(backbone, known["spec"])
    if of_run is not None and Path(of_run).is_file() and (choice := resolve(backbone, of_run)).identity() == known:
        return choice
    if (found := find_digest(known["sha256"])) is None:
        raise WeightsError(
            f"The weights with which {stream} was computed ({described}) are not among those of "
            f"`kdcache weights`: pass --weights {backbone}=FILE."
        )
    return resolve(backbone, found)

"""From the recipes that a run kept back to the streams and weights with which its features were computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.backbones import choose
from kdcache.backbones.weights import Choice, as_recorded, find_digest
from kdcache.data.open import stream_of
from kdcache.errors import OptionError, WeightsError, unknown
from kdcache.recipe import Recipe
from kdcache.streams import has_levels, registry
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import Stream
from kdcache.streams.registry import named
from kdcache.streams.video import DenseStream

if TYPE_CHECKING:
    from kdcache.runs.run import Run


def recipes_of(run: Run) -> dict[str, Recipe]:
    """Of each cached stream that the run's network reads, in the order in which they are joined; no privileged ones.

    Raises:
        OptionError: a run that has not been trained.
    """
    if run.settings.shards is None:  # its inputs are made from the sources
        return {}
    kept = run.recipes
    if not kept:
        raise OptionError(f"{run.path} has not been trained: repeat its command with this out.")
    parts = (stream_setting(run) or "").split(",")
    return {name: kept[name] for part in parts for name in [part.rpartition("=")[2]]}


def stream_setting(run: Run) -> str | None:
    """The setting ``stream`` as it was resolved, as far as it is about what the network reads."""
    return stream_of(run.inputs, run.resolved["stream"])


def restore_all(run: Run, weights: Any) -> list[Stream]:
    """The streams that a run's network reads, with their weights; see ``find_weights`` for what it raises."""
    recipes = recipes_of(run)
    chosen = find_weights(recipes, weights, run.settings.weights)
    return [registry.restore(name, recipe, _named(recipe, chosen.get(name))) for name, recipe in recipes.items()]


def restore(name: str, recipe: Recipe, weights: Choice) -> BackboneStream:
    """The stream ``name`` that a recipe describes, whose clips are known level by level.

    Raises:
        OptionError: a stream without observation levels, or one that this version would compute otherwise.
    """
    stream = registry.restore(name, recipe, _named(recipe, weights)) if has_levels(recipe) else None
    if not isinstance(stream, BackboneStream):
        raise OptionError(
            f"{name} was cached without observation levels, so nothing is known before a clip's end: extract with "
            "--levels and train again."
        )
    return stream


def _named(recipe: Recipe, weights: Choice | None) -> dict[str, Choice]:
    """Weights by their backbone."""
    return {} if weights is None else {recipe["backbone"]["name"]: weights}


def find_weights(recipes: Mapping[str, Recipe], given: Any, of_run: str | None) -> dict[str, Choice]:
    """For each stream of features the weights with which it was computed.

    Args:
        recipes: of each stream.
        given: backbone → file or ``random:SEED``, or one for all; the others are looked for.
        of_run: the run's setting ``weights``, tried before the folders of ``kdcache weights``.

    Raises:
        OptionError: weights for a backbone that the run does not read, a stream whose backbone is not known.
        WeightsError: weights that are not here, or whose digest is not the recipe's.
    """
    for name, recipe in recipes.items():
        if "backbone" not in recipe and not issubclass(registry.kind_of(recipe), DenseStream):
            raise OptionError(f"{name} was imported, so how to compute it from a source is not known here.")
    features = {name: recipe["backbone"] for name, recipe in recipes.items() if "backbone" in recipe}
    backbones = {backbone["name"] for backbone in features.values()}
    if given and not backbones:
        raise OptionError(f"weights={given}: the run reads {', '.join(recipes)}, which no backbone made; leave it out.")
    chosen = named(given) if isinstance(given, Mapping) else dict.fromkeys(backbones, given)
    for name in chosen:
        if name not in backbones:
            raise unknown("backbone of the run", name, sorted(backbones))
    return {name: _weights(name, backbone, chosen, of_run) for name, backbone in features.items()}


def _weights(stream: str, recipe: Recipe, chosen: Mapping[str, Any], of_run: str | None) -> Choice:
    backbone, known = recipe["name"], recipe["weights"]
    given = chosen.get(backbone)
    described = known.get("spec") or f"sha256 {known['sha256'][:12]}…"
    if given is not None:
        if (choice := as_recorded(choose(backbone, given), known)) is None:
            raise WeightsError(
                f"{given} is not what {stream} was computed with ({described}): pass --weights with that one."
            )
        return choice
    if "spec" in known:
        return choose(backbone, known["spec"])
    if of_run is not None and Path(of_run).exists() and (choice := as_recorded(choose(backbone, of_run), known)):
        return choice
    if (found := find_digest(known["sha256"])) is None:
        raise WeightsError(
            f"The weights with which {stream} was computed ({described}) are not among those of "
            f"`kdcache weights`: pass --weights {backbone}=FILE."
        )
    choice = as_recorded(choose(backbone, found), known)
    if choice is None:
        raise WeightsError(f"{found} does not give the weights with which {stream} was computed ({described}).")
    return choice

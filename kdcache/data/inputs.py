"""Which streams of a cache a method's inputs read: chosen by pattern, checked by axes, views matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kdcache.data.stream import Reader, is_ragged
from kdcache.errors import OptionError, unknown
from kdcache.log import logger
from kdcache.methods.contract import Input, SkeletonSegment
from kdcache.recipe import Recipe
from kdcache.streams import axes_of, view_names

FRAME_AXES = ("THWC", "THW")
WORDS = {
    "CTHW": "feature maps [C, T, H, W]",
    "TCHW": "feature maps of single frames [T, C, H, W]",
    "ND": "a vector for each level of progress [N, D]",
    "TD": "a vector for each time step [T, D]",
    "DT": "a vector for each time step [D, T]",
    "D": "one vector [D]",
    "PD": "a vector for each position [P, D]",
    "TPD": "a vector for each position of each time step [T, P, D]",
    "NTD": "a vector for each time step at each level of progress [N, T, D]",
    "THWC": "frames [T, H, W, C]",
    "THW": "motion maps [T, H, W]",
}


@dataclass(frozen=True)
class Binding:
    """The streams of a cache that inputs with one pattern and one set of axes read."""

    inputs: tuple[Input, ...]
    streams: tuple[str, ...]
    """Several are joined: vectors side by side."""
    axes: str
    """Those of the input's ``accepts`` that they have."""
    order: tuple[int, ...] | None
    """Permutation of the stored axes (without views) that gives the input's; none where they agree."""
    ragged: bool = False
    """Whether their clips differ in length."""

    @property
    def names(self) -> str:
        """As the setting ``stream`` writes them."""
        return ",".join(self.streams)

    @property
    def privileged(self) -> bool:
        """Whether it is read in training only."""
        return all(one.when == "train" for one in self.inputs)


def bind(cache: Reader, inputs: Sequence[Input], stream: str | None) -> list[Binding]:
    """Find the streams of each group of inputs.

    Args:
        cache: where they must be.
        inputs: of the method.
        stream: the user's choice: names joined by commas; ``input=name`` where several groups read different streams.

    Raises:
        OptionError: no stream or several that would do, one whose axes do not fit, or an unknown name.
    """
    groups: dict[tuple[object, ...], list[Input]] = {}
    for one in inputs:
        groups.setdefault((one.stream, one.accepts, one.ragged, one.segment), []).append(one)
    wanted = _wanted(cache, stream, inputs)
    bindings = []
    for members in groups.values():
        first = members[0]
        fitting = {
            s: reason for s in cache.streams if fnmatchcase(s, first.stream) for reason in [refusal(cache, s, first)]
        }
        said = {one.name: wanted[one.name] for one in members if one.name in wanted}
        names = next(iter(said.values()), None)
        peers = [wanted[one.name] for one in inputs if one.name in wanted and _same_source(one, first)]
        if any(other != names for other in said.values()):
            raise OptionError(
                f"{' and '.join(f'stream={name}={one}' for name, each in said.items() for one in each)}: these inputs "
                "read one stream together; name one."
            )
        if names is None:
            names = [n for n in wanted.get("", []) if len(groups) == 1 or fitting.get(n) == ""] or None
        if names is None and all(other == peers[0] for other in peers):
            names = next(iter(peers), None)
        chosen = _chosen(cache, first, fitting, names, alone=len(groups) == 1)
        axes = _fitting_axes(cache, chosen[0], first)
        order, ragged = _order(cache.recipe(chosen[0]), axes), is_ragged(cache.recipe(chosen[0]))
        bindings.append(Binding(tuple(members), tuple(chosen), axes, order, ragged and first.segment is None))
        names_of = ", ".join(one.name for one in members)
        logger.debug("%s [%s] is read from %s, of %s", names_of, axes, "+".join(chosen), ", ".join(fitting))
    unused = [n for n in wanted.get("", []) if not any(n in b.streams for b in bindings)]
    if unused:
        raise OptionError(f"stream={unused[0]}: no input of the method reads it; {_listed(inputs)}.")
    return bindings


def _same_source(one: Input, other: Input) -> bool:
    """Whether two inputs ask for the same streams, if perhaps for other segments of them."""
    return (one.stream, one.accepts) == (other.stream, other.accepts)


def refusal(cache: Reader, stream: str, wanted: Input) -> str:
    """Why a stream will not do for an input, as the rest of a sentence about it; empty where it will."""
    recipe = cache.recipe(stream)
    stored = axes_of(recipe)
    if stored is None:
        return f"its import does not say the order of its axes: import it again with --axes, such as V{wanted.axes}"
    axes = stored.removeprefix("V")
    if any(sorted(axes) == sorted(each) for each in wanted.accepts):
        return _layout_refusal(recipe, axes, wanted)
    shaped = any(len(axes) == len(each) for each in wanted.accepts)
    stated = "imported" not in recipe or "axes" in recipe or not shaped
    advice = "" if stated else f" (if that is what was imported, import it again with --axes V{wanted.axes})"
    other = next((text for each, text in wanted.advice.items() if sorted(each) == sorted(axes)), "")
    return f"it holds {WORDS.get(axes, axes)}, not {described(wanted)}{other and f': {other}'}{advice}"


def _layout_refusal(recipe: Recipe, axes: str, wanted: Input) -> str:
    """Why a stream with the right axes will not do."""
    if wanted.segment is not None:
        return "it does not hold frames" if recipe["layout"] == "fixed" else ""
    if recipe["layout"] == "fixed":
        return ""
    if axes in FRAME_AXES and "imported" not in recipe:
        return "it holds whole clips, and the input states no segment (segment=Segment(frames=…))"
    if is_ragged(recipe) and wanted.ragged:
        return ""
    return "its clips differ in length, and this input takes clips of one length"


def described(wanted: Input) -> str:
    """What an input takes, in words."""
    if len(wanted.accepts) > 3:
        return f"features with axes {', '.join(wanted.accepts)}"
    return " or ".join(WORDS.get(axes, axes) for axes in wanted.accepts)


def _fitting_axes(cache: Reader, stream: str, wanted: Input) -> str:
    """Which of the axes that an input takes a stream has, that will do."""
    stored = (axes_of(cache.recipe(stream)) or wanted.axes).removeprefix("V")
    return next(axes for axes in wanted.accepts if sorted(axes) == sorted(stored))


def align_views(
    recipes: Mapping[str, Recipe], views: Mapping[str, int]
) -> tuple[dict[str, list[int]], list[str] | None]:
    """Which cached view of each stream is shown as view 0, 1 … of an example, so that all streams show the same one.

    Args:
        recipes: of each stream of features.
        views: how many each has.

    Returns:
        stream → its views in common order, and the names of these, None where they are not known.

    Raises:
        OptionError: streams of which no view has a common name, or whose numbers of views differ without names.
    """
    names = {s: _view_names(r) for s, r in recipes.items()}
    same = {s: list(range(count)) for s, count in views.items()}
    known = [n for n in names.values() if n is not None]
    if len(set(map(tuple, known))) <= 1 and len(set(views.values())) <= 1:
        return same, known[0] if known else None
    if len(known) < len(names):
        unnamed = next(s for s, n in names.items() if n is None)
        other = next(s for s in names if s != unnamed and (names[s], views[s]) != (None, views[unnamed]))
        raise OptionError(
            f"{other} has {views[other]} views and {unnamed} {views[unnamed]} without names, so they cannot be "
            "matched: extract or import both with the same views."
        )
    common = [n for n in known[0] if all(n in others for others in known)]
    if not common:
        shown = "; ".join(f"{s} {', '.join(n or [])}" for s, n in names.items())
        raise OptionError(f"No view is cached of every stream ({shown}): extract them with the same --views.")
    return {s: [list(names[s] or []).index(n) for n in common] for s in names}, common


def _view_names(recipe: Recipe) -> list[str] | None:
    """Names of cached views; an unturned skeleton counts as a centre crop."""
    names = view_names(recipe)
    return ["centre" if n == "straight" else n for n in names] if names else None


def _wanted(cache: Reader, stream: str | None, inputs: Sequence[Input]) -> dict[str, list[str]]:
    """The names that a user gave: under the input's name, or under "" for whichever input they fit."""
    wanted: dict[str, list[str]] = {}
    for text in (part.strip() for part in (stream or "").split(",") if part.strip()):
        name, equals, value = text.rpartition("=")
        if equals and name not in {one.name for one in inputs}:
            raise unknown("input", name, [one.name for one in inputs])
        cache.recipe(value)  # refuses an unknown one, with the nearest name
        wanted.setdefault(name, []).append(value)
    return wanted


def _chosen(
    cache: Reader, first: Input, fitting: Mapping[str, str], names: list[str] | None, *, alone: bool
) -> list[str]:
    usable = [s for s, reason in fitting.items() if not reason]
    said = "stream" if alone else f"stream={first.name}"
    if names is not None:
        for name in names:
            if reason := fitting.get(name, refusal(cache, name, first) or f"{first.name} reads {first.stream}"):
                other = f"choose from {', '.join(usable)}" if usable else f"{_advice(first)}"
                raise OptionError(f"{said}={name}: {reason}; {other}.")
        found = {_fitting_axes(cache, name, first) for name in names}
        if len(names) > 1 and (len(found) > 1 or not found.pop().endswith("D")):
            raise OptionError(
                f"{said}={','.join(names)}: only vectors of several streams can be joined, with equal axes; name one."
            )
        return names
    if not usable and isinstance(first.segment, SkeletonSegment):
        raise OptionError(
            f"Input {first.name} is made from skeleton files, which no cache holds: use `kdcache fit` with a manifest."
        )
    if not usable:
        near = "; ".join(f"{s}: {reason}" for s, reason in fitting.items())
        near = near or f"no stream matches {first.stream}; it has {', '.join(cache.streams) or 'nothing'}"
        raise OptionError(
            f"{cache.path} does not hold {described(first)} for input {first.name} ({near}): {_advice(first)}."
        )
    axes = {s: _fitting_axes(cache, s, first) for s in usable}
    preferred = [s for s in usable if axes[s] == min(axes.values(), key=first.accepts.index)]
    if len(preferred) == 1 and len(usable) > 1:
        others = ", ".join(s for s in usable if s not in preferred)
        how = _choosing(first, "…", alone)
        logger.info("%s reads %s; it could also read %s: choose with %s", first.name, preferred[0], others, how)
        return preferred
    if len(usable) > 1:
        choices = " or ".join(_choosing(first, name, alone) for name in usable)
        raise OptionError(f"{cache.path} holds several streams for input {first.name}: choose with {choices}.")
    return usable


def _choosing(first: Input, name: str, alone: bool) -> str:
    """The option that chooses a stream, as the command line and Python write it."""
    value = name if alone else f"{first.name}={name}"
    return f"--stream {value} (stream={value!r})"


def _advice(first: Input) -> str:
    """What to extract for an input."""
    example = first.extract[0] if first.extract else first.stream
    levels = f" --levels {first.settings['levels']}" if "levels" in first.settings else ""
    such = "that holds them" if "*" in example else f"such as {example}{levels}"
    return f"run `kdcache extract` with a stream {such}"


def _order(recipe: Recipe, axes: str) -> tuple[int, ...] | None:
    """The permutation that brings stored axes into the input's order."""
    stored = (axes_of(recipe) or axes).removeprefix("V")
    return None if stored == axes else tuple(stored.index(letter) for letter in axes)


def _listed(inputs: Sequence[Input]) -> str:
    return "it reads " + ", ".join(f"{one.name}: {one.stream} {' or '.join(one.accepts)}" for one in inputs)

"""Which array each clip gets, and whether they make one stream: of one shape, or differing in length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Generic

from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.exchange.arrays import ArrayFiles, ArrayHeader, ArrayOptions, Where
from kdcache.exchange.frame_keys import ClipNames
from kdcache.exchange.importing import Row
from kdcache.exchange.recipes import imported_recipe, ragged_recipe
from kdcache.progress import counted
from kdcache.recipe import Recipe
from kdcache.store.layout import DTYPES

_VECTORS = "TD"


def names_of(name: str, sources: bool) -> list[str]:
    """Names under which an array is looked for: of a source also without its suffix, and without its folders."""
    path = PurePosixPath(name)
    stems = [str(path.with_suffix("")), path.name, path.stem] if sources and path.name else []
    return list(dict.fromkeys([name, *stems]))


@dataclass(frozen=True)
class Survey(Generic[Where]):
    """Which array each name leads to, and what their headers say; no array is read."""

    files: ArrayFiles[Where]
    names: ClipNames
    found: dict[str, Where]
    """Name → its array."""
    problems: dict[str, ClipError]
    """Name → why it has none that can be imported."""
    headers: dict[Where, ArrayHeader]

    @classmethod
    def of(cls, files: ArrayFiles[Where], rows: Sequence[Row], options: ArrayOptions, progress: bool) -> Survey[Where]:
        """Look for every clip's array; ``SourceError`` if there is none at all, or two names lead to one."""
        key = options.key or ("{clip_id}" if options.per == "clip" else "{source}")
        survey = cls(files, ClipNames(key, list(rows[0]) if rows else []), {}, {}, {})
        owners: dict[Where, str] = {}
        for row in counted("headers", rows, "files", shown=progress):
            name = ""
            try:
                name = survey.names.of(row)
                if name in survey.found or name in survey.problems:
                    continue
                where = files.find(names_of(name, key == "{source}"))
                if owners.setdefault(where, name) != name:
                    raise SourceError(
                        f"{files.shown(where)}: both {owners[where]!r} and {name!r} lead to it; give each a "
                        f"{files.one} of its own, or say with --key how they are named."
                    )
                survey.found[name] = where
                survey.headers[where] = files.header(where)
            except ClipError as error:
                survey.problems[name] = error
        if not survey.headers:
            first = next(iter(survey.problems.values()), "the manifest is empty")
            raise SourceError(f"{files}: not one of {len(rows)} clips can be imported; the first: {first}")
        return survey

    def where(self, row: Row) -> Where:
        """The array of a clip; ``ClipError`` says why there is none."""
        name = self.names.of(row)
        if name in self.problems:
            raise self.problems[name]
        return self.found[name]

    def recipe(self, stream: str, origin: str, options: ArrayOptions) -> tuple[Recipe, list[str]]:
        """The stream's recipe, and what was assumed for it.

        Raises:
            SourceError: arrays that do not make one stream; names one of each kind.
            OptionError: options that do not fit the arrays.
        """
        example, header = next(iter(self.headers.items()))
        shapes = {h.shape for h in self.headers.values()}
        stated = options.views or options.levels or options.axes is not None
        ragged = options.ragged or (len(shapes) > 1 and not stated and len(header.shape) == len(_VECTORS))
        self._check_alike(ragged)
        if header.name not in DTYPES:
            raise SourceError(
                f"{self.files.shown(example)}: {header.name} cannot be cached; save it as one of {', '.join(DTYPES)}."
            )
        if options.dtype is not None and header.dtype.kind != "f":
            raise OptionError(
                f"--dtype {options.dtype}: the {self.files.several} hold {header.name}, which is kept as it is; "
                "leave it out."
            )
        dtype = options.dtype or header.name
        if not ragged:
            if options.views and len(header.shape) < 2:
                raise OptionError(
                    f"--views: arrays of shape {list(header.shape)} have no axis beside that of views; leave it out."
                )
            shape = header.shape if options.views else (1, *header.shape)
            arguments = stream, shape, dtype, self.files.source, origin, options.axes, options.levels
            return imported_recipe(*arguments), []
        axes = options.axes or _VECTORS
        if len(axes) != len(header.shape):
            raise OptionError(
                f"--axes {axes}: {self.files.shown(example)} is {header}; name each axis, T first, as in TD or TCHW."
            )
        how: dict[str, Any] = {} if options.fps is None else {"fps": options.fps}
        how |= {"offset": options.offset} if options.offset else {}
        assumed = options.axes is None and options.per == "clip"
        lengths = sorted(shape[0] for shape in shapes)
        note = f"The arrays have {lengths[0]} to {lengths[-1]} rows: a ragged stream of axes TD (time steps, vectors)."
        return ragged_recipe(stream, axes, dtype, self.files.source, origin, **how), [note] if assumed else []

    def unused(self) -> list[str]:
        """What of the files no clip asked for, as a sentence."""
        others = iter(self.files.others(set(self.found.values())))
        if (first := next(others, None)) is None:
            return []
        count = 1 + sum(1 for _ in others)
        kept = f"1 {self.files.one} of {self.files} belongs" if count == 1 else f"{count} {self.files.several} of "
        kept += "" if count == 1 else f"{self.files} belong"
        return [f"{kept} to no clip of the manifest, such as {first}."]

    def _check_alike(self, ragged: bool) -> None:
        """Refuse arrays that differ in dtype or shape, if ``ragged`` in their number of rows alone."""
        groups: dict[tuple[Any, ...], list[Where]] = {}
        for where, header in self.headers.items():
            inner = (len(header.shape), header.shape[1:]) if ragged else (header.shape,)
            groups.setdefault((header.name, *inner), []).append(where)
        if len(groups) == 1:
            return
        most, *_, odd = sorted(groups.values(), key=len, reverse=True)
        length_alone = not ragged and len({(h.name, len(h.shape), h.shape[1:]) for h in self.headers.values()}) == 1
        advice = (
            "where only lengths differ, write --axes with T first and without V, as in --axes TCHW."
            if length_alone
            else "a stream has one shape and dtype: import them as streams of their own."
        )
        raise SourceError(
            f"{self.files.shown(odd[0])}: {self.headers[odd[0]]}, where {len(most)} {self.files.several} such as "
            f"{self.files.shown(most[0])} hold {self.headers[most[0]]}; {advice}"
        )

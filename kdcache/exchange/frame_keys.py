"""Names made of manifest columns: of a clip's array, or of single frames as in ``P01_01_frame_0000000001.jpg``."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from kdcache.errors import ClipError, OptionError

LONGEST = 511  # bytes of an LMDB key, unless it is built otherwise

_Part = tuple[str, str | None, str]  # text before a field, the field's column, its format


def _parts(template: str, columns: Sequence[str], *frame: str) -> list[_Part]:
    """A template such as ``{group}_{frame:010d}``, cut at its fields; only the field ``frame`` may have a format."""
    try:
        parts = [(text, name, spec or "") for text, name, spec, _ in string.Formatter().parse(template)]
        [format(1, spec) for _, name, spec in parts if name in frame]
    except ValueError as error:
        raise OptionError(
            f"--key {template!r} is not a template ({error}); write like {{clip_id}}_{{frame}}."
        ) from error
    for _, name, spec in parts:
        if name is not None and name not in (*columns, *frame):
            raise OptionError(f"--key {template!r}: the manifest has no column {name!r}; it has {', '.join(columns)}.")
        if spec and name not in frame:
            raise OptionError(f"--key {template!r}: only a frame's number takes a format; write {{{name}}} alone.")
    return parts


class ClipNames:
    """A template such as ``{clip_id}`` or ``{class}/{clip_id}``: manifest columns in braces.

    Raises:
        OptionError: a template with an unknown column, or without any.
    """

    def __init__(self, template: str, columns: Sequence[str]) -> None:
        self._parts = _parts(template, columns)
        if all(name is None for _, name, _ in self._parts):
            raise OptionError(f"--key {template!r} names one array for all clips; write a manifest column in braces.")

    def of(self, row: dict[str, Any]) -> str:
        """The name for a clip.

        Raises:
            ClipError: the clip's cell of a column is empty.
        """
        text = ""
        for before, name, _ in self._parts:
            text += before
            if name is not None:
                if row.get(name) in (None, ""):
                    raise ClipError(f"its {name} is empty, which --key takes its name from; fill it in the manifest.")
                text += str(row[name])
        return text


class FrameKeys:
    """A template such as ``{group}_frame_{frame:010d}.jpg``: manifest columns in braces, and the frame's number.

    Args:
        template: must hold ``{frame}`` once.
        columns: of the manifest.
        first: the number of a source's first frame; indices count from 0.

    Raises:
        OptionError: a template with an unknown column, or without ``{frame}``.
    """

    def __init__(self, template: str, columns: Sequence[str], first: int) -> None:
        self.first = first
        self._parts = _parts(template, columns, "frame")
        if [name for _, name, _ in self._parts].count("frame") != 1:
            raise OptionError(f"--key {template!r} must hold {{frame}} once, for example frame_{{frame:010d}}.jpg.")

    def affixes(self, row: dict[str, Any]) -> tuple[bytes, bytes]:
        """What stands before and after the frame's number in every key of a clip."""
        sides = [""]
        for text, name, _ in self._parts:
            sides[-1] += text
            if name == "frame":
                sides.append("")
            elif name is not None:
                sides[-1] += "" if row.get(name) is None else str(row[name])
        return sides[0].encode(), sides[1].encode()

    def of(self, row: dict[str, Any], index: int) -> bytes:
        """The key of frame ``index`` (from 0) of a clip.

        Raises:
            ClipError: it is longer than LMDB allows.
        """
        spec = next(spec for _, name, spec in self._parts if name == "frame")
        before, after = self.affixes(row)
        key = before + format(index + self.first, spec).encode() + after
        if len(key) > LONGEST:
            raise ClipError(
                f"the key {key[:40].decode(errors='replace')!r}… is {len(key)} bytes long; LMDB takes {LONGEST}."
            )
        return key

"""Reading a file of presets and tables; what is not of its form is named by file and key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError
from kdcache.toml_text import BrokenToml, read_toml

_NAMES = {str: "text", dict: "a table", list: "a list", bool: "true or false"}
_TOP = {"presets": dict, "tables": dict, "settings": dict, "streams": dict, "note": str}
_TABLE: dict[str, type] = {
    "caption": str,
    "preset": str,
    "note": str,
    "reference": str,
    "stream": str,
    "metric": str,
    "rows_of": str,
}
_TABLE |= {"gains": bool, "columns": dict, "rows": list}
_ROW = {"name": str, "paper": dict, "options": dict, "method": str, "note": str}
_COLUMN = {"stream": str, "fuse": list}


def read_presets(path: Path) -> dict[str, Any]:
    """The content of a file of presets, its form checked; options are checked by the methods that they are of.

    Raises:
        OptionError: no plain file, too large, no TOML, or a key of another form; names the file and the key.
    """
    try:
        content = read_toml(path)
    except BrokenToml as error:
        raise OptionError(f"{path} is damaged ({error}): restore it, or install kdcache again.") from error
    try:
        _check(content)
    except _Wrong as wrong:
        raise OptionError(f"{path}: {wrong}; restore it, or install kdcache again.") from wrong
    return content


class _Wrong(ValueError):
    """A key and what is wrong with it."""


def _check(content: dict[str, Any]) -> None:
    _form("", content, _TOP, ("presets", "tables"))
    for name, options in content["presets"].items():
        _of(f"presets.{name}", options, dict)
    for kind, type_ in (("settings", dict), ("streams", list)):
        for name, value in content.get(kind, {}).items():
            _of(f"{kind}.{name}", value, type_)
            _known(f"{kind}.{name}", name, content["presets"])
    for name, table in content["tables"].items():
        _check_table(f"tables.{name}", name, table, content)


def _check_table(key: str, name: str, table: Any, content: dict[str, Any]) -> None:
    _form(key, table, _TABLE, ("caption", "preset"))
    _known(f"{key}.preset", table["preset"], content["presets"])
    if (of := table.get("rows_of")) is not None:
        _known(f"{key}.rows_of", of, content["tables"])
        if of == name or "rows" not in content["tables"][of]:
            raise _Wrong(f"{key}.rows_of is {of!r}, which has no rows of its own to share")
    for column, its in table.get("columns", {}).items():
        _form(f"{key}.columns.{column}", its, _COLUMN, ())
    for number, row in enumerate(table.get("rows", []), 1):
        place = f"{key}.rows[{number}]"
        _form(place, row, _ROW, ("name", "paper"))
        for column, value in row["paper"].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise _Wrong(f"{place}.paper.{column} is no finite number")


def _form(key: str, value: Any, kinds: Mapping[str, type], needed: tuple[str, ...]) -> None:
    """Refuse what is no table, lacks keys, or has some of another type or unknown ones."""
    _of(key or "it", value, dict)
    for name in needed:
        if name not in value:
            raise _Wrong(f"{key or 'it'} has no {name}")
    for name, part in value.items():
        _known(f"{key}.{name}".lstrip("."), name, kinds)
        _of(f"{key}.{name}".lstrip("."), part, kinds[name])


def _of(key: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise _Wrong(f"{key} is not {_NAMES[kind]}")


def _known(key: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise _Wrong(f"{key[:200]} names {name[:100]!r}, and there is none but {', '.join(known)}"[:500])

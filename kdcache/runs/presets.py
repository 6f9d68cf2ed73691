"""The papers' settings for each dataset, and the rows of their tables, from ``kdcache/presets/<method>.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from kdcache.errors import OptionError, unknown
from kdcache.methods import method as method_module
from kdcache.methods.declared import check_method
from kdcache.options import build


@dataclass(frozen=True)
class TableRow:
    """One row of a comparison: of a paper's table, or of the user's own."""

    name: str
    options: dict[str, Any]
    """What ``train`` is called with, without seed and data; those of a table's preset are among them, but for a row
    that names its own method: its options are complete by themselves."""
    paper: dict[str, float]
    """Column → the paper's number, per cent."""
    quoted: bool = False
    """A method that cannot be run here: the file gives the row no ``options``, the paper only quotes it."""
    slug: str = ""
    """Name of its folder in a comparison; empty outside one."""
    method: str = ""
    """What trains it, where that is not the table's method."""
    own: tuple[str, ...] = ()
    """Options that the row itself sets, or the call for all rows; the others are the preset's."""
    failed: str = ""
    """Why it could not be trained; empty before, and where it was."""


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    name: str
    caption: str
    rows: list[TableRow]


def preset(method: str, name: str) -> dict[str, Any]:
    """The options of a named preset; ``OptionError`` with the nearest name for one that does not exist."""
    known = _read(method)["presets"]
    if name not in known:
        raise unknown("preset", name, sorted(known))
    return dict(known[name])


def streams(method: str, name: str) -> list[str] | None:
    """The streams that a preset's dataset is trained on, where they are not the method's default ones."""
    preset(method, name)  # refuses an unknown one
    found = _read(method).get("streams", {}).get(name)
    return None if found is None else [str(stream) for stream in found]


def note(method: str) -> str:
    """What has to be known of every table of the method; empty: nothing."""
    return str(_read(method).get("note", ""))


def names(method: str) -> list[str]:
    """The method's presets."""
    return list(_read(method)["presets"])


def tables(method: str, check: bool = True) -> dict[str, Table]:
    """Every table of the method's paper by name; each row's options are complete and have been checked.

    ``check=False`` does not check them, for which the methods that train them would be imported, and torch with them.
    """
    content = _read(method)
    found = {}
    for name, table in content["tables"].items():
        base = dict(content["presets"][table["preset"]])
        rows = []
        for r in _rows(content, table):
            own = {} if "method" in r else base
            rows.append(
                TableRow(
                    r["name"],
                    own | r.get("options", {}),
                    r["paper"],
                    quoted="options" not in r,
                    method=r.get("method", ""),
                    own=tuple(r.get("options", {})),
                )
            )
            if check:
                build(method_module(rows[-1].method or method).Options, rows[-1].options)
        found[name] = Table(name, table["caption"], rows)
    return found


def table(method: str, name: str) -> Table:
    """One table, its options unchecked; ``OptionError`` with the nearest name for one that does not exist."""
    known = tables(method, check=False)
    if name not in known:
        raise unknown(f"table of {method}", name, list(known))
    return known[name]


def row(method: str, text: str) -> TableRow:
    """One row of a table, written ``table/row name``: ``table2/TS-LSTM*``; with the method that trains it.

    Raises:
        OptionError: unknown names, with the nearest, or a row that the paper only quotes.
    """
    of, slash, name = text.partition("/")
    known = tables(method, check=False)
    if not slash or of not in known:
        raise unknown(f"table of {method} in TABLE/ROW", text, [f"{t}/{r.name}" for t in known for r in known[t].rows])
    found = {r.name: r for r in known[of].rows}
    if name not in found:
        raise unknown(f"row of {of}", name, list(found))
    if found[name].quoted:
        raise OptionError(f"{name} of {of} is only quoted by the paper: it has no options to train with.")
    return replace(found[name], method=found[name].method or method)


def _rows(content: dict[str, Any], table: dict[str, Any]) -> list[dict[str, Any]]:
    """A table's rows; before them those of another that can be run, where it has them in common (``rows_of``)."""
    common = content["tables"][table["rows_of"]]["rows"] if "rows_of" in table else []
    return [*(r for r in common if "options" in r), *table.get("rows", [])]


def _read(method: str) -> dict[str, Any]:
    """The method's file; empty tables for a method that has none."""
    check_method(method)
    file = files("kdcache") / "presets" / f"{method}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"presets": {}, "tables": {}}

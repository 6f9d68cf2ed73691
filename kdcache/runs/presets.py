"""The papers' settings for each dataset, and the rows of their tables, from ``kdcache/presets/<method>.toml``.

There ``[presets.NAME]`` holds options of the method, ``[settings.NAME]`` settings of the run, and ``[tables.NAME]`` the
rows of a table. A table may declare its columns as streams: ``rgb = { stream = "i3d-rgb/mixed4a" }``; or as the late
fusion of others: ``both = { fuse = ["rgb", "flow"] }``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from typing import Any

from kdcache.errors import OptionError, unknown
from kdcache.methods import method as method_module
from kdcache.methods.declared import check_method
from kdcache.options import build
from kdcache.runs.config import SETTABLE
from kdcache.runs.preset_file import read_presets

RETRAIN = "retrain"
"""In a preset's settings, beside those of a run."""


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
    note: str = ""
    """What is not the same thing as in the paper."""
    of: str = ""
    """The row of the paper's table whose number in one ``column`` this is; empty in tables without stream columns."""
    column: str = ""
    fused: tuple[str, ...] = ()
    """Names of the rows whose class probabilities are averaged, run by run; nothing is trained."""
    paper_gain: float | None = None
    """The paper's difference to the table's reference row, where it prints that alone."""


@dataclass(frozen=True)
class StreamColumn:
    """A column of a paper's table that stands for a stream, or for several other columns fused."""

    stream: str = ""
    fuse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    name: str
    caption: str
    rows: list[TableRow]
    note: str = ""
    """What has to be known of its numbers; empty: nothing."""
    reference: str = ""
    """Name of the row that the paper compares the others with; empty: the first that can be run."""
    columns: Mapping[str, StreamColumn] = field(default_factory=dict)
    """Where every row is run once for each of several streams."""
    stream: str = ""
    """What rows read that name no stream, where others name one; empty: whichever stream of the cache will do."""
    metric: str = ""
    """What stream columns hold."""
    gains: bool = False
    """Whether they hold differences to the reference row instead of the metric itself."""
    retrain: bool = False
    """Whether its settings are chosen on held-out training clips and its runs then trained on all, see ``retrains``."""


def preset(method: str, name: str) -> dict[str, Any]:
    """The options of a named preset; ``OptionError`` with the nearest name for one that does not exist."""
    known = _read(method)["presets"]
    if name not in known:
        raise unknown("preset", name, sorted(known))
    return dict(known[name])


def settings(method: str, name: str) -> dict[str, Any]:
    """Settings of every run that a preset names, such as ``validation``."""
    return {key: value for key, value in _settings(method, name).items() if key != RETRAIN}


def retrains(method: str, name: str) -> bool:
    """Whether the paper trains on all training clips of a preset's dataset.

    A comparison then chooses settings on clips held out of them, and trains its final runs on all.
    """
    return bool(_settings(method, name).get(RETRAIN, False))


def training(method: str, name: str) -> dict[str, Any]:
    """What a single training with a preset is called with: its options and settings; ``retrain`` holds nothing out."""
    held = {"validation": 0.0} if retrains(method, name) else {}
    return preset(method, name) | held | settings(method, name)


def _settings(method: str, name: str) -> dict[str, Any]:
    preset(method, name)  # refuses an unknown one
    return dict(_read(method).get("settings", {}).get(name, {}))


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
        base, common = dict(content["presets"][table["preset"]]), settings(method, table["preset"])
        rows = []
        for r in _rows(content, table):
            own = {} if "method" in r else base
            rows.append(
                TableRow(
                    r["name"],
                    common | own | r.get("options", {}) if "options" in r else {},
                    r["paper"],
                    quoted="options" not in r,
                    method=r.get("method", ""),
                    note=r.get("note", ""),
                    own=tuple(r.get("options", {})),
                )
            )
            if check:
                options = {k: v for k, v in rows[-1].options.items() if k not in SETTABLE}
                build(method_module(rows[-1].method or method).Options, options)
        found[name] = Table(
            name,
            table["caption"],
            rows,
            note=table.get("note", ""),
            reference=table.get("reference", ""),
            columns={
                column: StreamColumn(its.get("stream", ""), tuple(its.get("fuse", ())))
                for column, its in table.get("columns", {}).items()
            },
            stream=table.get("stream", ""),
            metric=table.get("metric", ""),
            gains=table.get("gains", False),
            retrain=retrains(method, table["preset"]),
        )
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
    held = {"validation": 0.0} if known[of].retrain else {}
    return replace(found[name], options=held | found[name].options, method=found[name].method or method)


def _rows(content: dict[str, Any], table: dict[str, Any]) -> list[dict[str, Any]]:
    """A table's rows; before them those of another that can be run, where it has them in common (``rows_of``)."""
    common = content["tables"][table["rows_of"]]["rows"] if "rows_of" in table else []
    return [*(r for r in common if "options" in r), *table.get("rows", [])]


def _read(method: str) -> dict[str, Any]:
    """The method's file; empty tables for a method that has none."""
    check_method(method)
    file = files("kdcache") / "presets" / f"{method}.toml"
    with as_file(file) as path:
        return read_presets(path) if path.exists() else {"presets": {}, "tables": {}}

"""Which datasets there are, what each says of itself, and the manifest of one; pandas loads with the first dataset."""

from __future__ import annotations

import importlib
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdcache.datasets.elsewhere import likeness
from kdcache.datasets.options import coerce, options
from kdcache.errors import KdcacheError, ManifestError, OptionError, unknown
from kdcache.log import logger
from kdcache.options import OptionDescription
from kdcache.remote import Address, is_address, without_scheme
from kdcache.text import terms

if TYPE_CHECKING:
    import pandas as pd

MODULES = {
    "epic": "epic55",
    "epic55": "epic55",
    "epic100": "epic100",
    "rulstm": "rulstm",
    "jhmdb": "jhmdb",
    "jhmdb-joints": "jhmdb_joints",
    "thumos14": "thumos14",
    "ucf101": "ucf101",
    "hmdb51": "hmdb51",
    "kinetics": "kinetics",
    "ssv1": "ssv1",
    "sysu": "sysu",
    "ntu": "ntu",
    "msraction3d": "msraction3d",
    "gtea": "gtea",
    "egtea": "egtea",
    "folder": "folder",
}


def names() -> list[str]:
    """The known datasets; ``epic`` is another name of ``epic55``."""
    return list(MODULES)


def describe(name: str) -> str:
    """One dataset in one line."""
    return (dataset_module(name).__doc__ or "").partition("\n")[0]


@dataclass(frozen=True)
class DatasetDescription:
    """All of one dataset."""

    name: str
    text: str
    """What it is."""
    options: list[OptionDescription]
    layout: str
    """How its files lie below its root, one path a line."""

    def __str__(self) -> str:
        found = terms([(one.term, one.explanation) for one in self.options])
        return "\n".join([self.text, "", "Options:", found, "", "Layout:", self.layout])


def description(name: str) -> DatasetDescription:
    """One dataset in full; ``OptionError`` for an unknown name."""
    module = dataset_module(name)
    known = [OptionDescription(one.name, one.choices, one.shown, one.text) for one in options(module.manifest).values()]
    return DatasetDescription(name, (module.__doc__ or "").strip(), known, layout(name))


def explain(name: str) -> str:
    """One dataset in full: what it is, its options with their defaults, and the layout it expects."""
    return str(description(name))


def settings(name: str) -> dict[str, Any]:
    """Extraction settings that a dataset's protocol asks for, such as the frame rate of its clips."""
    return dict(getattr(dataset_module(name), "SETTINGS", {}))


def status(name: str, root: str | os.PathLike[str]) -> str:
    """What lies below a root of a dataset, in one line; says so where its annotations are absent."""
    try:
        rows = manifest_for(name, root)
    except KdcacheError as error:
        return str(error).partition("\n")[0]
    report = rows.attrs["report"]
    return f"{len(rows)} clips; {report.found} sources found, {len(report.missing)} missing, {len(report.extra)} extra"


def pairs_option(name: str) -> str | None:
    """The option with which a data set makes pairs of clips, as one types it; ``None`` where it has none."""
    known = options(dataset_module(name).manifest)
    return next((text for text in ("tau=1", "observe=0.4") if text.partition("=")[0] in known), None)


def layout(name: str) -> str:
    """How the files of a dataset lie below its root, one path a line."""
    return str(dataset_module(name).LAYOUT).strip("\n")


def manifest_for(name: str, root: str | os.PathLike[str], *, missing: str = "keep", **given: Any) -> pd.DataFrame:
    """The manifest of a dataset.

    Args:
        name: one of ``names()``.
        root: the data root, laid out as ``layout(name)`` says, or its address; sources are relative to it.
        missing: ``keep`` the rows of absent files (the extraction then lists them as failures) or ``drop`` them. Either
            way they are named in the report.
        given: the dataset's own options, typed; text is converted (``"1.5"``, ``"true"``, ``"ido,ira"``).

    Returns:
        A valid manifest, as from ``read_manifest``; ``.attrs["report"]`` is a ``DatasetReport`` of missing, extra and
        left-out files, which is also logged.

    Raises:
        OptionError: unknown dataset or option, absent root, absent annotations; of an address, options that need the
            content of videos.
        RemoteError: an address that cannot be listed.
        ManifestError: annotations that contradict themselves or are of another kind than the dataset's.
    """
    from kdcache.datasets.pairs import assert_no_leak
    from kdcache.manifest import REQUIRED, validate

    module = dataset_module(name)
    chosen = coerce(module.manifest, given, name)
    if missing not in ("keep", "drop"):
        raise OptionError(f"missing is {missing!r}: choose keep or drop.")
    place = without_scheme(os.fspath(root))
    with likeness(Address.of(place), name) if is_address(place) else nullcontext(Path(place)) as folder:
        if not folder.is_dir():
            raise OptionError(f"{folder}: no such folder; {name} expects below it:\n{layout(name)}")
        rows, report = module.manifest(folder, **chosen)
    if missing == "drop":
        absent = rows["source"].isin(report.missing)
        report = report.dropping({"the file is missing": rows.loc[absent, "clip_id"]})
        rows = rows[~absent]
    if not len(rows):
        raise ManifestError(place, [f"holds nothing of {name}; it expects:\n{layout(name)}", *report.lines()])
    result = validate(rows[[*REQUIRED, *(column for column in rows if column not in REQUIRED)]], name)
    assert_no_leak(result, name)
    for line in report.lines():
        logger.warning("%s: %s", name, line)
    result.attrs["report"] = report
    return result


def dataset_module(name: str) -> ModuleType:
    """The module of a dataset; ``OptionError`` for an unknown name."""
    if name not in MODULES:
        raise unknown("dataset", name, names())
    return importlib.import_module(f"kdcache.datasets.{MODULES[name]}")

"""The folder of a fit: what it holds, and whether it may be continued."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.backbones.metadata import SUFFIX, FitMetadata, read_metadata
from kdcache.data.prepare import absolute
from kdcache.engine.checkpoint import STATE, SUMMARY
from kdcache.errors import OptionError
from kdcache.files import PARTIAL, atomic
from kdcache.manifest import read_manifest, validate
from kdcache.methods.fit_options import Options, Settings, read_config
from kdcache.methods.fit_training import NAME
from kdcache.recipe import differences
from kdcache.store.failures import FILE, Failure, load_failures

CONFIG, METRICS, MANIFEST = "config.toml", "metrics.json", "manifest.csv"


@dataclass(frozen=True)
class Fit:
    """A finished fit."""

    path: Path
    """Its folder: ``config.toml``, ``metrics.csv``, ``metrics.json``, ``environment.json``, curves, the weights."""
    weights: Path
    """The file that ``extract --weights`` takes."""
    metrics: dict[str, Any]
    """``validation`` and ``test`` → metric in per cent, on whole clips; which epoch was kept."""
    failures: list[Failure] = field(default_factory=list)
    """Clips that could not be read and took no part; also in ``failures.csv``."""

    @classmethod
    def open(cls, folder: Path, backbone: str) -> Fit | None:
        """The fit in a folder, None while it has not finished."""
        path = folder / METRICS
        if not path.exists():
            return None
        return cls(folder, weights_path(folder, backbone), json.loads(path.read_text()), load_failures(folder))

    @property
    def facts(self) -> FitMetadata:
        """What the weights file says of itself."""
        facts = read_metadata(self.weights)
        assert facts is not None
        return facts

    def __str__(self) -> str:
        judged = [f"{s} {self.metrics[s]['top1']:.1f} %" for s in ("validation", "test") if s in self.metrics]
        text = f"{self.weights}: {', '.join(judged)} top-1 (epoch {self.metrics['epoch']} of {self.metrics['epochs']})"
        return text + (f"; {len(self.failures)} clips failed (see {self.path / FILE})." if self.failures else ".")


def weights_path(folder: Path, backbone: str) -> Path:
    """Where a fit leaves its weights."""
    return folder / f"{backbone}{SUFFIX}"


def free_folder(backbone: str) -> Path:
    """``fits/<backbone>-<n>``, the first that is free."""
    number = 0
    while (folder := Path("fits") / f"{backbone}-{number}").exists():
        number += 1
    return folder


def rows_of(manifest: pd.DataFrame | str | Path, root: str | Path, folder: Path) -> tuple[pd.DataFrame, str]:
    """The manifest's rows, and the file that ``config.toml`` names for them: rows are kept in the fit's own folder."""
    if not Path(root).is_dir():
        raise OptionError(f"{root}: the data root is not a folder; pass --root with the folder that holds the clips.")
    if isinstance(manifest, (str, Path)):
        return read_manifest(manifest, root), absolute(manifest)
    return validate(manifest, root=root), absolute(folder / MANIFEST)


def earlier(folder: Path, settings: Settings, options: Options) -> dict[str, Any]:
    """What the fit in ``folder`` had resolved, {} where there is none; ``OptionError`` when it is another fit."""
    if not (folder / CONFIG).exists():
        if folder.is_dir() and any(not p.name.endswith(PARTIAL) for p in folder.iterdir()):
            raise OptionError(f"{folder} exists and is no fit: choose another folder for out.")
        return {}
    old_settings, old_options, resolved = read_config(folder / CONFIG)
    if not any((folder / NAME / name).exists() for name in (STATE, SUMMARY)):
        return {}  # nothing has been trained yet: these settings replace the old ones
    changed = differences(
        {**asdict(old_settings), "options": asdict(old_options)}, {**asdict(settings), "options": asdict(options)}
    )
    if changed:
        raise OptionError(f"{folder} holds a fit with other settings ({'; '.join(changed)}): choose another out.")
    return resolved


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of facts."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")

"""One fit: a backbone trained on the clips of a manifest, in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.backbones import canonical
from kdcache.backbones.metadata import FitMetadata, file_name, read_metadata
from kdcache.data.training_data import TrainingData
from kdcache.engine.distributed import here
from kdcache.errors import OptionError
from kdcache.manifest import read_manifest, validate, write_manifest
from kdcache.methods.recognition_options import RecognitionOptions, with_recipe
from kdcache.options import build
from kdcache.roots import Root, Roots
from kdcache.runs.config import RunSettings, renamed
from kdcache.runs.prepare import absolute, prepare
from kdcache.runs.run import Run
from kdcache.runs.session import Session
from kdcache.runs.train import train_into
from kdcache.store.failures import FILE, Failure, load_failures

MANIFEST = "manifest.csv"
METHOD = "recognition"
SETTABLE = (
    "validation", "validation_seed", "decoder", "memory_fraction", "save_every", "eval_every", "deterministic", "hold",
    "centre_joint", "skeleton_fps", "array",
)  # fmt: skip
"""Settings that a fit takes beside the options; ``split_column`` and ``allow_absolute`` too."""
_DEFAULTS = {"memory_fraction": 0.5, "save_every": 120.0}  # decoded frames are large, and so are checkpoints


@dataclass(frozen=True)
class Fit:
    """A finished fit."""

    run: Run = field(compare=False)
    weights: Path
    """The file that ``extract --weights`` takes."""
    failures: list[Failure] = field(default_factory=list)
    """Clips that could not be read and took no part; also in ``failures.csv``."""

    @classmethod
    def open(cls, folder: str | Path) -> Fit:
        """The fit in a folder; ``OptionError`` where there is none that has finished."""
        run = Run(folder)
        if run.settings.method != METHOD or run.options.backbone is None:
            raise OptionError(f"{run.path} is a run of {run.settings.method} on features: name a folder of a fit.")
        weights = run.path / file_name(canonical(run.options.backbone))
        if not run.finished:
            raise OptionError(f"{run.path} has not finished: repeat its command to go on.")
        return cls(run, weights, load_failures(run.path))

    @property
    def path(self) -> Path:
        """Its folder, that of a run."""
        return self.run.path

    @property
    def metrics(self) -> dict[str, Any]:
        """``validation`` and ``test`` → metric in per cent on whole clips, with the weights that were kept.

        Also ``kept`` (best, last), ``epoch`` (of these weights) and ``epochs``.
        """
        found = self.run.metrics
        if "kept" in found:  # a fit of version 0.1
            return found
        kept = self.run.options.keep if found["selected_by"] else "last"
        scores = found[f"best@{found['selected_by']}" if kept == "best" else "last"]
        splits = {split: values[self.run.target] for split, values in scores.items()}
        return {"kept": kept, "epoch": found["epochs"][kept], "epochs": found["epochs"]["last"], **splits}

    @property
    def facts(self) -> FitMetadata:
        """What the weights file says of itself."""
        facts = read_metadata(self.weights)
        assert facts is not None
        return facts

    def to_json(self) -> dict[str, Any]:
        """Folder, weights file, result and failures, as plain data."""
        return {"path": self.path, "weights": self.weights, "metrics": self.metrics, "failures": self.failures}

    def __str__(self) -> str:
        metrics = self.metrics
        judged = [f"{s} {metrics[s]['top1']:.1f} %" for s in ("validation", "test") if s in metrics]
        text = f"{self.weights}: {', '.join(judged)} top-1 (epoch {metrics['epoch']} of {metrics['epochs']})"
        return text + (f"; {len(self.failures)} clips failed (see {self.path / FILE})." if self.failures else ".")


def fit_once(
    backbone: str,
    manifest: pd.DataFrame | str | Path,
    root: Root,
    folder: Path,
    seed: int,
    device: str,
    precision: str,
    options: dict[str, Any],
    workers: int | str = "auto",
) -> Fit:
    """Fit into a folder, or go on there; see ``kdcache.runs.fit.fit``."""
    backbone = canonical(backbone)
    options = renamed(METHOD, options)
    given = {name: options.pop(name) for name in ("split_column", "allow_absolute", *SETTABLE) if name in options}
    roots = Roots.of(root, given.get("allow_absolute", False)).check()
    rows, file = _rows(manifest, roots, folder)
    given |= {"manifest": file, "seed": seed, "device": device, "precision": precision}
    folders = [absolute(each) for each in roots.folders]
    given |= {"root": folders[0] if folders else None, "more_roots": folders[1:]}
    settings = build(RunSettings, {"method": METHOD, **_DEFAULTS, **given})
    wanted = build(RecognitionOptions, {"backbone": backbone, **options})
    with_recipe(wanted)  # refuses what cannot be fitted before anything is read

    def keep_rows() -> None:
        if file == absolute(folder / MANIFEST):
            write_manifest(rows, folder / MANIFEST, allow_absolute=roots.allow_absolute)

    def opened(before: dict[str, Any]) -> TrainingData:
        return prepare(settings, wanted, before, rows=rows, workers=workers)

    run = train_into(folder, settings, wanted, Session(), opened, keep_rows)
    if here().rank == 0 and not (folder / file_name(backbone)).exists() and "kept" not in run.metrics:  # as 0.1 did
        run.export()
    here().wait()
    return Fit.open(folder)


def _rows(manifest: pd.DataFrame | str | Path, roots: Roots, folder: Path) -> tuple[pd.DataFrame, str]:
    """The manifest's rows, and the file that ``config.toml`` names for them: rows are kept in the fit's own folder."""
    allowed = roots.allow_absolute
    if isinstance(manifest, (str, Path)):
        return read_manifest(manifest, roots.folders, allow_absolute=allowed), absolute(manifest)
    return validate(manifest, root=roots.folders, allow_absolute=allowed), absolute(folder / MANIFEST)

"""``kdcache.fit``: train a backbone on one's own clips, where nobody publishes weights.

It is the method ``recognition`` on inputs that are made from the sources on demand; the run exports a weights file that
``extract`` takes, which says which clips' labels it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from kdcache.backbones import canonical
from kdcache.backbones.metadata import FitMetadata, file_name, read_metadata
from kdcache.data.training_data import TrainingData
from kdcache.errors import OptionError
from kdcache.manifest import read_manifest, validate, write_manifest
from kdcache.methods.recognition_options import RecognitionOptions, with_recipe
from kdcache.options import build, parse_texts
from kdcache.roots import Root, Roots
from kdcache.runs.config import RunSettings, renamed
from kdcache.runs.config import load_config as load_run_config
from kdcache.runs.prepare import absolute, prepare
from kdcache.runs.run import METRICS, Run
from kdcache.runs.session import Session
from kdcache.runs.train import free_folder, train_into
from kdcache.store.failures import FILE, Failure, load_failures

MANIFEST = "manifest.csv"
METHOD = "recognition"
SETTABLE = (
    "validation", "validation_seed", "decoder", "memory_fraction", "save_every", "hold", "centre_joint", "skeleton_fps",
    "array",
)  # fmt: skip
"""Settings that ``parse_set`` takes beside the options; without a dataset, ``split_column`` too."""
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
        if not (run.path / METRICS).exists():
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


def fit(
    backbone: str,
    manifest: pd.DataFrame | str | Path,
    root: Root = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> Fit:
    """Train a backbone on the training clips of a manifest, or go on with a fit that was interrupted.

    Clips of split ``test`` are looked at once, at the end. Where the manifest has no validation clips, a share of the
    training clips is held out: the same that ``train`` holds out.

    Args:
        backbone: vacnn, tsm, tsm-resnet50-online, resnet34, i3d-rgb or resnext101.
        manifest: a manifest file, or rows as ``read_manifest`` returns them.
        root: the folder that ``source`` paths are relative to; or several, in which a source is looked for in turn.
        out: the fit's folder; default ``fits/<backbone>-<n>``, the first that is free. Where a fit with the same
            settings lies, it is continued, or returned as it is when it has finished.
        seed: of the first weights, the order, the augmentations and dropout.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``auto`` (fp32 on a CPU, bf16 on a GPU), ``fp32``, ``bf16``, ``fp16``. bf16 is two to three times as
            fast on CPUs that compute it.
        options: fields of ``RecognitionOptions``, and of ``RunSettings``: ``split_column``, ``validation``,
            ``decoder``, ``memory_fraction``, ``save_every``, ``allow_absolute`` (sources may be absolute paths), and
            of skeleton files that are arrays ``centre_joint``, ``skeleton_fps``, ``array``.

    Returns:
        The finished fit: ``.weights``, ``.metrics``, ``.facts``, ``.failures``, ``.path``, ``.run``.

    Raises:
        ManifestError: a bad manifest.
        OptionError: an unknown or unusable option, nothing to train on, a folder with another fit, a loss that is not
            finite.
        DeviceError: a device that is not there or too small.
        WeightsError: the checkpoint to start from cannot be found or is another network's.
        KeyboardInterrupt, SystemExit: interrupted by a signal; the same call goes on.
    """
    backbone = canonical(backbone)
    folder = Path(out) if out is not None else free_folder(Path("fits"), Path(file_name(backbone)).stem)
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
        return prepare(settings, wanted, before, rows=rows)

    run = train_into(folder, settings, wanted, Session(), opened, keep_rows)
    if not (folder / file_name(backbone)).exists() and "kept" not in run.metrics:  # 0.1 wrote them by itself
        run.export()
    return Fit.open(folder)


def _rows(manifest: pd.DataFrame | str | Path, roots: Roots, folder: Path) -> tuple[pd.DataFrame, str]:
    """The manifest's rows, and the file that ``config.toml`` names for them: rows are kept in the fit's own folder."""
    allowed = roots.allow_absolute
    if isinstance(manifest, (str, Path)):
        return read_manifest(manifest, roots.folders, allow_absolute=allowed), absolute(manifest)
    return validate(manifest, root=roots.folders, allow_absolute=allowed), absolute(folder / MANIFEST)


def parse_set(sets: Sequence[str], dataset: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``["lr=0.01", "protocol=view"]`` → options of a fit, typed, and the texts that are left for the dataset.

    ``dataset.NAME=VALUE`` is the dataset's even where a fit has an option of that name. Without a ``dataset`` all must
    be options of a fit. ``split`` is the dataset's, which may have one; the command has an option of its own for it.
    """
    every = get_type_hints(RunSettings) | {"hold": float}
    names = SETTABLE if dataset else ("split_column", *SETTABLE)
    hints = {name: every[name] for name in names} | get_type_hints(RecognitionOptions)
    if not dataset:
        hints["split"] = str
    others = [text for text in sets if dataset and text.partition("=")[0] not in hints]
    own = parse_texts(hints, [text for text in sets if text not in others])
    return renamed(METHOD, own), tuple(text.removeprefix("dataset.") for text in others)


def load_config(path: str | Path) -> dict[str, Any]:
    """The arguments of ``fit`` that a ``config.toml`` stands for: ``fit(**load_config(path), out=...)``."""
    values = load_run_config(path)
    if values.pop("method") != METHOD or values.get("manifest") is None:
        raise OptionError(f"{path} is not of a fit: name the config.toml in a folder that `kdcache fit` made.")
    folders = [] if values["root"] is None else [values["root"], *values["more_roots"]]
    values |= {"root": folders}
    unused = ("more_roots", "shards", "stream", "recipe", "weights", "tau_s", "keep_stages")
    return {name: value for name, value in values.items() if name not in unused}

"""``kdcache.fit``: train a backbone on one's own clips, where nobody publishes weights.

It is the method ``recognition`` on inputs that are made from the sources on demand; the run exports a weights file that
``extract`` takes, which says which clips' labels it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from kdcache.backbones import canonical
from kdcache.backbones.metadata import file_name
from kdcache.errors import OptionError
from kdcache.methods.recognition_options import RecognitionOptions
from kdcache.options import parse_texts
from kdcache.roots import Root
from kdcache.runs.config import RunSettings, renamed
from kdcache.runs.config import load_config as load_run_config
from kdcache.runs.cross_fit import CrossFit, cross_fit_into
from kdcache.runs.one_fit import METHOD, SETTABLE, Fit, fit_once
from kdcache.runs.train import free_folder

__all__ = ["CrossFit", "Fit", "fit", "load_config", "parse_set"]


def fit(
    backbone: str,
    manifest: pd.DataFrame | str | Path,
    root: Root = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cross_fit: int = 0,
    workers: int | str = "auto",
    **options: Any,
) -> Fit:
    """Train a backbone on the training clips of a manifest, or go on with a fit that was interrupted.

    Clips of split ``test`` are looked at once, at the end. Where the manifest has no validation clips, a share of the
    training clips is held out: the same that ``train`` holds out.

    Args:
        backbone: vacnn, vacnn-small, tsm, tsm-resnet50-online, resnet34, i3d-rgb or resnext101.
        manifest: a manifest file, or rows as ``read_manifest`` returns them.
        root: the folder that ``source`` paths are relative to; or several, in which a source is looked for in turn.
        out: the fit's folder; default ``fits/<backbone>-<n>``, the first that is free. Where a fit with the same
            settings lies, it is continued, or returned as it is when it has finished.
        seed: of the first weights, the order, the augmentations and dropout.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``auto`` (fp32 on a CPU, bf16 on a GPU), ``fp32``, ``bf16``, ``fp16``. bf16 is two to three times as
            fast on CPUs that compute it.
        cross_fit: K, a number of parts: K + 1 fits from the same first weights, one on all clips and, for each part of
            the labelled training clips, one on the others. ``extract`` then computes each of these clips with the
            network that has not seen it. 0: one fit. Parts are of whole groups, subjects or sources where there are so
            many, see ``kdcache.data.parts``.
        workers: threads that decode and augment the clips of a batch, which are the same whatever their number;
            ``auto``: one a core beside a GPU, 1 on a CPU, whose cores compute.
        options: fields of ``RecognitionOptions``, and of ``RunSettings``: ``split_column``, ``validation``,
            ``decoder``, ``memory_fraction``, ``save_every``, ``allow_absolute`` (sources may be absolute paths), and
            of skeleton files that are arrays ``centre_joint``, ``skeleton_fps``, ``array``.

    Returns:
        The finished fit: ``.weights``, ``.metrics``, ``.facts``, ``.failures``, ``.path``, ``.run``. With ``cross_fit``
        a ``CrossFit``, whose ``.weights`` is its folder, and ``.parts`` are the other fits.

    Raises:
        ManifestError: a bad manifest.
        OptionError: an unknown or unusable option, nothing to train on, a folder with another fit, a loss that is not
            finite.
        DeviceError: a device that is not there or too small.
        WeightsError: the checkpoint to start from cannot be found or is another network's.
        KeyboardInterrupt, SystemExit: interrupted by a signal; the same call goes on.
    """
    folder = Path(out) if out is not None else free_folder(Path("fits"), Path(file_name(canonical(backbone))).stem)
    if cross_fit:
        return cross_fit_into(folder, cross_fit, backbone, manifest, root, seed, device, precision, options, workers)
    return fit_once(backbone, manifest, root, folder, seed, device, precision, options, workers)


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
    unused = ("more_roots", "shards", "stream", "recipe", "weights", "tau_s", "keep_stages", "validation_as")
    return {name: value for name, value in values.items() if name not in unused}

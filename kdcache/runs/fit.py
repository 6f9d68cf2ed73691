"""Fitting a backbone on one's own clips, where nobody publishes weights: ``kdcache.fit``.

What comes out is a weights file that ``extract`` takes; it tells which clips' labels it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kdcache import __version__
from kdcache.backbones import canonical
from kdcache.backbones.metadata import FitMetadata, write
from kdcache.data.loader import feed, in_order
from kdcache.data.ondemand.examples import Examples, gather
from kdcache.data.prepare import absolute
from kdcache.engine import checkpoint
from kdcache.engine.log import Log, say
from kdcache.engine.loop import fit as train
from kdcache.errors import OptionError
from kdcache.manifest import write_manifest
from kdcache.methods.contract import HELD_OUT, Data, Items, Stage
from kdcache.methods.fit_networks import Classifier, start
from kdcache.methods.fit_options import Options, Settings, load_config, parse_set, resolve
from kdcache.methods.fit_training import JUDGE, stage
from kdcache.metrics.topk import measure
from kdcache.recipe import differences
from kdcache.runs.config import build, to_table, write_config
from kdcache.runs.environment import environment
from kdcache.runs.fit_folder import (
    CONFIG,
    MANIFEST,
    METRICS,
    Fit,
    earlier,
    free_folder,
    rows_of,
    weights_path,
    write_json,
)
from kdcache.runs.predictions import probabilities
from kdcache.runtime import autocast, free_bytes, reproducible, resolve_device, resolve_precision
from kdcache.store.failures import save_failures
from kdcache.workers import Interrupts

__all__ = ["Fit", "fit", "load_config", "parse_set"]


def fit(
    backbone: str,
    manifest: pd.DataFrame | str | Path,
    root: str | Path,
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
        root: the folder that ``source`` paths are relative to.
        out: the fit's folder; default ``fits/<backbone>-<n>``, the first that is free. Where a fit with the same
            settings lies, it is continued, or returned as it is when it has finished.
        seed: of the first weights, the order, the augmentations and dropout.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``auto`` (fp32 on a CPU, bf16 on a GPU), ``fp32``, ``bf16``, ``fp16``. bf16 is two to three times as
            fast on CPUs that compute it.
        options: fields of ``kdcache.methods.fit_options.Options``, and of its ``Settings``: ``split``, ``validation``,
            ``decoder``, ``hold``, ``save_every``.

    Returns:
        The finished fit: ``.weights``, ``.metrics``, ``.facts``, ``.failures``, ``.path``.

    Raises:
        ManifestError: a bad manifest.
        OptionError: an unknown or unusable option, nothing to train on, a folder with another fit, a loss that is not
            finite.
        DeviceError: a device that is not there or too small.
        WeightsError: the checkpoint to start from cannot be found or is another network's.
        KeyboardInterrupt, SystemExit: interrupted by a signal; the same call goes on.
    """
    backbone = canonical(backbone)
    folder = Path(out) if out is not None else free_folder(backbone)
    rows, file = rows_of(manifest, root, folder)
    given = {f.name: options.pop(f.name) for f in fields(Settings) if f.name in options}
    given |= {"backbone": backbone, "manifest": file, "root": absolute(root), "seed": seed}
    settings = build(Settings, given | {"device": device, "precision": precision})
    wanted = build(Options, options)
    resolved = resolve(backbone, wanted)
    before = earlier(folder, settings, wanted)
    if (finished := Fit.open(folder, backbone)) is not None:
        say(f"{folder}: this fit has finished; delete the folder to fit it anew")
        return finished

    job = _prepare(rows, settings, resolved, before)
    changed = differences(before, job.resolved) if before else []
    if changed:
        raise OptionError(f"{folder} cannot be continued, for its data or machine changed: {'; '.join(changed)}.")
    task = stage(job.module, job.examples, resolved)  # what cannot even begin leaves no folder behind
    folder.mkdir(parents=True, exist_ok=True)
    if file == absolute(folder / MANIFEST):
        write_manifest(rows, folder / MANIFEST)
    write_config(folder / CONFIG, settings, wanted, job.resolved)
    write_json(folder / "environment.json", environment(job.data.device))
    save_failures(folder, job.examples.failures)
    metrics = _train(task, job, folder, resolved.keep, settings.save_every)
    write(weights_path(folder, backbone), job.module.net.state_dict(), job.facts)
    write_json(folder / METRICS, metrics)
    for name in ("best", "last"):  # each as large as the file that was chosen from them
        (folder / task.name / f"{name}.safetensors").unlink()
    return Fit(folder, weights_path(folder, backbone), metrics, job.examples.failures)


@dataclass(frozen=True)
class _Job:
    """A fit that is ready to run."""

    examples: Examples
    data: Data
    module: Classifier
    facts: FitMetadata
    resolved: dict[str, Any]
    """What ``auto`` came to, as ``config.toml`` keeps it; a fit is only continued where it is the same."""


def _prepare(rows: pd.DataFrame, settings: Settings, options: Options, before: dict[str, Any]) -> _Job:
    """Read the clips and set the network to its start."""
    device = resolve_device(before.get("device", settings.device))
    precision = resolve_precision(before.get("precision", settings.precision), device)
    examples = gather(rows, settings, options, device, settings.hold * free_bytes(torch.device("cpu")), say)
    net, origin = start(settings.backbone, len(examples.classes), options, settings.seed, say)
    facts = _facts(settings, options, examples, origin)
    net.load_metadata(facts)

    def batches(items: Items, size: int, view: int) -> Any:
        return feed(items, in_order(items, size, view), device)

    data = Data(
        splits=examples.clips.splits,
        classes=examples.clips.classes,
        stream=examples.stream,
        layer="",
        seed=settings.seed,
        device=device,
        autocast=autocast(device, precision),
        batches=batches,
        backbone=dict,
        say=say,
    )
    resolved = {
        "device": str(device),
        "precision": precision,
        "samples": examples.fingerprint,
        "options": to_table(options),
    }
    return _Job(examples, data, Classifier(net, float(options.dropout or 0)).to(device), facts, resolved)


def _train(task: Stage, job: _Job, folder: Path, keep: str, save_every: float) -> dict[str, Any]:
    """Train, leave the weights to keep in the module, and judge them on whole held-out clips, once."""
    log, interrupts = Log(folder), Interrupts()
    with reproducible(job.data.device), interrupts.watch():
        summary = train(
            task, job.data, folder / task.name, log, interrupts, save_every, job.resolved["precision"] == "fp16"
        )
        log.show(summary["rows"])
        checkpoint.load_weights(folder / task.name / f"{keep}.safetensors", job.module)
        metrics: dict[str, Any] = {"kept": keep, "epochs": summary["epochs"]}
        metrics["epoch"] = summary["best_epoch"] if keep == "best" else summary["epochs"]
        for split in HELD_OUT:
            if job.examples.names(split):
                items = job.examples.items(split)
                scores = probabilities(job.module, job.data, items, task.batch_size)
                metrics[split] = measure(scores, items.fields["y"].numpy())
    return metrics


def _facts(settings: Settings, options: Options, examples: Examples, origin: FitMetadata | None) -> FitMetadata:
    """What the weights file will say; clips seen by weights from which the fit starts count too."""
    return FitMetadata(
        backbone=settings.backbone,
        num_classes=len(examples.classes),
        classes=tuple(examples.classes),
        limits=examples.limits,
        fitted_on=tuple(sorted({*(origin.fitted_on if origin else ()), *examples.names("train")})),
        validated_on=tuple(sorted({*(origin.validated_on if origin else ()), *examples.names(JUDGE)})),
        options={**to_table(options), "seed": settings.seed},
        version=__version__,
    )

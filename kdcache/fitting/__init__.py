"""Fitting a backbone on one's own clips, where nobody publishes weights: ``kdcache.fit``.

What comes out is a weights file that ``extract`` takes; it tells which clips' labels it has seen.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kdcache import __version__
from kdcache.backbones.fitted import SUFFIX, Facts, read_facts, write
from kdcache.device import resolve_device
from kdcache.errors import OptionError
from kdcache.evaluation.metrics import measure
from kdcache.evaluation.predictions import probabilities
from kdcache.extraction.failures import FILE, Failure, load_failures, save_failures
from kdcache.files import PARTIAL, atomic
from kdcache.fitting.examples import Examples, gather
from kdcache.fitting.networks import Classifier, start
from kdcache.fitting.options import Options, Settings, load_config, parse_set, read_config, resolve
from kdcache.fitting.training import JUDGE, NAME, stage
from kdcache.manifest import read_manifest, validate, write_manifest
from kdcache.methods.contract import HELD_OUT, Data, Items
from kdcache.recipe import differences
from kdcache.training import checkpoint
from kdcache.training.config import build, to_table, write_config
from kdcache.training.device import autocast, free_bytes, reproducible, resolve_precision
from kdcache.training.environment import environment
from kdcache.training.feed import feed, in_order
from kdcache.training.log import Log, say
from kdcache.training.loop import Interrupts
from kdcache.training.loop import fit as train_stage
from kdcache.training.prepare import absolute

__all__ = ["Fit", "fit", "load_config", "parse_set"]

CONFIG, METRICS, MANIFEST = "config.toml", "metrics.json", "manifest.csv"
SETTINGS = tuple(Settings.__dataclass_fields__)


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

    @property
    def facts(self) -> Facts:
        """What the weights file says of itself."""
        facts = read_facts(self.weights)
        assert facts is not None
        return facts

    def __str__(self) -> str:
        parts = [
            f"{split} {self.metrics[split]['top1']:.1f} %" for split in ("validation", "test") if split in self.metrics
        ]
        text = f"{self.weights}: {', '.join(parts)} top-1 (epoch {self.metrics['epoch']} of {self.metrics['epochs']})"
        return text + (f"; {len(self.failures)} clips failed, see {self.path / FILE}" if self.failures else "") + "."


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
        backbone: vacnn, tsm-resnet50, tsm-resnet50-online, resnet34, i3d-rgb or resnext101.
        manifest: a manifest file, or rows as ``read_manifest`` returns them.
        root: the folder that ``source`` paths are relative to.
        out: the fit's folder; default ``fits/<backbone>-<n>``, the first that is free. Where a fit with the same
            settings lies, it is continued, or returned as it is when it has finished.
        seed: of the first weights, the order, the augmentations and dropout.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
        precision: ``auto`` (fp32 on a CPU, bf16 on a GPU), ``fp32``, ``bf16``, ``fp16``. bf16 is two to three times as
            fast on CPUs that compute it.
        options: fields of ``kdcache.fitting.options.Options``, and of its ``Settings``: ``validation``, ``decoder``,
            ``hold``, ``save_every``.

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
    folder = Path(out) if out is not None else _free_folder(backbone)
    rows, file = _rows(manifest, root, folder)
    own = {name: options.pop(name) for name in SETTINGS if name in options}
    own |= {"backbone": backbone, "manifest": file, "root": absolute(root)}
    settings = build(Settings, own | {"seed": seed, "device": device, "precision": precision})
    wanted = build(Options, options)
    resolved = resolve(backbone, wanted)
    before = _earlier(folder, settings, wanted)
    weights = folder / f"{backbone}{SUFFIX}"
    if (folder / METRICS).exists():
        say(f"{folder}: this fit has finished; delete the folder to fit it anew")
        return Fit(folder, weights, json.loads((folder / METRICS).read_text()), load_failures(folder))

    chosen = resolve_device(before.get("device", settings.device))
    budget = settings.hold * free_bytes(torch.device("cpu"))
    examples = gather(rows, settings, resolved, chosen, budget, say)
    arithmetic = resolve_precision(before.get("precision", settings.precision), chosen)
    facts = {
        "device": str(chosen),
        "precision": arithmetic,
        "samples": examples.fingerprint,
        "options": to_table(resolved),
    }
    changed = differences(before, facts) if before else []
    if changed:
        raise OptionError(f"{folder} cannot be continued, for its data or machine changed: {'; '.join(changed)}.")
    net, origin = start(backbone, len(examples.classes), resolved, seed, say)
    module = Classifier(net, float(resolved.dropout or 0)).to(chosen)
    if examples.limits is not None:
        net.adopt(_facts(settings, examples, origin, facts))

    def batches(items: Items, size: int, view: int) -> Any:
        return feed(items, in_order(items, size, view), chosen)

    data = Data(
        splits=examples.clips.splits,
        classes=examples.clips.classes,
        stream=examples.stream,
        layer="",
        seed=seed,
        device=chosen,
        autocast=autocast(chosen, arithmetic),
        batches=batches,
        backbone=dict,
        say=say,
    )
    task = stage(module, examples, resolved)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(manifest, (str, Path)):
        write_manifest(rows, folder / MANIFEST)
    write_config(folder / CONFIG, settings, wanted, facts)
    _write_json(folder / "environment.json", environment(chosen))
    save_failures(folder, examples.failures)
    log, interrupts = Log(folder), Interrupts()
    with reproducible(chosen), interrupts.watch():
        summary = train_stage(
            task, data, folder / task.name, log, interrupts, settings.save_every, arithmetic == "fp16"
        )
        log.show(summary["rows"])
        checkpoint.load_weights(folder / task.name / f"{resolved.keep}.safetensors", module)
        metrics = {"kept": resolved.keep, "epoch": summary["best_epoch" if resolved.keep == "best" else "epochs"]}
        metrics |= {"epochs": summary["epochs"]} | _measured(module, data, examples, task.batch_size)
    write(weights, net.state_dict(), _facts(settings, examples, origin, facts))
    _write_json(folder / METRICS, metrics)
    for name in ("best", "last"):  # as large as the weights that were chosen from them
        (folder / task.name / f"{name}.safetensors").unlink()
    return Fit(folder, weights, metrics, examples.failures)


def _measured(module: Classifier, data: Data, examples: Examples, batch_size: int) -> dict[str, Any]:
    """Metrics of the held-out clips, on whole clips: {} of a split without labels."""
    measured = {}
    for split in HELD_OUT:
        if len(examples.used.get(split, ())):
            items = examples.items(split)
            measured[split] = measure(probabilities(module, data, items, batch_size), items.fields["y"].numpy())
    return measured


def _facts(settings: Settings, examples: Examples, origin: Facts | None, resolved: dict[str, Any]) -> Facts:
    """What the weights file will say; clips that were seen by the weights it started from count too."""
    before = origin.fitted_on if origin is not None else ()
    judged = origin.validated_on if origin is not None else ()
    return Facts(
        backbone=settings.backbone,
        num_classes=len(examples.classes),
        classes=tuple(examples.classes),
        limits=examples.limits,
        fitted_on=tuple(sorted({*before, *examples.names("train")})),
        validated_on=tuple(sorted({*judged, *examples.names(JUDGE)})),
        options={**resolved["options"], "seed": settings.seed, "precision": resolved["precision"]},
        version=__version__,
    )


def _rows(manifest: pd.DataFrame | str | Path, root: str | Path, folder: Path) -> tuple[pd.DataFrame, str]:
    """The manifest's rows, and the file that ``config.toml`` names for them."""
    if not Path(root).is_dir():
        raise OptionError(f"{root}: the data root is not a folder; pass --root with the folder that holds the clips.")
    if isinstance(manifest, (str, Path)):
        return read_manifest(manifest, root), absolute(manifest)
    return validate(manifest, root=root), absolute(folder / MANIFEST)


def _free_folder(backbone: str) -> Path:
    number = 0
    while (folder := Path("fits") / f"{backbone}-{number}").exists():
        number += 1
    return folder


def _earlier(folder: Path, settings: Settings, options: Options) -> dict[str, Any]:
    """What the fit in ``folder`` had resolved, {} where there is none; ``OptionError`` when it is another fit."""
    if not (folder / CONFIG).exists():
        if folder.is_dir() and any(not p.name.endswith(PARTIAL) for p in folder.iterdir()):
            raise OptionError(f"{folder} exists and is no fit: choose another folder for out.")
        return {}
    old_settings, old_options, resolved = read_config(folder / CONFIG)
    if not any((folder / NAME / name).exists() for name in (checkpoint.STATE, checkpoint.SUMMARY)):
        return {}  # nothing has been trained yet: these settings replace the old ones
    changed = differences(
        {**asdict(old_settings), "options": asdict(old_options)}, {**asdict(settings), "options": asdict(options)}
    )
    if changed:
        raise OptionError(f"{folder} holds a fit with other settings ({'; '.join(changed)}): choose another out.")
    return resolved


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")

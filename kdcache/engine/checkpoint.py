"""What a stage leaves on disk, always whole: the state to go on from, then the weights to use.

While a stage trains, ``<stage>/state.pt`` holds everything that continues it exactly: weights, optimiser, schedule,
scaler, torch's random numbers, the place in the epoch, the best weights so far, the log. When it is done, the folder
holds ``last.safetensors``, ``best.safetensors`` and ``summary.json``, and the state is gone. All is read without
running code from the files, and each holds its own digest (``kdcache.seals``), against which it is held first.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdcache.data.loader import steps_of_a_pass
from kdcache.errors import OptionError, WeightsError
from kdcache.files import atomic, link_or_copy, unwritable
from kdcache.methods.contract import VALIDATION, Stage
from kdcache.seals import BLANK, is_broken, is_sealed, read_json, seal, seal_zip, stated, write_json

STATE, SUMMARY = "state.pt", "summary.json"
LAST, BEST = "last.safetensors", "best.safetensors"

_SUMMARY = {"epochs": int, "selected_by": str, "rows": list}
"""What the summary of every version has."""


@dataclass
class TrainState:
    """How far a stage has come."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Steps done of the epoch under way."""
    steps: int = 0
    """Optimiser steps of all epochs."""
    seen: int = 0
    """Samples of these steps."""
    sums: dict[str, Any] = field(default_factory=dict)
    """Each loss term, summed over these samples (on the device while an epoch runs)."""
    best: float | None = None
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The log: one row an epoch."""


def save_state(
    folder: Path,
    stage: Stage,
    scaler: torch.amp.GradScaler,
    reached: TrainState,
    best: dict[str, Tensor],
    device: torch.device,
    seed: int | None = None,
) -> None:
    """Write ``state.pt`` atomically. Of a GPU's random numbers, those of the run's ``device`` alone."""
    state = {
        "model": stage.module.state_dict(),
        "optimizer": stage.optimizer.state_dict() if stage.optimizer is not None else {},
        "scheduler": stage.scheduler.state_dict() if stage.scheduler is not None else {},
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "best": best,
        "progress": asdict(reached),
        "of": _training(stage, seed),
    }
    path = folder / STATE
    with atomic(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # its own for a disk that is full
            raise unwritable(path, str(error).splitlines()[0]) from error
        seal_zip(temporary)


def _training(stage: Stage, seed: int | None) -> dict[str, Any]:
    """By what one training is told from another, however an option is called by then."""
    return {
        "stage": stage.name,
        "seed": seed,
        "epochs": stage.epochs,
        "batch_size": stage.batch_size,
        "examples": len(stage.train),
    }


def load_state(
    folder: Path, stage: Stage, scaler: torch.amp.GradScaler, device: torch.device, seed: int | None = None
) -> tuple[TrainState, dict[str, Tensor]] | None:
    """Continue from ``state.pt`` if there is one, on any GPU; ``OptionError`` when it is damaged or another run's."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        if is_broken(path):
            raise ValueError("it is not as it was written, its SHA-256 differs")
        if not is_sealed(path):  # of an earlier version; torch looks at no checksum
            _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        of = _training(stage, seed)
        if other := [f"{name} {its}" for name, its in state.get("of", {}).items() if of.get(name, its) != its]:
            raise ValueError(f"it is of another training: {', '.join(other)}")
        as_many = stage.train.steps in (None, steps_of_a_pass(stage.train, stage.batch_size))
        if "steps" not in state["progress"] and not as_many:
            raise ValueError("it is of version 0.1, whose epochs had another number of steps")
        stage.module.load_state_dict(state["model"])
        if stage.optimizer is not None:
            stage.optimizer.load_state_dict(state["optimizer"])
        if stage.scheduler is not None:
            stage.scheduler.load_state_dict(state["scheduler"])
        scaler.load_state_dict(state["scaler"])
        reached = TrainState(**state["progress"])
        torch.set_rng_state(state["rng"])
    except Exception as error:  # a damaged file raises almost anything
        raise OptionError(f"{path} cannot be continued from ({error}): delete it to train this stage again.") from error
    if device.type == "cuda" and state["cuda_rng"]:  # version 0.1 kept those of every GPU of the machine
        kept = state["cuda_rng"]
        torch.cuda.set_rng_state(kept[min(device.index or 0, len(kept) - 1)], device)
    return reached, state["best"]


def _check_archive(path: Path) -> None:
    """``ValueError`` where the members of an archive do not have their checksums, or are not as torch writes them."""
    with zipfile.ZipFile(path) as archive:
        bad = next((m.filename for m in archive.infolist() if m.compress_type or m.file_size != m.compress_size), None)
        if (bad := bad or archive.testzip()) is not None:
            raise ValueError(f"its member {bad} is damaged")


def save_weights(path: Path, state: dict[str, Tensor], epoch: int) -> None:
    """Write a state dict as safetensors, with the number of finished epochs."""
    with atomic(path) as temporary:
        about = {"epoch": f"{epoch} {BLANK}"}  # a second name would stand before or behind it by chance
        content = save({k: v.detach().cpu().contiguous() for k, v in state.items()}, about)
        temporary.write_bytes(content)  # ``save_file`` has a temporary file of its own, which a kill would leave
        seal(temporary)


def load_weights(path: Path, module: nn.Module) -> None:
    """Fill ``module`` from a safetensors file; ``WeightsError`` when it is missing, damaged or another network's."""
    if path.exists():
        _check_weights(path, load_summary(path.parent))
    _fill(path, module)


def load_finished(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """Fill the module of a stage that is trained, and return its summary; None of one that is not.

    Weights that are damaged are named (``WeightsError``), read or not; a state that was left when the stage was killed
    at its end is removed.
    """
    summary = load_summary(folder)
    if summary is None:
        return None
    sealed = is_sealed(folder / SUMMARY)  # not of version 0.1
    for path in (folder / LAST, folder / BEST):
        if path.exists():
            if sealed and not is_sealed(path):
                raise _not_as_written(path)
            _check_weights(path, summary)
    (folder / STATE).unlink(missing_ok=True)
    _fill(folder / handed_on(stage), stage.module)
    return summary


def _check_weights(path: Path, summary: Mapping[str, Any] | None) -> None:
    """``WeightsError`` for weights that are damaged, or that the summary beside them does not speak of."""
    if is_broken(path):
        raise _not_as_written(path)
    known = (summary or {}).get("weights")  # version 0.1 noted none
    if isinstance(known, dict) and known.get(path.name, stated(path)) != stated(path):
        raise WeightsError(f"{path} is of another training than {SUMMARY} beside it: {_remedy(path.parent)}.")


def _fill(path: Path, module: nn.Module) -> None:
    """``load_weights`` of a file that was checked."""
    if not path.exists():
        raise WeightsError(f"{path} is missing: the run has not finished; repeat its command to go on.")
    try:
        module.load_state_dict(load_file(path))
    except Exception as error:  # a damaged file raises almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} does not hold this network's weights: {reason}") from error


def _not_as_written(path: Path) -> WeightsError:
    return WeightsError(f"{path} is not as it was written, its SHA-256 differs: {_remedy(path.parent)}.")


def _remedy(folder: Path) -> str:
    """What to do about a damaged file of a finished stage."""
    return (
        f"restore it; or delete the folder {folder}, and metrics.json beside it, and repeat the run's command, which "
        "trains this stage again"
    )


def finish(folder: Path, stage: Stage, reached: TrainState, best: dict[str, Tensor]) -> None:
    """Leave the weights and the summary of a trained stage; the summary comes last and says that it is done.

    Without validation clips nothing selects: there is no best epoch and no file of its weights.
    """
    selected_by = VALIDATION if VALIDATION in stage.eval_sets else ""
    save_weights(folder / LAST, stage.module.state_dict(), reached.epoch)
    if selected_by and reached.best_epoch in (0, reached.epoch):
        link_or_copy(folder / LAST, folder / BEST)
    elif selected_by:
        save_weights(folder / BEST, best or stage.module.state_dict(), reached.best_epoch)
    names = (LAST, BEST) if selected_by else (LAST,)
    content = {
        "epochs": reached.epoch,
        "steps": reached.steps,
        "best_epoch": (reached.best_epoch or reached.epoch) if selected_by else None,
        "selected_by": selected_by,
        "monitor": stage.monitor,
        "best": reached.best,
        "handed_on": handed_on(stage),
        "weights": {name: stated(folder / name) for name in names},
    }
    write_json(folder / SUMMARY, {**content, "rows": reached.rows})
    (folder / STATE).unlink(missing_ok=True)


def handed_on(stage: Stage) -> str:
    """The file with the weights with which the stages after this one go on."""
    return BEST if stage.patience else LAST


def load_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a trained stage, None for one that is not; ``OptionError`` for one that is damaged."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary = read_json(path, _remedy(folder))
    if lacking := [name for name, kind in _SUMMARY.items() if not isinstance(summary.get(name), kind)]:
        raise OptionError(f"{path} is damaged (it has no {lacking[0]}): {_remedy(folder)}.")
    if "select" in summary:  # as version 0.1 called it
        summary["monitor"] = summary.pop("select")
    return summary

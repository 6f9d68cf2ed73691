"""The steps of the demo: render, extract, train, draw."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.demo.scene import CLASSES, make_dataset
from kdcache.errors import WeightsError
from kdcache.log import logger, quiet, show_log

FEATURES, MOTION = ("i3d-rgb/mixed4a",), ("rgb", "flow", "idt")
SETTINGS: dict[str, Any] = {"size": 112, "frames": 16}  # small enough for two cores
SHORT_SIDE = 96  # of what has no backbone
SHOWN = 2  # videos of each class whose motion is extracted too: it is looked at here, not trained on
HEAD: dict[str, Any] = {"head": "light", "epochs": 40, "lr": 0.05, "dropout": 0.2, "milestones": (25, 35)}
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("recognition: sees the action", {"network": "recognition"}),
    ("anticipation, no distillation", {"loss_d": "none"}),
    ("anticipation, distilled (both directions)", {"loss_d": "both"}),
)
SEEDS = 5


def run_demo(out: str | os.PathLike[str] = "demo", seed: int = 0, clips_per_class: int = 24) -> Path:
    """Render a data set, extract four streams, train with and without distillation, draw a contact sheet.

    Args:
        out: folder for everything: ``data/``, ``cache/``, ``runs/``, ``sheet.png``. What is there is not redone.
        seed: of the data set and of training.
        clips_per_class: videos for each of the six classes.

    Returns:
        The contact sheet.
    """
    from kdcache.extraction.run import extract
    from kdcache.report.sheet import show

    show_log()
    out = Path(out)
    begin = time.monotonic()
    logger.info(f"1. Rendering {clips_per_class * len(CLASSES)} short first-person videos: {', '.join(CLASSES)}.")
    manifest = make_dataset(out / "data", clips_per_class, seed)

    weights, words = choose_weights()
    logger.info(f"2. Extracting {', '.join(FEATURES)} {words};")
    logger.info(f"   {extract(manifest, out / 'data', out / 'cache', FEATURES, weights, **SETTINGS)}")
    shown = manifest[manifest["pair"].str[-2:].astype(int) < SHOWN].reset_index(drop=True)
    logger.info(f"   and {', '.join(MOTION)} of {SHOWN} videos a class;")
    logger.info(f"   {extract(shown, out / 'data', out / 'cache', MOTION, short_side=SHORT_SIDE)}")

    logger.info(f"3. Training light heads on the cached features, {SEEDS} seeds a row.")
    table = [(name, _accuracies(out, options, number, seed)) for number, (name, options) in enumerate(ROWS)]
    held_out = sum((manifest["split"] == "validation") & (manifest["role"] == "observed"))
    logger.info("")
    logger.info(f"   {f'top-1 on {held_out} held-out clips':45s} mean ± std over {SEEDS} seeds")
    for name, accuracies in table:
        logger.info(f"   {name:45s} {np.mean(accuracies):5.1f} ± {np.std(accuracies, ddof=1):.1f} %")
    logger.info(f"   {'guessing':45s} {100 / len(CLASSES):5.1f} %")
    logger.info(f"   This is {words.removeprefix('with ')}; a difference within one std says nothing.")

    sheet = show(out / "cache", "push-left-00-action", out / "sheet.png")
    logger.info("")
    logger.info(f"4. Contact sheet: {sheet}   (all in {time.monotonic() - begin:.0f} s)")
    logger.info(f"   Next: kdcache inspect {out / 'cache'}   or your own data: kdcache extract --help")
    return sheet


def choose_weights() -> tuple[dict[str, str], str]:
    """The published I3D weights where they are here or can be fetched, random ones otherwise, and how to say so."""
    from kdcache.backbones.weights import resolve

    try:
        resolve("i3d-rgb")
    except WeightsError as error:
        logger.info(f"   No published weights: {error}")
        return {"i3d-rgb": "random:0"}, "with a RANDOM backbone"
    return {}, "with the published I3D weights"


def _accuracies(out: Path, options: dict[str, Any], number: int, seed: int) -> list[float]:
    """Held-out top-1 of one row, one number a seed."""
    from kdcache.runs.session import Session
    from kdcache.runs.train import train

    found = []
    for s in range(seed, seed + SEEDS):
        folder = out / "runs" / f"{number}-{s}"
        with quiet():  # fifteen runs would tell the same things fifteen times
            run = train("anticipation", out / "cache", s, folder, session=Session(bars=False), **HEAD, **options)
        found.append(float(run.metrics["last"]["validation"]["label"]["top1"]))
    return found

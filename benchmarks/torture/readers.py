"""What reads the files of a cache and of a run: everything that is served, as digests, or what was said instead."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import kdcache
from kdcache.errors import KdcacheError
from kdcache.runs.run import Run
from kdcache.store import Cache, verify
from torture.jobs import HEAD, cache_result, run_result

Served = dict[str, str]


class Named(Exception):
    """A reader refused, in one sentence."""


class WrongTensor(Exception):
    """Something was served that could be known to be wrong."""


def cache_served(folder: Path) -> Served:
    """Arrays, frames and origin of every clip, and the manifest's rows, as ``Cache`` gives them."""
    cache = Cache(folder)
    clips = cache.clips["clip_id"].tolist()
    found = {"rows": cache.clips.to_csv(index=False), "streams": " ".join(sorted(cache.streams))}
    for stream in cache.streams:
        there = [clip for clip, has in zip(clips, cache.has(stream), strict=True) if has]
        for clip, array, frames in zip(there, cache.read(stream, there), cache.frames(stream, there), strict=True):
            found[f"{stream} of {clip}"] = digest(np.asarray(array)) + digest(np.asarray(frames))
    for clip, origin in zip(clips, cache.origin(clips) if cache.streams else [], strict=False):
        found[f"origin of {clip}"] = json.dumps(origin, sort_keys=True)
    return found


def digest(array: Any) -> str:
    """Of shape, type and values."""
    values = np.ascontiguousarray(array)
    return hashlib.sha256(f"{values.dtype}{values.shape}".encode() + values.tobytes()).hexdigest()[:24]


def is_verified(folder: Path) -> str:
    """What ``verify`` names; empty where it says that all is as it was written."""
    try:
        report = verify(folder, progress=False)
    except KdcacheError as error:
        return str(error)
    return "" if report.ok else str(report)


def resumed(shards: Path, out: Path) -> Served:
    """A training on a cache, from nothing or from the state in ``out``."""
    kdcache.train("early", shards, out=out, device="cpu", save_every=0.0, **HEAD)
    return run_result(out.parent)


def trained(shards: Path) -> Served:
    """A training on a cache, in a folder beside it."""
    folder = shards.parent / "trained"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return resumed(shards, folder / "out")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def extracted(folder: Path, videos: Path) -> Served:
    """An extraction that finds all done, unless its side files mislead it."""
    kdcache.extract(videos / "clips.csv", videos, folder, ["rgb"], device="cpu", short_side=32, bar=False)
    return cache_result(folder.parent)


def run_served(folder: Path) -> Served:
    """What a finished run answers: its result, its history, metrics and probabilities computed anew."""
    run = Run(folder)
    found = {"metrics": json.dumps(run.metrics, sort_keys=True), "config": json.dumps(run.config, default=str)}
    found["evaluated"] = json.dumps(kdcache.evaluate(folder), sort_keys=True, default=str)
    found["history"] = run.history.to_csv()
    found["recipes"] = json.dumps(run.recipes, sort_keys=True)
    for which in ("last", "best"):
        found[f"predictions of {which}"] = run.predictions(which=which).to_csv()
        weights = run.predictor(which).module.state_dict()
        found[f"weights of {which}"] = " ".join(f"{name} {digest(value)}" for name, value in weights.items())
    return found


def asked(reader: Callable[..., Served], *arguments: Path) -> Served:
    """What a reader serves; ``Named`` where it refuses."""
    try:
        return reader(*arguments)
    except KdcacheError as error:
        raise Named(str(error)) from error

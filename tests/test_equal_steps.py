"""Rows of anticipation take the same number of optimiser steps, and share what they read."""

from __future__ import annotations

import json

import pairs_cache
import pytest

from kdcache.data.stream import CachedStream
from kdcache.runs import session as sessions
from kdcache.runs.train import Session, train

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"head": "light", "width": 8, "epochs": 2, "milestones": (), "batch_size": 7, "device": "cpu"}
ROWS = {
    "S": {"data": "S", "loss_d": "none"},
    "S, L_d": {"data": "S", "loss_d": "both"},
    "S+now": {"data": "S+now", "loss_d": "none"},
    "S+U": {"data": "S+U", "loss_d": "none"},
    "S+U, L_d": {"data": "S+U", "loss_d": "both"},
    "half of the labels": {"data": "S+U", "loss_d": "both", "label_fraction": 0.5},
    "half of the labels alone": {"data": "S", "loss_d": "none", "label_fraction": 0.5},
    "R": {"network": "recognition"},
    "R early": {"network": "recognition-early"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pairs_cache.cache(tmp_path_factory.mktemp("cache"), 40, 12, views=2)


@pytest.fixture
def loads(monkeypatch):
    """The streams that were loaded into memory whole."""
    found, original = [], CachedStream._load
    monkeypatch.setattr(CachedStream, "_load", lambda self: found.append(self.name) or original(self))
    return found


def test_every_row_takes_as_many_steps_and_reads_the_stream_once(shards, tmp_path, loads):
    session, opened = Session(bars=False), set()
    for name, options in ROWS.items():
        run = train("anticipation", shards, out=tmp_path / name, session=session, **QUICK | options)
        for stage in {path.parent for path in run.path.rglob("summary.json")}:
            summary = json.loads((stage / "summary.json").read_text())
            assert summary["steps"] == 2 * -(-30 // 7), (name, stage.name)  # 30 labelled pairs of split train
        opened |= {id(stream) for stream in run.training_data.data.inputs.values()}
    assert len(opened) == 1
    assert loads == [pairs_cache.STREAM]  # the maps of the light head; the maps as they are stay in the shards
    (stream,) = session._pool.streams.values()
    assert [part.resident for part in stream._mapped.values()] == [True]
    assert stream._resident is None
    (maps,) = stream._mapped.values()
    assert session._pool.nbytes - session._pool.budget.free_bytes == maps.nbytes  # counted once
    assert run.resolved["budget"] == session._pool.nbytes


def test_another_cache_takes_the_place_of_the_first_in_memory(shards, tmp_path, loads):
    session = Session(bars=False)
    other = pairs_cache.cache(tmp_path / "cache", 24)
    for number, folder in enumerate((shards, other, other)):
        train("anticipation", folder, out=tmp_path / str(number), session=session, **QUICK | ROWS["S"])
    assert len(loads) == 2
    assert len(session._pool.streams) == 1


def test_runs_of_other_seeds_open_the_cache_once(shards, tmp_path, monkeypatch):
    asked, original = [], sessions.prepare
    monkeypatch.setattr(sessions, "prepare", lambda *a, **more: asked.append(more) or original(*a, **more))
    session = Session(bars=False)
    for seed in (1, 2):
        run = train("anticipation", shards, out=tmp_path / str(seed), session=session, seed=seed, **QUICK | ROWS["S"])
        assert run.training_data.data.seed == seed
    assert len(asked) == 1

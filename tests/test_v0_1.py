"""What kdcache 0.1.0 wrote opens, and gives the same numbers when it is made again (``data/v0_1/make.py``)."""

from __future__ import annotations

import importlib.util
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from copies import copy_tree

import kdcache
from kdcache.runs.run import Run

DATA = Path(__file__).parent / "data" / "v0_1"
RTOL = 1e-5  # another CPU adds in another order; to the bit on one machine: make.py --compare

pytestmark = pytest.mark.usefixtures("one_thread")


def _make():
    spec = importlib.util.spec_from_file_location("make_v0_1", DATA / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()
RECORDED = json.loads((DATA / "runs.json").read_text())
ARRAYS = json.loads((DATA / "arrays.json").read_text())
SAME = [name for name, case in make.CASES.items() if "changed" not in case and "heavy" not in case]


@pytest.fixture
def copy(tmp_path):
    """All of it where it may be written to; the paths in the runs' configurations are absolute, as runs have them."""
    folder = copy_tree(DATA, tmp_path / "v0_1")
    for config in (folder / "runs").glob("*/config.toml"):
        text = config.read_text()
        for place in ("caches/", "sources/"):
            text = text.replace(f'"{place}', f'"{folder}/{place}').replace(
                'root = "sources"', f'root = "{folder}/sources"'
            )
        config.write_text(text)
    return folder


def assert_close(before, after, where=""):
    """Two trees of plain values; a later version may have more names."""
    if isinstance(before, dict):
        for key, value in before.items():
            assert key in after, f"{where}/{key} is gone"
            assert_close(value, after[key], f"{where}/{key}")
    elif isinstance(before, list):
        assert len(before) == len(after), where
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_close(one, other, f"{where}/{i}")
    elif isinstance(before, float):
        assert after == pytest.approx(before, rel=RTOL, abs=1e-9), where
    else:
        assert after == before, where


@pytest.mark.parametrize("cache", sorted(ARRAYS))
def test_arrays_of_an_old_cache_are_read_as_they_were(cache):
    found = make.arrays(DATA / "caches" / cache)
    assert {stream: set(found[stream]) for stream in found} == {s: set(clips) for s, clips in ARRAYS[cache].items()}
    assert found == ARRAYS[cache]


def test_an_old_cache_verifies_and_extraction_finds_nothing_to_do(copy):
    """The recipes have the digests that they had, and the sources the fingerprints."""
    cache = copy / "caches" / "extracted"
    report = kdcache.Cache(cache).verify()
    assert report.ok
    for report in make.extract(copy, cache):
        assert (report.cached, report.extracted, report.failures) == (8, 0, [])
    assert make.arrays(cache) == ARRAYS["extracted"]


@pytest.mark.parametrize("name", SAME)
def test_training_gives_the_numbers_that_it_gave(name, tmp_path):
    before = make.expected(name, deepcopy(RECORDED[name]))
    after, answers = make.run_case(name, DATA, tmp_path / "run")
    del before["weights"]  # to the bit
    before["options"].pop("tau", None) if "data" in before["options"] else None  # of pairs: a setting of the run now
    assert_close(before, after)
    with np.load(DATA / "answers.npz") as file:
        recorded = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    assert recorded.keys() == answers.keys()
    for key, values in recorded.items():
        np.testing.assert_allclose(answers[key], values, rtol=RTOL, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("method", ["anticipation", "early"])
def test_an_old_run_opens_and_answers(copy, method):
    name = next(case for case, kept in make.KEPT.items() if kept == method)
    run = Run(copy / "runs" / method)
    assert_close(RECORDED[name]["metrics"]["last"], run.metrics["last"])
    assert make.history(run.path / "metrics.csv") == RECORDED[name]["history"]
    assert len(run.history) == len(RECORDED[name]["history"])
    with np.load(DATA / "answers.npz") as file:
        for which in ("last", "best"):
            for split in run.metrics["last"]:
                answers = run.predict(split, which).to_numpy(np.float32)
                np.testing.assert_allclose(answers, file[f"{name}/{split}/{which}"], rtol=RTOL, atol=1e-6)
    again = run.evaluate()
    assert_close(RECORDED[name]["metrics"]["last"], again["last"])


def test_an_old_configuration_trains_the_same_run_again(copy, tmp_path):
    from kdcache.runs.config import load_config

    arguments = load_config(copy / "runs" / "anticipation" / "config.toml")
    run = kdcache.train(**arguments, out=tmp_path / "again")
    assert_close(RECORDED["anticipation-S"]["history"], make.history(run.path / "metrics.csv"))


def test_an_old_fit_is_known_as_finished(copy):
    """The same call returns it; its weights are too large to be kept here."""
    case = make.CASES["fit-vacnn"]
    options = {key: value for key, value in case.items() if key not in make.MARKS}
    root = copy / "sources"
    fit = kdcache.fit("vacnn", root / case["manifest"], root, copy / "runs" / "fit", device="cpu", **options)
    assert_close(RECORDED["fit-vacnn"]["metrics"], fit.metrics)

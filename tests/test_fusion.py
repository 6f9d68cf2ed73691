"""Fusing runs: the mean of their probabilities, on the examples that they share, whatever the method."""

from __future__ import annotations

import json
from pathlib import Path

import clips_cache
import numpy as np
import pairs_cache
import pytest
from click.testing import CliRunner

from kdcache.cli import main
from kdcache.errors import OptionError
from kdcache.metrics.topk import top_k
from kdcache.runs.fuse import fuse
from kdcache.runs.train import Run, train

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 2, "milestones": (2,), "batch_size": 16, "head": "light", "width": 16, "device": "cpu"}
EARLY = {"epochs": 2, "milestones": (2,), "batch_size": 8, "hidden": 8, "alpha": 0, "beta": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    folder = tmp_path_factory.mktemp("fusion")
    cache = pairs_cache.cache(folder / "cache", 40)
    return [train("anticipation", cache, seed=s, out=folder / f"run-{s}", loss_d="none", **QUICK) for s in (0, 1)]


@pytest.fixture(scope="module")
def early(tmp_path_factory) -> list[Run]:
    """Two runs on clips of five levels, with validation and test clips."""
    folder = tmp_path_factory.mktemp("early")
    cache = clips_cache.cache(folder / "cache", train=24, validation=9, test=12, noise=4.0)
    return [train("early", cache, seed=s, out=folder / f"early-{s}", **EARLY) for s in (0, 1)]


def evaluate(*folders: Path) -> dict[str, dict[str, float]]:
    """What ``kdcache evaluate`` prints."""
    result = CliRunner().invoke(main, ["evaluate", *map(str, folders)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*folders: Path) -> str:
    result = CliRunner().invoke(main, ["evaluate", *map(str, folders)])
    assert result.exit_code == 1, result.output
    return result.stderr


def test_a_run_fused_with_itself_is_itself(runs, early):
    for run in (runs[0], early[0]):
        expected = {split: targets["label"] for split, targets in run.metrics["last"].items()}
        fused = fuse([run, run.path])
        assert set(fused) == set(expected)
        for split, values in fused.items():
            assert values == pytest.approx(expected[split])


def test_two_runs_answer_with_the_mean_of_their_probabilities(runs):
    tables = [run.predictions().set_index("pair") for run in runs]
    classes = [c for c in tables[0].columns if c not in ("clip_id", "split", "label")]
    split = tables[0]["split"].iloc[0]
    here = tables[0][(tables[0]["split"] == split) & tables[0]["label"].notna()]
    mean = (tables[0].loc[here.index, classes] + tables[1].loc[here.index, classes]).to_numpy(np.float64) / 2
    y = np.array([classes.index(int(v)) for v in here["label"]])
    printed = evaluate(*[run.path for run in runs])
    assert printed == {split: pytest.approx(fuse(runs, split)[split])}
    assert printed[split]["top1"] == pytest.approx(top_k(mean, y, 1))


def test_early_recognition_is_fused_level_by_level(early):
    printed = evaluate(*[run.path for run in early])
    assert list(printed) == ["validation", "test"]
    assert list(printed["test"]) == ["auc", "auc_trapezoid", "acc20", "acc40", "acc60", "acc80", "acc100"]
    tables = [run.predictions() for run in early]
    tested = [t[t["split"] == "test"].set_index(["observed", "clip_id"]) for t in tables]
    curve = []
    for observed in (20, 40, 60, 80, 100):
        a, b = (t.loc[observed] for t in tested)
        mean = ((a[[0, 10, 20]] + b.loc[a.index, [0, 10, 20]]) / 2).to_numpy()
        curve.append(top_k(mean, a["label"].to_numpy(int) // 10))
        assert printed["test"][f"acc{observed}"] == pytest.approx(curve[-1])
    assert printed["test"]["auc"] == pytest.approx(np.mean(curve))
    assert printed["test"]["auc"] not in [run.metrics["last"]["test"]["label"]["auc"] for run in early]


def test_runs_on_other_examples_are_refused(runs, early, tmp_path):
    other = pairs_cache.cache(tmp_path / "cache", 24)
    run = train("anticipation", other, out=tmp_path / "run", loss_d="none", **QUICK)
    assert "holds out other pairs than" in refused(runs[0].path, run.path)
    fewer = clips_cache.cache(tmp_path / "fewer", train=24, validation=9, test=6)
    run = train("early", fewer, out=tmp_path / "early", **EARLY)
    assert f"{run.path} holds out other clips than {early[0].path}" in refused(early[0].path, run.path)
    with pytest.raises(OptionError, match="no labelled pairs of split 'nowhere'"):
        fuse(runs, "nowhere")
    with pytest.raises(OptionError, match="at least one run"):
        fuse([])


def test_runs_of_other_targets_classes_kinds_and_levels_are_refused(runs, early, tmp_path):
    assert f"{early[0].path} predicts clips, {runs[0].path} pairs" in refused(runs[0].path, early[0].path)
    verbs = train("anticipation", runs[0].settings.shards, out=tmp_path / "v", loss_d="none", target="verb", **QUICK)
    assert f"{verbs.path} predicts verb, {runs[0].path} label: fuse runs of one target" in refused(
        runs[0].path, verbs.path
    )
    table = clips_cache.rows(train=24, validation=9, test=12)
    made = {"levels": table, "classes": table.assign(label=table["label"] + 1)}
    for name, rows in made.items():
        vectors = clips_cache.arrays(table, levels=4 if name == "levels" else clips_cache.LEVELS)
        cache = clips_cache.write(tmp_path / name, rows, {clips_cache.STREAM: vectors})
        run = train("early", cache, out=tmp_path / f"{name}-run", **EARLY)
        levels = "answers at other levels or times (25, 50, 75, 100) than"
        words = {"levels": levels, "classes": "predicts other classes than"}[name]
        assert f"{run.path} {words}" in refused(early[0].path, run.path)

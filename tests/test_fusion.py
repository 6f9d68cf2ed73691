"""Fusing runs: the mean of their probabilities, on the pairs that they share."""

from __future__ import annotations

import numpy as np
import pairs_cache
import pytest

from kdcache.errors import OptionError
from kdcache.metrics.topk import top_k
from kdcache.runs.fuse import fuse
from kdcache.runs.train import train

QUICK = {"epochs": 2, "milestones": (2,), "batch_size": 16, "head": "light", "width": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusion")
    cache = pairs_cache.cache(folder / "cache", 40)
    return [train("anticipation", cache, seed=s, out=folder / f"run-{s}", loss_d="none", **QUICK) for s in (0, 1)]


def test_a_run_fused_with_itself_is_itself(runs):
    expected = {split: targets["label"] for split, targets in runs[0].metrics["last"].items()}
    for split, values in fuse([runs[0], runs[0].path]).items():
        assert values == pytest.approx(expected[split])


def test_two_runs_answer_with_the_mean_of_their_probabilities(runs):
    tables = [run.predictions().set_index("pair") for run in runs]
    classes = [c for c in tables[0].columns if c not in ("clip_id", "split", "label")]
    split = tables[0]["split"].iloc[0]
    here = tables[0][(tables[0]["split"] == split) & tables[0]["label"].notna()]
    mean = (tables[0].loc[here.index, classes] + tables[1].loc[here.index, classes]).to_numpy(np.float64) / 2
    y = np.array([classes.index(int(v)) for v in here["label"]])
    assert fuse(runs, split)[split]["top1"] == pytest.approx(top_k(mean, y, 1))


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    other = pairs_cache.cache(tmp_path / "cache", 24)
    run = train("anticipation", other, out=tmp_path / "run", loss_d="none", **QUICK)
    with pytest.raises(OptionError, match=r"other (pairs|classes)"):
        fuse([runs[0], run])
    with pytest.raises(OptionError, match="no labelled pairs of split 'nowhere'"):
        fuse(runs, "nowhere")

"""Early recognition on real shards: every mode trains and answers, resumes exactly, shares teachers, refuses leaks."""

from __future__ import annotations

import json

import clips_cache
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kdcache.engine import loop
from kdcache.errors import OptionError
from kdcache.runs.session import Session
from kdcache.runs.train import Run, train

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {
    "epochs": 4, "milestones": (3,), "batch_size": 12, "hidden": 16, "teacher_hidden": 8, "lr": 0.1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """36 labelled and 12 unlabelled training clips, two views."""
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), views=2, train=36, validation=12, test=12, unlabelled=12)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return Session(stages=tmp_path_factory.mktemp("stages"), bars=False)


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """An uninterrupted run with everything switched on."""
    return train("early", shards, out=tmp_path_factory.mktemp("runs") / "whole", label_fraction=0.5, **QUICK)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"beta": 0.0},
        {"alpha": 0.0},
        {"alpha": 0.0, "beta": 0.0},
        {"model": "teacher"},
        {"model": "ts-lstm"},
        {"model": "rank-lstm"},
        {"model": "levels"},
        {"model": "knn"},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())) or "both",
)
def test_every_mode_learns_and_answers(shards, session, tmp_path, chosen):
    run = train("early", shards, out=tmp_path / "run", session=session, **QUICK, **chosen)
    measured = run.metrics["last"]["test"]["label"]
    assert measured["acc100"] >= 75  # chance: 33
    assert measured["auc"] == pytest.approx(np.mean([measured[f"acc{p}"] for p in (20, 40, 60, 80, 100)]))
    answers = run.predict("test")
    assert answers.shape == (12 * clips_cache.LEVELS, 3)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert Run(run.path).evaluate("test")["last"]["test"]["label"] == pytest.approx(measured)
    assert run.history.empty == (chosen.get("model") == "knn")
    for _, rows in run.history.groupby("stage"):
        assert rows["L_cls"].iloc[-1] < rows["L_cls"].iloc[0]
        assert rows["test/auc"].notna().all()


def test_teachers_are_trained_once_for_all_rows_of_a_seed(shards, session, tmp_path):
    weights = {}
    for name, chosen in {"ts": {"beta": 0.0}, "teacher": {"model": "teacher"}, "seed": {"seed": 1}}.items():
        run = train("early", shards, out=tmp_path / name, session=session, **QUICK, **chosen)
        weights[name] = load_file(run.path / "teacher" / "last.safetensors")["classify.weight"]
    assert torch.equal(weights["ts"], weights["teacher"])
    assert not torch.equal(weights["ts"], weights["seed"])
    kept = {path.name for path in session.stages.iterdir()}
    train("early", shards, out=tmp_path / "tau", session=session, tau=2, **QUICK)
    assert {path.name for path in session.stages.iterdir()} == kept
    train("early", shards, out=tmp_path / "rarely", session=session, eval_every=2, **QUICK)  # its best may be another
    assert {path.name for path in session.stages.iterdir()} > kept


class Crash(RuntimeError):
    pass


@pytest.mark.parametrize("step", [7, 22])
def test_killed_and_repeated_equals_uninterrupted(shards, finished, tmp_path, monkeypatch, step):
    # 4 steps an epoch: the 7th is in the teacher's second epoch, the 22nd in the student's.
    taken, original = iter(range(1, 10**6)), loop._step

    def dying(run, batch):
        original(run, batch)
        if next(taken) == step:
            raise Crash

    options = QUICK | {"label_fraction": 0.5, "save_every": 0.0}
    monkeypatch.setattr(loop, "_step", dying)
    with pytest.raises(Crash):
        train("early", shards, out=tmp_path / "run", **options)
    monkeypatch.undo()
    again = train("early", shards, out=tmp_path / "run", **options)
    a, b = (run.history.drop(columns="seconds") for run in (again, finished))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert (again.path / "predictions.csv").read_bytes() == (finished.path / "predictions.csv").read_bytes()


def test_a_run_says_what_was_chosen_and_which_clips_were_labelled(finished, shards, tmp_path, caplog):
    caplog.set_level("INFO", "kdcache")
    resolved = finished.config["resolved"]["options"]
    assert (resolved["target"], resolved["cell"], resolved["teacher_lr"]) == ("label", "gru", 0.1)
    assert resolved["w_cls"] == pytest.approx(18 / 48)
    assert finished.metrics["selected_by"] == "validation"
    history = finished.history[finished.history["stage"] == "student"]
    assert finished.metrics["best@validation"]["validation"]["label"]["auc"] == history["validation/auc"].max()
    train("early", shards, out=tmp_path / "run", label_fraction=0.5, **QUICK | {"epochs": 1})
    assert "18 clips are labelled; 30 are not and take part through distillation" in caplog.text


def test_features_of_a_backbone_that_saw_hidden_labels_are_refused(tmp_path):
    shards = clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6)
    facts = {"backbone": "vacnn", "num_classes": 3, "classes": [0, 10, 20], "limits": None, "validated_on": []}
    (shards / "fitted").mkdir()
    everything = [f"train-0-{i:03d}" for i in range(24)]
    (shards / "fitted" / f"{'0' * 64}.json").write_text(json.dumps(facts | {"fitted_on": everything}))
    with pytest.raises(OptionError, match="labels of 18 unlabelled clips"):
        train("early", shards, out=tmp_path / "run", label_fraction=0.25, **QUICK)
    assert not (tmp_path / "run").exists()
    train("early", shards, out=tmp_path / "run", label_fraction=0.25, allow_leak=True, **QUICK)


@pytest.mark.gpu
def test_early_recognition_trains_on_a_gpu(shards, tmp_path):
    run = train("early", shards, out=tmp_path / "run", **QUICK | {"device": "cuda"})
    assert run.resolved["precision"] in ("bf16", "fp16")
    assert run.history["L_cls"].iloc[-1] < run.history["L_cls"].iloc[0]
    probabilities = run.predict("test").to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)

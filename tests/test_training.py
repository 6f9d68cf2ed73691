"""Training on real shards: learning, exact resume, reruns, interruptions, errors, predictions, evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import tomllib

import numpy as np
import pairs_cache
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import kdcache
from kdcache.engine import log, loop
from kdcache.errors import DeviceError, OptionError, WeightsError
from kdcache.files import PARTIAL, temporary_name
from kdcache.runs.config import load_config
from kdcache.runs.evaluate import evaluate
from kdcache.runs.train import Run, train

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 3, "milestones": (2,), "batch_size": 16, "head": "light", "width": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """40 labelled and 12 unlabelled pairs, two views."""
    return pairs_cache.cache(tmp_path_factory.mktemp("cache"), 40, 12, views=2)


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """An uninterrupted run with everything switched on."""
    return train("anticipation", shards, out=tmp_path_factory.mktemp("runs") / "whole", **QUICK)


def same_numbers(one: Run, other: Run) -> None:
    a, b = (run.history.drop(columns="seconds") for run in (one, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert one.metrics["last"] == other.metrics["last"]
    assert (one.path / "predictions.csv").read_bytes() == (other.path / "predictions.csv").read_bytes()
    for stage in ("recognition", "anticipation"):
        for which in ("last", "best"):
            left, right = (load_file(run.path / stage / f"{which}.safetensors") for run in (one, other))
            assert all(torch.equal(left[name], right[name]) for name in left)


class Crash(RuntimeError):
    pass


def at_step(monkeypatch, number, action):
    """Do something after the given training step, counted over all stages."""
    taken = iter(range(1, 10**6))
    original = loop._step

    def step(run, batch):
        original(run, batch)
        if next(taken) == number:
            action()

    monkeypatch.setattr(loop, "_step", step)


def crash():
    raise Crash


def test_a_student_learns_and_comes_closer_to_its_teacher(shards, tmp_path):
    options = QUICK | {"epochs": 24, "milestones": (18,), "width": 64}
    run = train("anticipation", shards, out=tmp_path / "run", **options)
    history = run.history[run.history["stage"] == "anticipation"]
    assert history["L_d"].iloc[-1] < 0.7 * history["L_d"].iloc[0]
    assert history["L_c"].iloc[-1] < 0.5 * history["L_c"].iloc[0]
    assert run.metrics["last"]["validation"]["label"]["top1"] >= 60  # chance: 33
    assert run.metrics["stages"]["recognition"]["validation/top1"] >= 80


def test_run_folder_holds_all_that_was_promised(finished):
    names = {p.name for p in finished.path.iterdir()}
    assert names == {
        *("config.toml", "metrics.csv", "metrics.json", "predictions.csv", "environment.json", "recipes.json"),
        *("tensorboard", "recognition", "anticipation"),
    }
    for stage in ("recognition", "anticipation"):
        assert {p.name for p in (finished.path / stage).iterdir()} == {
            "last.safetensors",
            "best.safetensors",
            "summary.json",
        }
        assert list((finished.path / "tensorboard" / stage).glob("events.*"))
    assert not list(finished.path.rglob(f"*{PARTIAL}"))
    config = tomllib.loads((finished.path / "config.toml").read_text())
    assert config["resolved"]["options"]["data"] == "S+U"
    assert config["options"]["data"] == "auto"
    assert finished.config["options"]["width"] == 16
    assert list(finished.history["epoch"]) == [1, 2, 3, 1, 2, 3]
    np.testing.assert_allclose(finished.history["lr"], [0.01, 0.01, 0.001] * 2)
    heading, first, *_ = str(finished).splitlines()[1:]
    assert heading.split()[:4] == ["weights", "split", "target", "top1"]
    assert first.split()[:3] == ["last", "validation", "label"]


def test_metrics_name_the_split_that_selected_the_best_epoch(finished):
    metrics = finished.metrics
    assert metrics["selected_by"] == "validation"
    assert set(metrics) == {"selected_by", "epochs", "last", "best@validation", "baselines", "stages", "steps"}
    history = finished.history[finished.history["stage"] == "anticipation"]
    assert metrics["epochs"] == {"last": 3, "best": int(history["validation/top1"].argmax()) + 1}
    assert metrics["last"]["validation"]["label"]["top1"] == history["validation/top1"].iloc[-1]
    assert metrics["best@validation"]["validation"]["label"]["top1"] == history["validation/top1"].max()
    assert set(metrics["last"]["validation"]) == {"label", "verb"}


@pytest.mark.parametrize("step", [2, 5, 7, 9, 11])
def test_killed_and_repeated_equals_uninterrupted(shards, finished, tmp_path, monkeypatch, step):
    # 2 steps an epoch for the teacher and for the student; a crash saves nothing, so the epoch is trained again.
    at_step(monkeypatch, step, crash)
    with pytest.raises(Crash):
        train("anticipation", shards, out=tmp_path / "run", save_every=30.0, **QUICK)
    monkeypatch.undo()
    same_numbers(train("anticipation", shards, out=tmp_path / "run", save_every=30.0, **QUICK), finished)


@pytest.mark.parametrize(
    ("step", "number", "raised"), [(3, signal.SIGINT, KeyboardInterrupt), (10, signal.SIGTERM, SystemExit)]
)
def test_signals_leave_a_checkpoint_within_the_epoch(
    shards, finished, tmp_path, monkeypatch, step, number, raised, caplog
):
    caplog.set_level("INFO", "kdcache")
    before = signal.getsignal(number)
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(raised) as caught:
        train("anticipation", shards, out=tmp_path / "run", **QUICK)
    if raised is SystemExit:
        assert caught.value.code == 143
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert len(list((tmp_path / "run").rglob("state.pt"))) == 1
    with pytest.raises(OptionError, match="has not finished training"):
        _ = Run(tmp_path / "run").metrics
    same_numbers(train("anticipation", shards, out=tmp_path / "run", **QUICK), finished)
    assert "going on from epoch" in caplog.text


def test_checkpoints_within_a_run_continue_exactly(shards, finished, tmp_path, monkeypatch):
    at_step(monkeypatch, 9, crash)  # in the student's second epoch, after the checkpoint of its first
    with pytest.raises(Crash):
        train("anticipation", shards, out=tmp_path / "run", save_every=0.0, **QUICK)
    monkeypatch.undo()
    assert (tmp_path / "run" / "anticipation" / "state.pt").exists()
    same_numbers(train("anticipation", shards, out=tmp_path / "run", save_every=0.0, **QUICK), finished)


def test_the_table_of_epochs_is_written_now_and_then_and_whole_when_a_stage_ends(shards, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(log, "SHOWN_EVERY", 3600.0)
    monkeypatch.setattr(log.Log, "show", lambda self, show=log.Log.show: (show(self), sizes.append(len(self._rows))))
    run = train("anticipation", shards, out=tmp_path / "run", **QUICK)
    per_stage = run.history["stage"].value_counts(sort=False).tolist()
    assert sizes == [1, *per_stage, 0]  # the first epoch is shown at once
    at_step(monkeypatch, 9, crash)  # in the student's second epoch
    with pytest.raises(Crash):
        train("anticipation", shards, out=tmp_path / "broken", **QUICK)
    assert len(pd.read_csv(tmp_path / "broken" / "metrics.csv")) == per_stage[0] + 1


def test_streamed_training_equals_held_training(shards, finished, tmp_path):
    run = train("anticipation", shards, out=tmp_path / "run", memory_fraction=0.0, **QUICK)
    assert run.resolved["budget"] == 0
    a, b = (r.history.drop(columns="seconds") for r in (run, finished))
    # With memory_fraction=0 the teacher's targets are computed in each step, in other batches: equal but for rounding.
    # rounding.
    pd.testing.assert_frame_equal(a, b, rtol=1e-3)


def test_a_finished_run_is_returned_as_it_is_and_another_seed_differs(shards, finished, monkeypatch, caplog):
    caplog.set_level("INFO", "kdcache")
    monkeypatch.setattr(loop, "_step", lambda *_: crash())
    again = train("anticipation", shards, out=finished.path, **QUICK)
    assert again.metrics == finished.metrics
    assert "has finished" in caplog.text
    with pytest.raises(OptionError, match=r"other settings \(options.lam: 1.0 → 0.5; seed: 0 → 1\)"):
        train("anticipation", shards, out=finished.path, seed=1, lam=0.5, **QUICK)


def test_the_stored_configuration_is_complete(finished):
    arguments = load_config(finished.path / "config.toml")
    assert train(**arguments, out=finished.path).metrics == finished.metrics
    assert arguments["milestones"] == (2,)
    assert arguments["alpha"] is None


def test_default_folders_are_numbered(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = QUICK | {"epochs": 1, "data": "S", "loss_d": "none"}
    first = kdcache.train("anticipation", shards=shards, **options)
    second = kdcache.train("anticipation", shards=shards, seed=1, **options)
    assert [str(first.path), str(second.path)] == ["runs/anticipation-0", "runs/anticipation-1"]
    assert list(first.history["stage"]) == ["anticipation"]
    assert not (first.history["L_c"] == second.history["L_c"]).any()


def test_predictions_are_probabilities_by_label(finished):
    frame = finished.predict()
    assert list(frame.columns) == [0, 5, 10]
    np.testing.assert_allclose(frame.sum(axis=1), 1, rtol=1e-5)
    assert frame.index[0] == "p003-observed"
    assert len(frame) == 10
    some = finished.predict(["p007-observed", "p003-observed"])
    np.testing.assert_allclose(some.loc["p003-observed"], frame.loc["p003-observed"], rtol=1e-5)
    assert len(finished.predict("train")) == 42
    stored = pd.read_csv(finished.path / "predictions.csv")
    assert list(stored.columns) == ["pair", "clip_id", "split", "label", "0", "5", "10"]
    right = stored[["0", "5", "10"]].to_numpy().argmax(1) * 5 == stored["label"]
    assert 100 * right.mean() == pytest.approx(finished.metrics["last"]["validation"]["label"]["top1"])
    with pytest.raises(OptionError, match="did you mean 'validation'"):
        finished.predict("validatoin")
    with pytest.raises(OptionError, match="'nowhere' is not among"):
        finished.predict(["nowhere"])


def test_evaluate_recomputes_the_metrics_from_the_checkpoints(finished):
    again = evaluate(finished.path)
    assert again["last"] == finished.metrics["last"]
    assert again["best@validation"] == finished.metrics["best@validation"]
    on_train = evaluate(finished, "train", many_shot=1)["last"]["train"]["label"]
    assert on_train["many_shot_recall"] == on_train["class_mean_recall"]
    with pytest.raises(OptionError, match="is no run"):
        evaluate(finished.path / "recognition")


def test_recognition_networks_are_judged_on_what_they_see(shards, tmp_path):
    now = train("anticipation", shards, out=tmp_path / "now", network="recognition", **QUICK)
    early = train("anticipation", shards, out=tmp_path / "early", network="recognition-early", **QUICK)
    assert now.predict().index[0] == "p003-action"
    assert early.predict().index[0] == "p003-observed"
    left, right = (load_file(run.path / "recognition" / "last.safetensors") for run in (now, early))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_i3d_head_trains_from_the_backbone_that_made_the_cache(tmp_path):
    table = pairs_cache.rows(6)
    pairs_cache.write(tmp_path / "cache", table, pairs_cache.arrays(table, shape=(480, 3, 2, 2)))
    options = {"head": "i3d", "epochs": 1, "batch_size": 3, "device": "cpu", "layer": "mixed4f"}
    run = train("anticipation", tmp_path / "cache", out=tmp_path / "run", **options)
    assert run.resolved["options"]["init"] == "checkpoint"
    assert run.history["L_d"].notna().any()
    weights = load_file(run.path / "anticipation" / "last.safetensors")
    start = kdcache.backbones.build("i3d-rgb", weights="random:0").state_dict()
    name = "Mixed_5b.b0.conv3d.weight"
    assert (weights[name] - start[name]).norm() < 0.1 * start[name].norm()  # one epoch away from where it began


def test_a_checkpoint_that_is_not_here_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCACHE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = pairs_cache.recipe()
    wanted["backbone"]["weights"] = {"sha256": "0" * 64}
    monkeypatch.setattr(pairs_cache, "recipe", lambda stream: wanted)
    cache = pairs_cache.cache(tmp_path / "cache", 8)
    with pytest.raises(
        WeightsError, match=r"sha256 0+\) is not on this machine: pass weights=PATH .* or set init=random"
    ):
        train("anticipation", cache, out=tmp_path / "run", head="i3d", device="cpu")
    (tmp_path / "other.pt").write_bytes(b"something else")
    with pytest.raises(WeightsError, match=r"other.pt is not the checkpoint of the cache"):
        train("anticipation", cache, out=tmp_path / "run", head="i3d", device="cpu", weights=tmp_path / "other.pt")


def test_streams_are_chosen_from_those_that_hold_maps(shards, tmp_path):
    table = pairs_cache.rows(8)
    folder = pairs_cache.cache(tmp_path / "cache", 8)
    pairs_cache.write(folder, table, [m[:, :8] for m in pairs_cache.arrays(table)], "i3d-flow/mixed4a")
    with pytest.raises(
        OptionError, match=r"several streams for input x: choose with --stream i3d-flow/mixed4a .* or --stream i3d-rgb/"
    ):
        train("anticipation", folder, out=tmp_path / "run", **QUICK)
    run = train("anticipation", folder, out=tmp_path / "run", stream="i3d-flow/mixed4a", **QUICK)
    assert run.resolved["stream"] == "i3d-flow/mixed4a"
    with pytest.raises(OptionError, match="did you mean 'i3d-rgb/mixed4a'"):
        train("anticipation", shards, out=tmp_path / "other", stream="i3d-rgb/mixed4", **QUICK)


def test_validation_selects_and_the_test_split_is_only_measured(tmp_path):
    table = pairs_cache.rows(40)
    table.loc[table["pair"].isin(["p001", "p002", "p005", "p006"]), "split"] = "test"
    table.loc[table["pair"] == "p000", "split"] = "aside"
    folder = pairs_cache.write(tmp_path / "cache", table, pairs_cache.arrays(table))
    run = train("anticipation", folder, out=tmp_path / "run", **QUICK)
    assert run.metrics["selected_by"] == "validation"
    assert set(run.metrics["best@validation"]) == {"validation", "test"}
    assert run.metrics["epochs"]["best"] == int(run.history["validation/top1"][3:].argmax()) + 1
    assert pd.read_csv(run.path / "predictions.csv")["split"].value_counts().to_dict() == {"validation": 10, "test": 4}
    assert list(evaluate(run, "aside")["last"]) == ["aside"]
    table.loc[table["split"] == "validation", ["label", "verb"]] = pd.NA
    bare = pairs_cache.write(tmp_path / "bare", table, pairs_cache.arrays(table))
    only = train("anticipation", bare, out=tmp_path / "only", **QUICK)
    assert set(only.metrics) == {
        "selected_by",
        "epochs",
        "last",
        "baselines",
        "stages",
        "steps",
    }  # test clips select nothing
    assert only.metrics["selected_by"] == ""
    with pytest.raises(OptionError, match="no best epoch, for it had no validation clips"):
        only.predict("test", "best")
    assert list(only.metrics["last"]) == ["test"]


def test_a_loss_that_is_not_finite_stops_with_what_to_do(shards, tmp_path):
    with pytest.raises(OptionError, match=r"L_\w+ is (nan|inf) in epoch \d, step \d+: lower lr"):
        train("anticipation", shards, out=tmp_path / "run", **QUICK | {"lr": 1e30, "momentum": 0.0})


def test_gradients_can_be_clipped(shards, tmp_path):
    options = QUICK | {"epochs": 1, "data": "S", "loss_d": "none", "lr": 100.0, "momentum": 0.0, "weight_decay": 0.0}
    tiny = train("anticipation", shards, out=tmp_path / "run", grad_clip=1e-9, **options)
    start = train("anticipation", shards, out=tmp_path / "none", **options | {"lr": 1e-12})
    left, right = (load_file(r.path / "anticipation" / "last.safetensors")["project.weight"] for r in (tiny, start))
    torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def test_too_little_memory_and_missing_devices_say_what_to_set(shards, tmp_path, monkeypatch):
    def out_of_memory():
        raise torch.OutOfMemoryError

    at_step(monkeypatch, 1, out_of_memory)
    with pytest.raises(DeviceError, match=r"batch_size=16 does not fit .* set batch_size=8"):
        train("anticipation", shards, out=tmp_path / "run", **QUICK)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="shows 0 CUDA"):
            train("anticipation", shards, out=tmp_path / "run", **QUICK | {"device": "cuda"})


def test_a_cache_that_changed_is_not_mixed_into_an_unfinished_run(tmp_path, monkeypatch):
    table = pairs_cache.rows(16)
    maps = pairs_cache.arrays(table)
    folder = pairs_cache.write(tmp_path / "cache", table[:-2], maps[:-2])
    at_step(monkeypatch, 2, crash)
    with pytest.raises(Crash):
        train("anticipation", folder, out=tmp_path / "run", save_every=0.0, **QUICK)
    monkeypatch.undo()
    pairs_cache.write(folder, table[-2:].reset_index(drop=True), maps[-2:], shards=1)
    with pytest.raises(OptionError, match="cannot be continued, for its data or machine changed: samples:"):
        train("anticipation", folder, out=tmp_path / "run", save_every=0.0, **QUICK)


def test_damaged_checkpoints_are_named(shards, tmp_path, monkeypatch):
    at_step(monkeypatch, 9, crash)
    with pytest.raises(Crash):
        train("anticipation", shards, out=tmp_path / "run", save_every=0.0, **QUICK)
    monkeypatch.undo()
    state = tmp_path / "run" / "anticipation" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(OptionError, match=r"state.pt cannot be continued from .*delete it"):
        train("anticipation", shards, out=tmp_path / "run", save_every=0.0, **QUICK)
    weights = tmp_path / "run" / "recognition" / "last.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"last.safetensors is not as it was written"):
        train("anticipation", shards, out=tmp_path / "run", save_every=0.0, **QUICK)


def test_a_folder_that_is_no_run_is_left_alone(shards, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OptionError, match="exists and is no run"):
        train("anticipation", shards, out=tmp_path, **QUICK)


def test_a_run_killed_while_it_wrote_its_first_file_starts_anew(shards, tmp_path):
    (tmp_path / f".config.toml.host.1.abcd{PARTIAL}").write_text("method = ")
    assert train("anticipation", shards, out=tmp_path, **QUICK | {"epochs": 1}).metrics


def test_what_killed_calls_had_begun_to_write_is_removed(shards, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    ours = [folder / temporary_name("state.pt") for folder in (tmp_path, tmp_path / "anticipation")]
    for path in ours:
        path.parent.mkdir(exist_ok=True)
        path.with_name(path.name.replace(f".{os.getpid()}.", f".{dead.pid}.")).write_bytes(b"half")
    alive = tmp_path / temporary_name("metrics.csv")
    (tmp_path / "config.toml").write_text('method = "anticipation"\nshards = "elsewhere"\n')
    alive.write_bytes(b"of a call that runs")
    train("anticipation", shards, out=tmp_path, **QUICK | {"epochs": 1})
    assert list(tmp_path.rglob(f".*{PARTIAL}")) == [alive]

"""Runs that train in one pass end as those that train alone."""

from __future__ import annotations

import clips_cache
import numpy as np
import pairs_cache
import pandas as pd
import pytest
import streams_cache
import torch
from safetensors.torch import load_file
from torch import nn

from kdcache.engine import vectorised
from kdcache.engine.unrolled import unrolled
from kdcache.methods.recurrent import Recurrent
from kdcache.runs.ablation.pool import Job, Pool, in_passes, run_jobs
from kdcache.runs.run import Run
from kdcache.runs.session import Session
from kdcache.runs.together import alike, train_together

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {
    "method": "early", "epochs": 3, "milestones": (2,), "batch_size": 12, "hidden": 16, "teacher_hidden": 8, "lr": 0.1,
    "device": "cpu", "label_fraction": 0.5,
}  # fmt: skip
DIFFERENT = (
    {"seed": 0},
    {"seed": 1, "lr": 0.03, "alpha": 2.0, "weight_decay": 0.0},
    {"seed": 2, "beta": 0.3, "momentum": 0.0, "gamma": 0.5, "w_cls": 0.7},
)
"""What runs that train together may differ in."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """36 labelled and 12 unlabelled training clips, two views."""
    return clips_cache.cache(tmp_path_factory.mktemp("cache"), views=2, train=36, validation=12, test=12, unlabelled=12)


def jobs_of(folder, shards, each=DIFFERENT, **common):
    return [
        Job(str(number), folder / str(number), {**QUICK, "shards": str(shards), **common, **own})
        for number, own in enumerate(each)
    ]


def run_all(jobs, stages, together):
    """Run jobs; labels of those that failed, with the reason."""
    problems: dict[str, str] = {}
    run_jobs(
        jobs,
        Pool(together=together),
        stages,
        lambda job, problem: problems.update({job.label: problem} if problem else {}),
    )
    return problems


def assert_same_runs(alone, together):
    for one, other in zip(alone, together, strict=True):
        first, second = Run(one.folder), Run(other.folder)
        assert first.config["options"] == second.config["options"]
        for path in sorted(one.folder.rglob("*.safetensors")):
            torch.testing.assert_close(
                load_file(other.folder / path.relative_to(one.folder)), load_file(path), rtol=1e-5, atol=1e-5
            )
        pd.testing.assert_frame_equal(
            first.history.drop(columns="seconds"), second.history.drop(columns="seconds"), rtol=1e-5, atol=1e-5
        )
        pd.testing.assert_frame_equal(
            pd.read_csv(one.folder / "predictions.csv"), pd.read_csv(other.folder / "predictions.csv"), atol=1e-5
        )
        kept, found = (
            {path.relative_to(job.folder) for path in job.folder.rglob("*") if "tensorboard" not in path.parts}
            for job in (one, other)
        )
        assert kept == found


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"model": "teacher", "standardise": True},
        {"model": "ts-lstm"},
        {"model": "rank-lstm"},
        {"model": "levels"},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())) or "both",
)
def test_every_mode_ends_as_it_does_alone(shards, tmp_path, chosen, monkeypatch):
    alone, together = (jobs_of(tmp_path / name, shards, **chosen) for name in ("alone", "together"))
    assert len(in_passes(together, 50)) == 1
    assert not run_all(alone, tmp_path / "stages-1", 1)
    monkeypatch.setattr("kdcache.runs.together.fit_stage", None)  # none trains by itself
    assert not run_all(together, tmp_path / "stages-2", 50)
    assert_same_runs(alone, together)


@pytest.mark.parametrize(
    "chosen",
    [
        {"network": "recognition"},
        {"network": "recognition-early"},
        {"loss_d": "none"},
        {"loss_d": "direct", "pseudo": False},
        {"loss_d": "both", "init": "teacher"},
        {"loss_d": "AR", "soft_targets": True, "temperature": 2.0, "vectors": True},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_light_heads_of_anticipation_too(tmp_path, chosen, monkeypatch):
    """Batch norms with statistics of their own, teachers of each head, dropout, pairs without labels."""
    table, chosen = pairs_cache.rows(24, 8), dict(chosen)
    maps = pairs_cache.arrays(table, views=2)
    if chosen.pop("vectors", False):
        vectors = [array.astype(np.float32).mean((-2, -1)).swapaxes(1, 2) for array in maps]
        recipe = streams_cache.imported("features/x", [2, 3, 480], "TD")
        shards = streams_cache.write(tmp_path / "cache", table, [(recipe | {"dtype": "float32"}, vectors)])
    else:
        shards = pairs_cache.write(tmp_path / "cache", table, maps)
    common = {
        "method": "anticipation", "epochs": 3, "milestones": (2,), "batch_size": 8, "width": 16, "head": "light",
        "device": "cpu", "shards": str(shards),
    }  # fmt: skip
    each = (
        {"seed": 0},
        {"seed": 1, "lr": 0.03, "lam": 3.0, "dropout": 0.0},
        {"seed": 2, "momentum": 0.0, "gamma": 0.5},
    )
    alone, together = (
        [Job(str(n), tmp_path / name / str(n), {**common, **chosen, **own}) for n, own in enumerate(each)]
        for name in ("alone", "together")
    )
    assert len(in_passes(together, 50)) == 1
    assert not run_all(alone, tmp_path / "stages-1", 1)
    monkeypatch.setattr("kdcache.runs.together.fit_stage", None)  # none trains by itself
    assert not run_all(together, tmp_path / "stages-2", 50)
    assert_same_runs(alone, together)


def test_heads_drop_what_they_drop_alone(shards, tmp_path):
    each = [{"seed": 0, "dropout": 0.5}, {"seed": 1, "dropout": 0.2}, {"seed": 2}]
    alone, together = (jobs_of(tmp_path / name, shards, each) for name in ("alone", "together"))
    assert not run_all(alone, tmp_path / "stages-1", 1)
    assert not run_all(together, tmp_path / "stages-2", 50)
    assert_same_runs(alone, together)


def test_one_teacher_for_all_is_trained_once(shards, tmp_path, monkeypatch):
    alone, together = (
        jobs_of(tmp_path / name, shards, [{"seed": 0}, {"seed": 1}, {"seed": 2}], teacher_seed=0)
        for name in ("alone", "together")
    )
    assert not run_all(alone, tmp_path / "stages-1", 1)
    passes: list[int] = []
    fit = vectorised.fit_together
    monkeypatch.setattr("kdcache.runs.together.fit_together", lambda heads: (passes.append(len(heads)), fit(heads))[1])
    assert not run_all(together, tmp_path / "stages-2", 50)
    assert passes == [3]  # the students; the one teacher trains by itself
    assert_same_runs(alone, together)


def interrupt_after(step, monkeypatch):
    count, do = 0, vectorised._Together._count

    def counted(self, size):
        nonlocal count
        do(self, size)
        count += 1
        if count == step:
            self.first.interrupts.received = 2

    monkeypatch.setattr(vectorised._Together, "_count", counted)


@pytest.mark.parametrize("step", [1, 15])
def test_interrupted_and_repeated_equals_uninterrupted(shards, tmp_path, monkeypatch, step):
    whole, broken = (jobs_of(tmp_path / name, shards, dropout=0.25) for name in ("whole", "broken"))
    assert not run_all(whole, tmp_path / "stages-1", 50)
    interrupt_after(step, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_all(broken, tmp_path / "stages-2", 50)
    states = list((tmp_path / "broken").rglob("state.pt"))
    assert len(states) == 3
    assert max(path.stat().st_size for path in states) < 200_000  # of one head, not of all
    assert not run_all(broken, tmp_path / "stages-2", 50)
    for one, other in zip(whole, broken, strict=True):  # to the bit
        for path in sorted(one.folder.rglob("*.safetensors")):
            assert path.read_bytes() == (other.folder / path.relative_to(one.folder)).read_bytes()


def test_what_began_together_goes_on_alone(shards, tmp_path, monkeypatch):
    alone, together = (jobs_of(tmp_path / name, shards, dropout=0.25) for name in ("alone", "together"))
    assert not run_all(alone, tmp_path / "stages-1", 1)
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_all(together, tmp_path / "stages-2", 50)
    monkeypatch.undo()
    assert not run_all(together, tmp_path / "stages-2", 1)
    assert_same_runs(alone, together)


def test_a_head_that_diverges_ends_alone(shards, tmp_path):
    each = [{"seed": 0}, {"seed": 1, "lr": 1e30, "grad_clip": 0.0}, {"seed": 2}]
    each = [{**own, "grad_clip": 0.0} for own in each]
    alone, together = (jobs_of(tmp_path / name, shards, each, alpha=0.0) for name in ("alone", "together"))
    expected = run_all(alone, tmp_path / "stages-1", 1)
    assert list(expected) == ["1"]
    assert run_all(together, tmp_path / "stages-2", 50) == expected
    assert_same_runs([alone[0], alone[2]], [together[0], together[2]])


def test_too_many_for_the_memory_are_halved(shards, tmp_path, monkeypatch):
    alone, together = (jobs_of(tmp_path / name, shards, dropout=0.25) for name in ("alone", "together"))
    assert not run_all(alone, tmp_path / "stages-1", 1)
    step = vectorised._Together._step

    def full(self, *args):
        if len(self.heads) > 2:
            self._masks(*args[::2])
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, *args)

    monkeypatch.setattr(vectorised._Together, "_step", full)
    assert not run_all(together, tmp_path / "stages-2", 50)
    assert_same_runs(alone, together)


def test_what_differs_in_more_than_numbers_trains_apart(shards, tmp_path):
    each = [{}, {"seed": 1}, {"hidden": 32}, {"beta": 0.0}, {"model": "knn"}, {"patience": 2}, {"validation": 0.3}]
    jobs = jobs_of(tmp_path, shards, each)
    units = in_passes(jobs, 50)
    assert [[job.label for job in unit] for unit in units] == [["0", "1"], ["2"], ["3"], ["4"], ["5"], ["6"]]
    assert [len(unit) for unit in in_passes([*jobs[:2]] * 3, 4)] == [4, 2]
    assert in_passes(jobs, 1) == [(job,) for job in jobs]
    shared_out = in_passes([*jobs[:2]] * 3, 50, workers=4)  # no worker waits for the pass of another
    assert sorted(len(unit) for unit in shared_out) == [1, 1, 2, 2]
    assert in_passes(jobs[:2], 50, workers=8) == [(job,) for job in jobs[:2]]
    assert alike(tmp_path, {**jobs[0].arguments, "method": "relation"}) is None
    assert alike(tmp_path, {**jobs[0].arguments, "hidden": -1}) is None  # training it says what is wrong


def test_a_bad_option_ends_its_run_alone(shards, tmp_path):
    jobs = jobs_of(tmp_path, shards, [{}, {"seed": 1}], tau=30)
    problems: dict[int, str] = {}
    calls = [(job.folder, job.arguments) for job in jobs]
    train_together(calls, Session(), lambda number, problem: problems.update({number: problem}))
    assert sorted(problems) == [0, 1]
    assert all("tau=30" in problem for problem in problems.values())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_unrolled_layers_answer_as_the_fused_ones(cell, bidirectional):
    torch.manual_seed(0)
    network = Recurrent(7, 3, 5, cell, bidirectional=bidirectional)
    x, layer = torch.randn(4, 6, 7), network.layer
    fused = network(x)
    names = list(network.state_dict())
    gradients = torch.autograd.grad(fused["logits"].sum(), list(network.parameters()))
    with unrolled(network):
        written = network(x)
        assert sorted(network.state_dict()) == sorted(names)
        others = torch.autograd.grad(written["logits"].sum(), list(network.parameters()))
        assert not any(isinstance(part, nn.RNNBase) for part in network.modules())
    assert network.layer is layer
    torch.testing.assert_close(written, fused)
    torch.testing.assert_close(others, gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("chosen", [{}, {"model": "ts-lstm"}, {"dropout": 0.3}], ids=["both", "ts-lstm", "dropout"])
def test_on_a_gpu_they_end_as_they_do_alone(shards, tmp_path, chosen):
    chosen = {**chosen, "device": "cuda", "precision": "fp32"}
    alone, together = (jobs_of(tmp_path / name, shards, **chosen) for name in ("alone", "together"))
    assert not run_all(alone, tmp_path / "stages-1", 1)
    assert not run_all(together, tmp_path / "stages-2", 50)
    for one, other in zip(alone, together, strict=True):
        first, second = (Run(job.folder).history.drop(columns="seconds") for job in (one, other))
        pd.testing.assert_frame_equal(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_they_train_in_bf16(shards, tmp_path):
    jobs = jobs_of(tmp_path, shards, device="cuda", precision="bf16")
    assert not run_all(jobs, tmp_path / "stages", 50)
    assert all(Run(job.folder).history["L_cls"].iloc[-1] < 1 for job in jobs)

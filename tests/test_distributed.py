"""Processes that train one run together end as one does."""

from __future__ import annotations

import os
import socket

import clips_cache
import pandas as pd
import pytest
import torch
from torch import multiprocessing, nn

from kdcache.cli.printing import report_training
from kdcache.engine.distributed import Rank, here
from kdcache.errors import DeviceError, OptionError
from kdcache.runs.ablation.pool import THIS_PROCESS, Job, run_jobs
from kdcache.runs.run import Run
from kdcache.runs.train import train

QUICK = {
    "epochs": 2, "milestones": (1,), "batch_size": 12, "hidden": 16, "teacher_hidden": 8, "lr": 0.1, "device": "cpu",
    "label_fraction": 0.5,
}  # fmt: skip


def worker(rank, port, shards, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from kdcache.engine import loop

    original = loop._step

    def interrupted(run, batch):
        original(run, batch)
        if rank == 1 and run.stage.name == "student" and run.state.steps == 2:
            run.interrupts.received = 15  # the other process is not asked, and stops at the same step

    loop._step = interrupted
    with pytest.raises(SystemExit):
        train("early", shards, out=out, **QUICK)
    assert [path.name for path in (out / "student").iterdir()] == ["state.pt"]
    assert torch.load(out / "student" / "state.pt")["progress"]["steps"] == 3
    here().wait()
    loop._step = original
    made = train("early", shards, out=out, **QUICK)
    assert made.path == out
    assert made.metrics["last"]
    torch.distributed.destroy_process_group()


def test_two_processes_end_as_one_after_an_interruption(tmp_path):
    shards = clips_cache.cache(tmp_path / "cache", train=33, validation=12, test=12, unlabelled=12)
    alone = train("early", shards, out=tmp_path / "alone", **QUICK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, shards, tmp_path / "two"), nprocs=2)
    both = Run(tmp_path / "two")
    one, two = (run.history.drop(columns="seconds") for run in (alone, both))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=1e-5)
    first, second = (pd.read_csv(run.path / "predictions.csv") for run in (alone, both))
    pd.testing.assert_frame_equal(first, second, rtol=1e-4, atol=1e-5)
    assert {p.name for p in alone.path.iterdir()} == {p.name for p in both.path.iterdir()}


def test_each_process_takes_its_part_of_a_batch_and_all_of_one_that_is_too_small():
    plan = [(torch.arange(7), torch.zeros(7)), (torch.arange(2), torch.ones(2))]
    parts = [Rank(rank, 3).part(plan) for rank in range(3)]
    assert sorted(torch.cat([part[0][0] for part in parts]).tolist()) == list(range(7))
    assert all(part[1][0].tolist() == [0, 1] for part in parts)
    assert all(torch.equal(a, b) for a, b in zip(Rank().part(plan)[0], plan[0], strict=True))


def test_averages_weigh_every_example_alike(monkeypatch):
    """Three processes one after the other: the sum over processes of what each gives is the mean over examples."""
    x, weight = torch.arange(7.0), nn.Parameter(torch.tensor(2.0))
    given = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: given.append(flat.clone()))
    for rank in range(3):
        place = Rank(rank, 3)
        ((index, _),) = place.part([(torch.arange(7), torch.zeros(7))])
        weight.grad = None
        loss = (weight * x[index].square()).mean()
        loss.backward()
        place.average([weight], {"L": loss}, len(index), 7, stop=rank == 1)
    gradient, value, asked = torch.stack(given).sum(0).tolist()
    assert gradient == pytest.approx(float(x.square().mean()))
    assert value == pytest.approx(2 * float(x.square().mean()))
    assert asked == 1


def test_a_comparison_is_not_started_by_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="without it, with workers=N"):
        run_jobs([Job("a", tmp_path / "a", {"method": "early"})], THIS_PROCESS, tmp_path, lambda *_: None)


@pytest.mark.parametrize(("variables", "printed"), [({}, 1), ({"RANK": "0"}, 1), ({"RANK": "1"}, 0)])
def test_the_first_process_alone_prints(variables, printed, monkeypatch, capsys):
    if variables:
        monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    report_training({"auc": 1.0}, as_json=True)
    assert capsys.readouterr().out.count("auc") == printed


def test_a_process_that_cannot_be_kept_to_one_gpu_is_refused(monkeypatch):
    """CUDA itself looks at CUDA_VISIBLE_DEVICES once; where NVML counts, setting it later is enough."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,7"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match="process 1 of torchrun still sees 2 GPUs: give each process its own"):
        here()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"

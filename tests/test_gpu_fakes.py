"""What a run does on a GPU, as far as it can be seen without one: by replaced functions of torch.cuda."""

from __future__ import annotations

import pytest
import torch
from memory_stream import MemoryStream
from torch import nn
from torch.optim import SGD

from kdcache.engine import checkpoint
from kdcache.engine.checkpoint import TrainState
from kdcache.methods.contract import BatchSource, Stage

CPU = torch.device("cpu")


class Generators:
    """The random numbers of so many GPUs: a state is the number of the GPU whose it was."""

    def __init__(self, gpus: int, monkeypatch) -> None:
        self.gpus, self.restored = gpus, {}
        monkeypatch.setattr(torch.cuda, "get_rng_state", self.get)
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set)

    def _number(self, device: torch.device) -> int:
        assert device.index < self.gpus, "a GPU that is not there"
        return device.index

    def get(self, device):
        return torch.tensor([self._number(device)], dtype=torch.uint8)

    def set(self, state, device):
        self.restored[self._number(device)] = int(state)


@pytest.fixture
def stage() -> Stage:
    module = nn.Linear(2, 2)
    items = BatchSource({"x": (MemoryStream(torch.zeros(4, 1, 2)), torch.arange(4))}, {"y": torch.zeros(4).long()})
    return Stage(
        name="s",
        module=module,
        train=items,
        losses=lambda batch: {},
        optimizer=SGD(module.parameters(), 1.0),
        epochs=1,
        batch_size=2,
        predict=lambda batch: batch["x"],
        eval_sets={},
        metrics_fn=lambda scores, y: {},
        monitor="auc",
    )


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def test_a_checkpoint_of_another_gpu_continues_on_the_one_that_is_left(stage, tmp_path, monkeypatch):
    Generators(8, monkeypatch)
    checkpoint.save_state(tmp_path, stage, scaler(), TrainState(), {}, torch.device("cuda", 5))
    assert [int(s) for s in torch.load(tmp_path / checkpoint.STATE)["cuda_rng"]] == [5]
    left = Generators(1, monkeypatch)
    assert checkpoint.load_state(tmp_path, stage, scaler(), torch.device("cuda", 0)) is not None
    assert left.restored == {0: 5}


@pytest.mark.parametrize(("number", "taken"), [(0, 0), (1, 1), (3, 1)])
def test_checkpoints_of_version_0_1_hold_the_generators_of_every_gpu(stage, tmp_path, monkeypatch, number, taken):
    checkpoint.save_state(tmp_path, stage, scaler(), TrainState(), {}, CPU)
    state = torch.load(tmp_path / checkpoint.STATE)
    torch.save(state | {"cuda_rng": [torch.tensor([n], dtype=torch.uint8) for n in range(2)]}, tmp_path / "state.pt")
    gpus = Generators(4, monkeypatch)
    checkpoint.load_state(tmp_path, stage, scaler(), torch.device("cuda", number))
    assert gpus.restored == {number: taken}


def test_a_run_on_the_cpu_asks_no_gpu(stage, tmp_path, monkeypatch):
    """Where there is one, that would start CUDA: seconds, and half a gigabyte of the GPU's memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was started"))
    checkpoint.save_state(tmp_path, stage, scaler(), TrainState(), {}, CPU)
    state = torch.load(tmp_path / checkpoint.STATE)
    assert state["cuda_rng"] == []
    torch.save(state | {"cuda_rng": [torch.zeros(1, dtype=torch.uint8)]}, tmp_path / checkpoint.STATE)
    assert checkpoint.load_state(tmp_path, stage, scaler(), CPU) is not None

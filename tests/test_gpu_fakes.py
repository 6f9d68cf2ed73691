"""What a run does on a GPU, as far as it can be seen without one: by replaced functions of torch.cuda."""

from __future__ import annotations

import weakref

import numpy as np
import pairs_cache
import pytest
import torch
from memory_stream import MemoryStream
from torch import nn
from torch.optim import SGD

from kdcache.data.stream import CachedStream, JoinedStream, MemoryBudget
from kdcache.engine import checkpoint
from kdcache.engine.checkpoint import TrainState
from kdcache.errors import DeviceError
from kdcache.methods.anticipation import Options as AnticipationOptions
from kdcache.methods.contract import BatchSource, Stage
from kdcache.motion import tvl1_pairs
from kdcache.motion.tv_l1 import torch_engine
from kdcache.motion.tv_l1.params import TVL1Params
from kdcache.runs.ablation import pool
from kdcache.runs.ablation.pool import Job
from kdcache.runs.config import RunSettings
from kdcache.runs.session import Session
from kdcache.runtime import free_bytes

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


# ---------------------------------------------------------------------------
# memory
# ---------------------------------------------------------------------------


def gpu_memory(monkeypatch, free: int, total: int = 1000, reserved: int = 0, allocated: int = 0, share: float = 1.0):
    """What torch says of a GPU's memory; each function is asked of the device given."""

    def said(value):
        def ask(device):
            assert device == torch.device("cuda", 1)
            return value

        return ask

    monkeypatch.setattr(torch.cuda, "mem_get_info", said((free, total)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", said(reserved))
    monkeypatch.setattr(torch.cuda, "memory_allocated", said(allocated))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", said(share))


@pytest.mark.parametrize(
    ("said", "free"),
    [
        ({"free": 700}, 700),
        ({"free": 100, "reserved": 600, "allocated": 50}, 650),  # a cache has been dropped: its blocks are kept
        ({"free": 900, "reserved": 100, "allocated": 100, "share": 0.5}, 400),
        ({"free": 900, "reserved": 600, "allocated": 600, "share": 0.5}, 0),
    ],
)
def test_free_memory_of_a_gpu(monkeypatch, said, free):
    gpu_memory(monkeypatch, **said)
    assert free_bytes(torch.device("cuda", 1)) == free


def test_processes_that_share_a_device_share_the_memory_fraction(tmp_path, monkeypatch):
    pairs_cache.cache(tmp_path / "cache")
    monkeypatch.setattr("kdcache.runtime.free_memory", lambda: 1_000_000)
    settings = RunSettings(method="anticipation", shards=str(tmp_path / "cache"), memory_fraction=0.6, device="cpu")
    options = AnticipationOptions()
    budgets = {}
    for processes in (1, 3):
        session = Session(bars=False, processes=processes)
        budgets[processes] = session.prepare(settings, options, {}).resolved["budget"]
        assert session._pool.nbytes == budgets[processes]
        continued = session.prepare(settings, options, {"budget": 600_000})
        assert continued.resolved["budget"] == 600_000  # as it began
    assert budgets == {1: 600_000, 3: pytest.approx(200_000, abs=1)}


def test_a_comparison_tells_its_processes_how_many_they_are(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(pool, "Processes", lambda work, workers, *args, **options: found.append(work) or Idle())
    jobs = [Job(str(n), tmp_path / str(n), {"method": "anticipation"}) for n in range(3)]
    pool.run_jobs(jobs, pool.Pool(2), tmp_path, lambda job, problem: None)
    assert found[0].processes == 2


class Idle:
    def run(self, units, on_event, stop):
        pass


def test_memory_is_given_back_before_another_cache_is_measured(tmp_path, monkeypatch):
    """What the first cache held must be free when the second asks how much it may hold."""
    for name in "ab":
        pairs_cache.cache(tmp_path / name)
    held, released = [], []
    monkeypatch.setattr("kdcache.runs.session.release_memory", lambda device: released.append([r() for r in held]))
    session = Session(bars=False)
    for name in "ab":
        settings = RunSettings(method="anticipation", shards=str(tmp_path / name), device="cpu")
        opened = session.prepare(settings, AnticipationOptions(), {})
        stream = next(iter(opened.data.inputs.values()))
        stream.fetch(torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.arange(2))
        held.append(weakref.ref(stream._data))
        del opened, stream
    assert released == [[], [None]]


class Vectors:
    """Two streams of one cache: ``a`` of 4 numbers a clip, ``b`` of 16."""

    def shape(self, stream):
        return (1, {"a": 4, "b": 16}[stream])

    def dtype(self, stream):
        return np.dtype(np.float32)

    def read(self, stream, clip_ids, view=None, out=None):
        array = np.ones((len(clip_ids), *self.shape(stream)[1:]), np.float32)
        if out is None:
            return array
        out[...] = array
        return out


@pytest.mark.parametrize("kind", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("budget", "held"), [(10 * 20 * 4, True), (10 * 20 * 4 - 1, False), (10 * 10 * 4, False)])
def test_a_joined_stream_lies_on_the_device_as_a_whole_or_not_at_all(budget, held, kind):
    """Also where the memory left would hold one of its parts: tensors of two devices cannot be joined."""
    device, clips = torch.device(kind), [str(n) for n in range(10)]
    shared = MemoryBudget(budget)
    joined = JoinedStream([CachedStream(Vectors(), name, clips, device, shared) for name in "ab"])
    rows = torch.arange(3)
    fetched = joined.fetch(rows, torch.zeros_like(rows), rows)
    assert (joined.resident, fetched.device.type) == (held, kind if held else "cpu")
    assert fetched.is_pinned() == (not held and kind == "cuda")
    placed = joined.to_device(fetched)
    assert (placed.device.type, placed.shape) == (kind, (3, 20))
    assert shared.free_bytes == budget - held * joined.nbytes


# ---------------------------------------------------------------------------
# TV-L1
# ---------------------------------------------------------------------------

FAST = TVL1Params(nscales=2, warps=1, outer_iterations=1, inner_iterations=3)


def test_flow_runs_on_with_fewer_pairs_where_memory_is_exhausted(monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (8, 20, 24), np.uint8)
    initial = np.ones((7, 20, 24, 2), np.float32)
    expected = tvl1_pairs(frames[:-1], frames[1:], "torch", FAST, initial, device="cpu")
    solve, seen = torch_engine._solve, []

    def limited(first, *args):
        seen.append(len(first))
        if len(first) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return solve(first, *args)

    monkeypatch.setattr(torch_engine, "_solve", limited)
    found = tvl1_pairs(frames[:-1], frames[1:], "torch", FAST, initial, device="cpu")
    assert seen == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(found, expected)


def test_one_pair_that_does_not_fit_says_what_to_do(monkeypatch):
    def exhausted(*args):
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    monkeypatch.setattr(torch_engine, "_solve", exhausted)
    frames = np.zeros((3, 20, 24), np.uint8)
    with pytest.raises(DeviceError, match=r"TV-L1 of one pair of 24 × 20 pixels does not fit .*: end what else"):
        tvl1_pairs(frames[:-1], frames[1:], "torch", FAST, device="cpu")


def test_a_batch_of_pairs_takes_what_is_free_and_no_more(monkeypatch):
    pixels, gpu = 256 * 340, torch.device("cuda", 1)
    for free, pairs in ((80 * 2**30, 2**26 // pixels), (2**30, int(0.6 * 2**30) // 180 // pixels), (2**20, 1)):
        gpu_memory(monkeypatch, free, total=80 * 2**30)
        assert torch_engine._pairs_at_once(gpu, pixels) == pairs
    monkeypatch.setattr(torch_engine, "free_memory", lambda: None)  # a system that does not say
    assert torch_engine._pairs_at_once(CPU, pixels) == 2**26 // pixels

"""Launches and networks replayed as captured graphs do as they do themselves; where that fails they go on without."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache import backbones
from kdcache.replay import SHAPES, Graphs, Launch, Replayed, ReplayedNetwork, cuda_graphs


class Capture:
    """Stands in for CUDA: a graph makes its launches again, and says how often."""

    def __init__(self) -> None:
        self.graphs, self.replays = 0, 0

    def __call__(self, launch: Launch) -> Launch:
        self.graphs += 1

        def replay() -> None:
            self.replays += 1
            launch()

        return replay


def test_launches_are_made_captured_replayed():
    made = []

    def capture(launch):
        made.append("captured")
        return lambda: made.append("replayed")

    replayed, plain = Replayed(Graphs(capture, "TV-L1")), Replayed(Graphs(None, "TV-L1"))
    for _ in range(3):
        replayed(lambda: made.append("launched"))
    assert made == ["launched", "captured", "replayed", "replayed"]
    for _ in range(3):
        plain(lambda: made.append("plain"))
    assert made[4:] == ["plain"] * 3


def test_launches_that_cannot_be_captured_are_made_one_by_one(caplog):
    made, tried = [], []

    def capture(launch):
        tried.append(1)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with …")

    graphs = Graphs(capture, "TV-L1")
    two = Replayed(graphs), Replayed(graphs)
    for _ in range(3):
        for number, replayed in enumerate(two):
            replayed(lambda number=number: made.append(number))
    assert made == [0, 1] * 3
    assert len(tried) == 1
    assert [r.message for r in caplog.records] == [
        "TV-L1: no CUDA graph could be made (CUDA error: operation not permitted when stream is capturing): it goes on "
        "without, more slowly."
    ]


@pytest.fixture
def calls() -> list[tuple[int, ...]]:
    """Shapes that the network was called with."""
    return []


@pytest.fixture
def double(calls):
    def network(x: Tensor) -> list[Tensor]:
        calls.append(tuple(x.shape))
        return [x * 2, x + 1]

    return network


def test_the_second_batch_of_a_shape_is_captured_and_later_ones_replayed(double, calls):
    capture = Capture()
    network = ReplayedNetwork(double, Graphs(capture, "a network"))
    given = [torch.full((2, 3), float(value)) for value in range(5)]
    found = [network(x) for x in given]
    for x, (twice, more) in zip(given, found, strict=True):  # each in memory of its own
        assert torch.equal(twice, 2 * x)
        assert torch.equal(more, x + 1)
    assert (capture.graphs, capture.replays) == (1, 4)  # one to compare, and three batches
    assert torch.equal(network(torch.ones(1, 3))[0], torch.full((1, 3), 2.0))
    assert capture.graphs == 1


def test_shapes_and_dtypes_have_graphs_of_their_own_and_no_more_than_some(double):
    capture = Capture()
    network = ReplayedNetwork(double, Graphs(capture, "a network"))
    for _ in range(3):
        for size in range(1, SHAPES + 3):
            assert torch.equal(network(torch.ones(size))[0], torch.full((size,), 2.0))
    assert capture.graphs == SHAPES
    other = ReplayedNetwork(double, Graphs(capture := Capture(), "a network"))
    for dtype in (torch.float32, torch.float64) * 2:
        assert other(torch.ones(2, dtype=dtype))[0].dtype == dtype
    assert capture.graphs == 2


def test_nan_is_no_difference(double):
    capture = Capture()
    network = ReplayedNetwork(double, Graphs(capture, "a network"))
    x = torch.tensor([float("nan"), 1.0])
    for _ in range(3):
        assert torch.equal(network(x)[0].isnan(), x.isnan())
    assert capture.replays == 2


@pytest.mark.parametrize("how", ["raises", "gives something else", "is not possible"])
def test_without_graphs_the_network_goes_on(double, calls, how, caplog):
    def capture(launch: Launch) -> Launch:
        if how == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return lambda: None

    network = ReplayedNetwork(double, Graphs(None if how == "is not possible" else capture, "Net"))
    for value in range(5):
        x = torch.full((2,), value + 1.0)
        assert torch.equal(network(x)[0], 2 * x)
    said = [record.message for record in caplog.records]
    assert len(said) == (how != "is not possible")
    assert all(text.startswith("Net: no CUDA graph could be made (") and "more slowly" in text for text in said)
    assert len(calls) == 5


def test_graphs_give_their_memory_back_when_a_batch_needs_it(calls):
    def network(x: Tensor) -> list[Tensor]:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [x * 2]

    replayed = ReplayedNetwork(network, Graphs(Capture(), "a network"))
    for _ in range(3):
        replayed(torch.ones(2))
    assert any(replayed._seen.values())
    with pytest.raises(torch.OutOfMemoryError):
        replayed(torch.ones(8))
    assert not replayed._seen
    assert torch.equal(replayed(torch.ones(2))[0], torch.full((2,), 2.0))


def test_a_launch_that_was_made_and_not_captured_is_no_graph(double, caplog):
    """As on another device than the stream's: the graph is empty, and what the launch wrote looks right."""
    network = ReplayedNetwork(double, Graphs(lambda launch: (launch(), lambda: None)[1], "Net"))
    for value in range(1, 6):
        assert torch.equal(network(torch.full((2,), float(value)))[0], torch.full((2,), 2.0 * value))
    assert "its results are others" in caplog.text


@pytest.mark.parametrize("where", ["nowhere", "launch", "capture", "instance"])
def test_the_allocator_is_told_the_end_of_a_capture_that_has_failed(where, monkeypatch):
    """Torch tells it of those alone that went well up to the making of the graph's instance."""
    told: list[tuple[Any, ...]] = []
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            assert (pool, capture_error_mode) == ((0, 7), "thread_local")

        def capture_end(self):
            if where in ("launch", "capture"):
                raise error
            told.append(("end", 2, (0, 7)))
            if where == "instance":
                raise error

        def replay(self):
            pass

    def end(device, pool):
        if told:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        told.append(("end", device, pool))

    for name, value in {
        "device": nullcontext,
        "stream": nullcontext,
        "Stream": lambda device: None,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: (0, 7),
        "current_device": lambda: 2,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *args: told.append(("release", *args)), raising=False)

    def launch() -> None:
        if where == "launch":
            raise RuntimeError("the network waits for the device")

    capture = cuda_graphs(torch.device("cuda", 2))
    if where == "nowhere":
        capture(launch)()
    else:
        with pytest.raises(RuntimeError, match="previous error"):
            capture(launch)
    released = [("release", 2, (0, 7))] if where in ("launch", "capture") else []
    assert told == [("end", 2, (0, 7)), *released]


@pytest.mark.gpu
def test_memory_is_given_back_after_a_capture_that_has_failed(caplog):
    graphs = Graphs(cuda_graphs(torch.device("cuda", 0)), "a network")
    x = torch.ones(8, device="cuda")
    network = ReplayedNetwork(lambda x: [x * float(x.sum())], graphs)  # it waits for the device
    for _ in range(3):
        assert torch.equal(network(x)[0], 8 * x)
    assert "no CUDA graph could be made" in caplog.text
    big = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del big
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < 2**28


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "layer", "size"), [("i3d-rgb", "mixed4a", 64), ("resnet34", "layer4", 64)])
def test_a_graph_gives_what_the_network_gives(name, layer, size):
    net = backbones.build(name, "random:0")
    frozen = backbones.frozen(net, layer, device="cuda")
    rng = torch.Generator().manual_seed(0)
    shape = (2, 16 if name == "i3d-rgb" else 2, size, size, 3)
    given = [torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8) for _ in range(4)]
    plain = [frozen._features(frozen.layers, x.cuda())[0] for x in given]
    found = [frozen(x) for x in given]
    assert any(frozen._on_gpu[tuple(frozen.layers)]._seen.values())
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))

"""Which engine computes the flow that is cached: by the device, or by name; what of another engine is found again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from gpu_cases import ON_EACH

from kdcache import Cache
from kdcache.errors import DeviceError, OptionError
from kdcache.extraction.run import extract
from kdcache.motion import tvl1_pairs
from kdcache.motion.tv_l1 import TVL1Params, torch_engine
from kdcache.motion.tv_l1.opencv import _solver
from kdcache.recipe import by_any_means
from kdcache.store import load_index
from kdcache.store.describe import describe, inspect
from kdcache.store.failures import load_failures
from kdcache.streams.registry import resolve, restore
from kdcache.streams.settings import StreamSettings

NAMES = ("flow", "flow-warped", "i3d-flow/mixed4a", "resnet34-flow/pool")
FRAMES = 4
LENGTH = {"cpu": 1.0, "torch": 2.0}  # of the vectors that replaced engines give


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "data"
    for clip in "ab":
        (folder / clip).mkdir(parents=True)
        for i in range(FRAMES):
            noise = np.random.default_rng([i, ord(clip)]).integers(0, 256, (32, 36, 3), np.uint8)
            cv2.imwrite(str(folder / clip / f"{i}.png"), noise)
        (folder / f"{clip}.csv").write_text(f"source,fps\n{clip},25\n")
    (folder / "all.csv").write_text("source,fps\na,25\nb,25\n")
    return folder


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str | None]]:
    """Engine and device of each call; the flow that engines give tells which it was."""
    made = list[tuple[str, str | None]]()

    def fake(first, second, engine="cpu", params=None, initial=None, threads=None, device=None):
        made.append((engine, device))
        return np.full((*first.shape, 2), LENGTH[engine], np.float32)

    monkeypatch.setattr("kdcache.motion.tvl1_pairs", fake)
    return made


@pytest.fixture
def machine(monkeypatch):
    """A function that moves what follows to a machine with GPUs, or without."""

    def moved(*devices: str) -> None:
        monkeypatch.setattr("kdcache.extraction.run.resolve_devices", lambda name: devices)

    return moved


def run(root: Path, clips: str, **options) -> tuple[int, int]:
    report = extract(
        root / f"{clips}.csv", root=root, out=root / "out", streams=["flow"], flow="float16", bar=False, **options
    )
    assert not report.failures
    return report.cached, report.extracted


def lengths(root: Path, *clips: str) -> list[float]:
    return [float(array.max()) for array in Cache(root / "out").read("flow", clips)]


def origins(root: Path, *clips: str) -> list[str]:
    return [origin["flow_engine"] for origin in Cache(root / "out").origin(clips)]


def test_flow_is_computed_where_the_run_is_and_found_by_runs_elsewhere(root, calls, machine):
    machine("cpu")
    assert run(root, "a") == (0, 1)
    machine("cuda:1")
    assert run(root, "all") == (1, 1)
    machine("cpu")
    assert run(root, "all") == (2, 0)
    assert calls == [("cpu", None), ("torch", "cuda:1")]
    assert lengths(root, "a", "b") == [1, 2]
    assert origins(root, "a", "b") == ["cpu", "torch"]
    assert describe(root / "out").flow_engines == {"cpu": 1, "torch": 1}
    assert "engines of flow" in inspect(root / "out")
    assert load_index(root / "out")["flow:key"].notna().all()


def test_an_engine_asked_for_by_name_takes_only_what_it_has_computed(root, calls, machine):
    machine("cpu")
    run(root, "a")
    machine("cuda")
    run(root, "all")
    assert lengths(root, "a", "b") == [1, 2]
    assert run(root, "all", flow_engine="cpu") == (1, 1)  # a lies there under the recipe of auto, by that engine
    assert calls[-1] == ("cpu", None)
    assert lengths(root, "a", "b") == [1, 1]
    assert run(root, "all", flow_engine="cpu") == (2, 0)
    machine("cpu")
    assert run(root, "all", flow_engine="torch", decoder="auto") == (1, 1)
    assert calls[-1] == ("torch", "cpu")  # where the run is
    assert lengths(root, "a", "b") == [2, 2]
    made = len(calls)
    assert run(root, "all") == (2, 0)
    assert len(calls) == made


def test_what_was_computed_by_name_is_found_by_any(root, calls, machine):
    machine("cuda")
    run(root, "a", flow_engine="cpu")
    assert run(root, "all") == (1, 1)
    assert calls == [("cpu", None), ("torch", "cuda")]
    assert lengths(root, "a", "b") == [1, 2]


def test_one_of_several_gpus_computes_the_flow_of_a_clip(root, calls, machine):
    """Also that of the clips from which a dry run estimates the time."""
    machine("cuda:0", "cuda:1")
    planned = extract(root / "all.csv", root=root, out=root / "out", streams=["flow"], dry_run=True, bar=False)
    assert planned.seconds > 0
    assert set(calls) == {("torch", "cuda:0")}
    assert run(root, "all") == (0, 2)
    assert set(calls) == {("torch", "cuda:0")}


@ON_EACH
def test_cached_flow_is_that_of_the_engine_of_the_device(root, device):
    assert run(root, "all", device=device) == (0, 2)
    engine = "torch" if device == "cuda" else "cpu"
    assert origins(root, "a", "b") == [engine, engine]
    frames = [cv2.imread(str(root / "a" / f"{i}.png")) for i in range(FRAMES)]
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames])
    where = {"device": device} if engine == "torch" else {}
    expected = tvl1_pairs(gray[:-1], gray[1:], engine, **where).astype(np.float16)
    np.testing.assert_array_equal(Cache(root / "out").read("flow", ["a"])[0], expected)
    assert run(root, "all", device="cpu") == (2, 0)


@pytest.mark.gpu
def test_flow_of_decoding_processes_is_that_of_one_process(root, tmp_path):
    """Each has its own context on the GPU; flow as bytes, and features of a network that reads it."""
    name = "i3d-flow/mixed4a"
    common = {"weights": {"i3d-flow": "random:0"}, "frames": 2, "size": 64, "device": "cuda", "bar": False}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert extract(root / "all.csv", root, out, ["flow", name], workers=workers, **common).extracted == 2
    one, two = (Cache(tmp_path / str(workers)) for workers in (1, 2))
    for clip in "ab":
        np.testing.assert_array_equal(one.read("flow", [clip])[0], two.read("flow", [clip])[0])
        np.testing.assert_allclose(one.read(name, [clip])[0], two.read(name, [clip])[0], rtol=1e-2, atol=1e-3)
    assert describe(tmp_path / "2").flow_engines == {"torch": 2}


def test_a_broken_gpu_is_no_fault_of_the_clip(root, machine, monkeypatch):
    def broken(*args, **options):
        raise DeviceError("cuda failed: restart")

    machine("cuda")
    monkeypatch.setattr("kdcache.motion.tvl1_pairs", broken)
    with pytest.raises(DeviceError, match="cuda failed"):
        run(root, "all")
    assert not load_failures(root / "out")


@pytest.mark.parametrize("name", NAMES)
def test_recipes_name_the_engine_only_where_one_was_asked_for(name):
    weights = {"i3d-flow": "random:0", "resnet34-flow": "random:0"}
    made = {e: resolve([name], StreamSettings(flow_engine=e), weights)[0] for e in ("auto", "cpu", "torch")}
    assert [made[e].recipe["flow"].get("engine") for e in made] == [None, "cpu", "torch"]
    assert len({stream.digest for stream in made.values()}) == 3
    assert all(by_any_means(stream.recipe) == by_any_means(made["auto"].recipe) for stream in made.values())
    for stream in made.values():
        assert restore(name, stream.recipe, weights).flow_engine == stream.flow_engine


def test_streams_without_flow_have_none():
    plain, named = (resolve(["rgb"], StreamSettings(flow_engine=e))[0] for e in ("auto", "torch"))
    assert plain.digest == named.digest
    assert len(plain.alike) == 2


def test_an_unknown_engine_is_refused():
    with pytest.raises(OptionError, match="flow_engine"):
        StreamSettings.of({"flow_engine": "opencv"})


FEW = TVL1Params(nscales=3, warps=2, outer_iterations=3)  # plain torch takes a second for it
DEVICES = [("cpu", FEW), pytest.param("cuda", TVL1Params(), marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("device", "params"), DEVICES)
def test_engines_agree_within_the_stated_bound(device, params):
    """A mean within 1.5 × of what OpenCV's flow moves by under noise of 0.001 grey levels, a median within 0.01 px."""
    texture = cv2.GaussianBlur(np.random.default_rng(3).normal(size=(90, 100)), (0, 0), 1.5)
    texture = 128 + 110 * texture / np.abs(texture).max()
    turned = cv2.getRotationMatrix2D((50, 45), 2.0, 1.02) + np.array([[0, 0, 0.8], [0, 0, -0.5]])
    moved = cv2.warpAffine(texture, turned, (100, 90), flags=cv2.INTER_LANCZOS4)
    first, second = (np.rint(image[20:68, 20:76]).clip(0, 255).astype(np.uint8) for image in (texture, moved))
    noise = np.random.default_rng(0).normal(0, 0.001, (2, *first.shape))
    noisy = [((image + n) / 255).astype(np.float32) for image, n in zip((first, second), noise, strict=True)]
    theirs = tvl1_pairs(first[None], second[None], "opencv", params)[0]
    bound = 1.5 * length(_solver(params, False).calc(*noisy, None) - theirs).mean()
    ours = tvl1_pairs(first[None], second[None], "cpu", params)[0]
    apart = length(tvl1_pairs(first[None], second[None], "torch", params, device=device)[0] - ours)
    assert length(ours).mean() > 0.5
    assert apart.mean() <= bound
    assert np.median(apart) <= 0.01


def length(flow: np.ndarray) -> np.ndarray:
    return np.hypot(flow[..., 0], flow[..., 1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs here")
def test_where_triton_does_not_run_a_sentence_names_the_remedy():
    """It finds no driver here; on a machine with a GPU it may lack a C compiler. The run ends, no clip is at fault."""
    with (
        pytest.raises(DeviceError, match=r"^TV-L1 cannot be computed on cuda:0, .*gcc.* or compute flow with the"),
        torch_engine._levels(1, [(8, 8)], TVL1Params(), torch.device("cuda:0")),
    ):
        pass

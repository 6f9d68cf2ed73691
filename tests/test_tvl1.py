"""TV-L1 against OpenCV, ground truth, and itself."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from kdcache import motion
from kdcache.errors import DeviceError, KdcacheError, OptionError
from kdcache.motion import jit, tvl1, tvl1_pairs
from kdcache.motion.tv_l1 import TVL1Params, pyramid

FAST = TVL1Params(nscales=3, warps=2, outer_iterations=3)


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random texture, float64 [height, width]."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    blurred = cv2.GaussianBlur(noise, (0, 0), 2)
    return 128 + 100 * blurred / np.abs(blurred).max()


def shifted(height: int, width: int, x: float, y: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A texture and the same moved by (x, y) pixels, uint8."""
    big = scene(height + 40, width + 40, seed)
    moved = cv2.warpAffine(big, np.array([[1, 0, x], [0, 1, y]], float), big.shape[::-1], flags=cv2.INTER_LANCZOS4)
    return tuple(np.rint(image[20:-20, 20:-20]).astype(np.uint8) for image in (big, moved))


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.hypot(*np.moveaxis(a - b, -1, 0))


def read_flo(path) -> np.ndarray:
    width, height = np.fromfile(path, np.int32, 2, offset=4)
    return np.fromfile(path, np.float32, offset=12).reshape(height, width, 2)


def has_opencv_5_with_fma() -> bool:
    fma3 = 12  # CV_CPU_FMA3, which the Python module does not export
    return int(cv2.__version__.split(".")[0]) >= 5 and cv2.checkHardwareSupport(fma3)


@pytest.fixture(scope="module")
def rubber(shared) -> dict[str, np.ndarray]:
    """The RubberWhale pair, its ground truth and a flow by an older OpenCV."""
    folder = shared / "data" / "flow"
    images = [cv2.imread(str(folder / f"RubberWhale{k}.png"), cv2.IMREAD_GRAYSCALE) for k in (1, 2)]
    truth, stored = read_flo(folder / "RubberWhale.flo"), read_flo(folder / "RubberWhale_tvl1_opencv.flo")
    return {"first": images[0], "second": images[1], "truth": truth, "stored": stored}


@pytest.fixture(scope="module")
def rubber_flow(rubber) -> np.ndarray:
    return tvl1_pairs(rubber["first"][None], rubber["second"][None])[0]


def test_rubber_whale_is_as_near_to_the_truth_as_opencv(rubber, rubber_flow):
    known = (np.abs(rubber["truth"]) < 1e9).all(-1)
    error = distance(rubber_flow, rubber["truth"])[known].mean()
    assert error < 0.157  # OpenCV 5: 0.156
    assert error <= distance(rubber["stored"], rubber["truth"])[known].mean()
    assert distance(rubber_flow, rubber["stored"]).mean() < 0.035


PARAMS = [
    FAST,
    TVL1Params(nscales=2, warps=1, outer_iterations=2, inner_iterations=7, median_filtering=3, scale_step=0.5),
    TVL1Params(nscales=4, warps=2, outer_iterations=2, median_filtering=0, scale_step=0.7, lambda_=0.3, theta=0.2),
    TVL1Params(nscales=1, warps=1, epsilon=0.0, outer_iterations=2, tau=0.1),
]


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 91), (81, 33)])
@pytest.mark.parametrize("warm", [False, True])
def test_cpu_gives_opencvs_flow(params, height, width, warm):
    first, second = shifted(height, width, 1.3, -0.7)
    start = None
    if warm:
        start = np.random.default_rng(1).normal(size=(1, height, width, 2)).astype(np.float32)
    ours = tvl1_pairs(first[None], second[None], "cpu", params, start)
    theirs = tvl1_pairs(first[None], second[None], "opencv", params, start)
    if has_opencv_5_with_fma():
        assert np.abs(ours - theirs).max() < 1e-4
    assert np.median(distance(ours, theirs)) < 0.01


def test_cpu_is_closer_to_opencv_than_opencv_under_noise(rubber, rubber_flow):
    part = (slice(100, 244), slice(180, 372))
    first, second = rubber["first"][part], rubber["second"][part]
    solver = cv2.optflow.DualTVL1OpticalFlow_create()
    theirs = solver.calc(first, second, None)
    noise = np.random.default_rng(0).normal(0, 0.001, (2, *first.shape))
    images = [((image + n) / 255).astype(np.float32) for image, n in zip((first, second), noise, strict=True)]
    moved = distance(solver.calc(*images, None), theirs).mean()
    ours = distance(tvl1_pairs(first[None], second[None])[0], theirs)
    assert ours.mean() <= 1.5 * moved
    assert np.median(ours) <= 0.01


@pytest.mark.parametrize("engine", ["cpu", "opencv", "torch"])
def test_a_moved_texture_moves_by_that_much(engine):
    first, second = shifted(60, 70, 2.0, 1.0)
    params = TVL1Params() if engine != "torch" else TVL1Params(outer_iterations=3)
    flow = tvl1_pairs(first[None], second[None], engine, params)[0, 8:-8, 8:-8]
    assert np.median(flow, (0, 1)) == pytest.approx([2, 1], abs=0.02)
    assert np.quantile(distance(flow, np.float32([2, 1])), 0.9) < 0.1


def test_torch_agrees_with_cpu():
    pairs = [shifted(40, 52, x, y, seed) for seed, (x, y) in enumerate([(1.5, 0.5), (-0.6, 1.1), (0, 0)])]
    first, second = (np.stack(images) for images in zip(*pairs, strict=True))
    difference = distance(
        tvl1_pairs(first, second, "torch", FAST, device="cpu"), tvl1_pairs(first, second, params=FAST)
    )
    assert difference.mean() < 0.02
    assert np.median(difference) < 1e-3


def test_a_pair_in_a_torch_batch_does_not_depend_on_its_neighbours():
    slow, fast = shifted(30, 34, 2.5, -1.5), shifted(30, 34, 0.0, 0.0)
    both = tvl1_pairs(np.stack([slow[0], fast[0]]), np.stack([slow[1], fast[1]]), "torch", FAST, device="cpu")
    alone = tvl1_pairs(slow[0][None], slow[1][None], "torch", FAST, device="cpu")
    assert np.abs(both[0] - alone[0]).max() < 1e-3


def test_torch_median_is_opencvs():
    from kdcache.motion.tv_l1.torch_engine import median, torch

    image = np.random.default_rng(0).normal(size=(2, 13, 17)).astype(np.float32)
    for size in (3, 5):
        ours = median(torch.from_numpy(image), size).numpy()
        assert (ours == np.stack([cv2.medianBlur(plane, size) for plane in image])).all()


def test_the_batch_is_cut_without_a_seam(monkeypatch):
    from kdcache.motion.tv_l1 import torch_engine

    first, second = (np.stack(images) for images in zip(shifted(20, 24, 1, 0), shifted(20, 24, 0, 1), strict=True))
    whole = tvl1_pairs(first, second, "torch", FAST, device="cpu")
    monkeypatch.setattr(torch_engine, "_BATCH", 1)
    assert np.abs(tvl1_pairs(first, second, "torch", FAST, device="cpu") - whole).max() < 1e-3


def clip(count: int = 5) -> np.ndarray:
    return np.stack([shifted(53, 77, 0.7 * t, 0.4 * t)[1] for t in range(count)])


def test_threads_do_not_change_a_byte():
    frames = clip()
    one = tvl1(frames, threads=1, params=FAST)
    assert one.tobytes() == tvl1(frames, threads=2, params=FAST).tobytes()
    assert one.tobytes() == tvl1(frames[:, ::1].copy(), threads=4, params=FAST).tobytes()


def test_a_pair_does_not_depend_on_what_was_solved_before_it():
    frames = clip(3)
    together = tvl1(frames, params=FAST, threads=1)
    assert together[1].tobytes() == tvl1(frames[1:], params=FAST)[0].tobytes()


PROGRAM = """
import hashlib, sys
import numpy as np
from kdcache.motion import tvl1
from kdcache.motion.tv_l1 import TVL1Params
params = TVL1Params(nscales=3, warps=2, outer_iterations=3)
print(hashlib.sha256(tvl1(np.load(sys.argv[1]), params=params).tobytes()).hexdigest())
"""


def run_program(program: str, argument, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program, str(argument)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[-1]


def test_fresh_and_cached_code_give_the_same_bytes(tmp_path):
    np.save(tmp_path / "clip.npy", clip())
    here = hashlib.sha256(tvl1(clip(), params=FAST).tobytes()).hexdigest()
    cache = tmp_path / "cache"
    fresh = run_program(PROGRAM, tmp_path / "clip.npy", NUMBA_CACHE_DIR=str(cache))
    assert list(cache.rglob("*.nbc"))
    cached = run_program(PROGRAM, tmp_path / "clip.npy", NUMBA_CACHE_DIR=str(cache))
    assert here == fresh == cached


def test_a_function_that_cannot_be_cached_still_compiles():
    scope: dict = {}
    exec("def double(x):\n    return 2 * x", scope)  # no file, so Numba finds no place for a cache
    assert jit.cached_njit()(scope["double"])(21) == 42


def test_changed_sources_are_not_answered_from_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "cached.py"
    path.write_text(
        "from kdcache.motion.jit import cached_njit\n"
        "@cached_njit()\n"
        "def solve():\n"
        "    return NUMBER\n"  # what a kernel in another file stands for: Numba does not look at it
    )

    def load(number: int, digest: str):
        monkeypatch.setattr(jit, "_digest", lambda: digest)
        source = path.read_text()
        scope = {"NUMBER": number, "__name__": "cached", "__file__": str(path)}
        exec(compile(source, str(path), "exec"), scope)
        return scope["solve"]()

    assert load(1, "old") == 1
    assert load(2, "old") == 1  # stale: the digest is needed
    assert load(2, "new") == 2


@pytest.mark.gpu
def test_gpu_agrees_with_opencv(rubber):
    first, second = rubber["first"][None], rubber["second"][None]
    difference = distance(tvl1_pairs(first, second, "torch", device="cuda"), tvl1_pairs(first, second, "opencv"))
    assert difference.mean() < 0.01  # OpenCV moves by 0.005 to 0.006 under 0.001 grey levels of noise
    assert np.median(difference) <= 0.01


@pytest.mark.gpu
def test_gpu_batches_settle_pair_by_pair():
    pairs = [shifted(45, 60, x, 0.3, seed) for seed, x in enumerate((0.0, 2.5, 1.0))]
    first, second = (np.stack(images) for images in zip(*pairs, strict=True))
    together = tvl1_pairs(first, second, "torch", FAST, device="cuda")
    alone = [tvl1_pairs(first[k : k + 1], second[k : k + 1], "torch", FAST, device="cuda")[0] for k in range(3)]
    assert np.abs(together - np.stack(alone)).max() < 1e-3


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("shape", [(3, 3), (3, 40), (17, 5), (16, 16), (21, 19)])
def test_small_and_odd_frames_have_finite_flow(engine, shape):
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    flow = tvl1(frames, engine, TVL1Params(warps=2, outer_iterations=2))
    assert flow.shape == (1, *shape, 2)
    assert np.isfinite(flow).all()


@pytest.mark.parametrize("engine", ["cpu", "opencv", "torch"])
def test_one_frame_has_no_flow(engine):
    flow = tvl1(np.zeros((1, 20, 30), np.uint8), engine)
    assert flow.shape == (0, 20, 30, 2)
    assert flow.dtype == np.float32


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_what_does_not_move_has_no_flow(engine):
    still = shifted(30, 40, 0, 0)[0]
    black = np.zeros_like(still)
    assert (tvl1(np.stack([black, black]), engine, FAST) == 0).all()
    assert np.abs(tvl1(np.stack([still, still]), engine, FAST)).max() < 1e-3


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_cuts_and_flashes_have_finite_flow(engine):
    frames = np.stack([scene(40, 50, 1), 255 - scene(40, 50, 2), np.zeros((40, 50)), np.full((40, 50), 255)])
    assert np.isfinite(tvl1(frames.astype(np.uint8), engine, FAST)).all()


def test_levels_are_opencvs():
    assert pyramid(256, 340, TVL1Params()) == [(256, 340), (205, 272), (164, 218), (131, 174), (105, 139)]
    assert pyramid(20, 340, TVL1Params()) == [(20, 340), (16, 272)]
    assert pyramid(3, 3, TVL1Params()) == [(3, 3)]


def test_the_function_stays_the_function_after_its_module_is_imported():
    import kdcache.motion.tv_l1.cpu  # noqa: F401

    assert motion.tvl1 is tvl1
    assert {*motion.__all__} <= {*dir(motion)}
    with pytest.raises(AttributeError, match="tvl2"):
        motion.tvl2  # noqa: B018


GRAY = np.zeros((2, 20, 20), np.uint8)
WRONG = [
    (lambda: tvl1(GRAY.astype(np.float32)), "float32"),
    (lambda: tvl1([1, 2]), "list"),
    (lambda: tvl1(GRAY[0]), r"\[20, 20\]"),
    (lambda: tvl1(np.zeros((2, 20, 20, 3), np.uint8)), r"\[2, 20, 20, 3\]"),
    (lambda: tvl1(GRAY[:0]), "without frames"),
    (lambda: tvl1(GRAY[:, :2]), "20 × 2"),
    (lambda: tvl1(GRAY, "opencl"), "opencl"),
    (lambda: tvl1(GRAY, "opencvv"), "did you mean 'opencv'"),
    (lambda: tvl1(GRAY, threads=0), "threads"),
    (lambda: tvl1(GRAY, device="cuda"), "device"),
    (lambda: tvl1(GRAY, "torch", device="abacus"), "abacus"),
    (lambda: tvl1(GRAY, "torch", device="cuda:99"), "cuda:99"),
    (lambda: tvl1(GRAY, params=TVL1Params(gamma=0.1)), "gamma"),
    (lambda: tvl1_pairs(GRAY, GRAY[:1]), "equal shapes"),
    (lambda: tvl1_pairs(GRAY, GRAY, initial=np.zeros((2, 20, 20), np.float32)), "initial"),
    (lambda: tvl1_pairs(GRAY, GRAY, initial=np.full((2, 20, 20, 2), np.nan, np.float32)), "finite"),
    (lambda: TVL1Params(tau=0), "tau"),
    (lambda: TVL1Params(lambda_=float("nan")), "lambda_"),
    (lambda: TVL1Params(warps=0), "warps"),
    (lambda: TVL1Params(nscales=2.5), "nscales"),
    (lambda: TVL1Params(scale_step=1.0), "scale_step"),
    (lambda: TVL1Params(epsilon=-1), "epsilon"),
    (lambda: TVL1Params(median_filtering=4), "median_filtering"),
]


@pytest.mark.parametrize(("call", "word"), WRONG)
def test_wrong_input_gets_one_sentence_that_names_it(call, word):
    with pytest.raises((OptionError, DeviceError), match=word) as caught:
        call()
    assert isinstance(caught.value, KdcacheError)
    assert "\n" not in str(caught.value)


def test_gamma_works_where_opencv_does_it():
    frames = np.stack(shifted(24, 30, 1, 0))
    assert np.isfinite(tvl1(frames, "opencv", TVL1Params(gamma=0.1, warps=2))).all()

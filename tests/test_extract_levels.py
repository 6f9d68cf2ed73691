"""Degrees of progress and stacked flow from video, and recipes that stay what they were."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

import kdcache
from kdcache import backbones
from kdcache.backbones.weights import Choice
from kdcache.errors import OptionError
from kdcache.levels import level_frames, level_spans
from kdcache.motion import tvl1
from kdcache.motion.flow_image import quantise
from kdcache.streams.base import ClipSpan
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import flow_pairs
from kdcache.views import Views, cut

SIDE = 40  # short side of the pictures, so that nothing is resized


def pictures(rng, count):
    """Smooth texture that drifts, uint8 [count, 40, 52, 3]."""
    noise = cv2.GaussianBlur(rng.uniform(0, 255, (90, 120, 3)).astype(np.float32), (0, 0), 2)
    noise = 255 * (noise - noise.min()) / np.ptp(noise)
    return np.stack([noise[t : t + 40, 2 * t : 2 * t + 52] for t in range(count)]).astype(np.uint8)


def write(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i:04d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def rows(*clips):
    return pd.DataFrame([(*c, "25") for c in clips], columns=["clip_id", "source", "start_s", "stop_s", "fps"])


NAN = float("nan")


@pytest.fixture(scope="module", autouse=True)
def nets():
    """Each network is drawn once."""
    drawn = {}
    build = backbones.build

    def once(name, weights):
        if name not in drawn:
            drawn[name] = build(name, weights)
        return drawn[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build", once)
        yield once


CALL = {"size": 32, "resize": SIDE, "bar": False, "device": "cpu"}


# ---- recipes


@pytest.mark.parametrize(
    ("stream", "settings", "digest"),
    [
        ("i3d-rgb/mixed4a", {}, "47e22032122ac69656e58eb46945c961"),
        ("tsm-resnet50/clip", {}, "6316247e970f96eb25a0bc89d30bac89"),
        ("i3d-flow/mixed4a", {}, "d68ce070aca85cf0fe8f207d8a523dc9"),
        ("resnet34/layer4", {}, "0040cd2d2696ea95f827dd5a2c510578"),
        ("flow", {"short_side": 256}, "dae926988a1adb0c777b727f31787eb2"),
        ("rgb", {"short_side": 256}, "8d6821a6d80bbc23d94dfdb02200bb5f"),
    ],
)
def test_recipes_from_before_levels_keep_their_digests(stream, settings, digest):
    """Caches made before there were levels, rotations and skeletons are found by these digests."""
    weights = dict.fromkeys(backbones.names(), "random:0")
    assert resolve([stream], StreamSettings(**settings), weights)[0].digest == digest


def test_levels_are_part_of_the_recipe():
    weights = {"tsm": "random:0"}
    plain, ten, prefix = (
        resolve(["tsm/clip"], settings, weights)[0]
        for settings in (StreamSettings(), StreamSettings(levels=10), StreamSettings(levels=10, progress="prefix"))
    )
    assert "progress" not in plain.recipe
    assert ten.recipe["progress"] == {"levels": 10, "mode": "segment"}
    assert prefix.recipe["progress"] == {"levels": 10, "mode": "prefix"}
    assert plain.shape == (1, 1, 2048)
    assert ten.shape == (1, 10, 2048)
    (pool,) = resolve(["tsm/pool"], StreamSettings(levels=10, views=("centre", "centre-flip")), weights)
    assert pool.shape == (2, 10, 8, 2048)


def test_an_alias_names_the_stream_and_the_backbone_keeps_its_name():
    for weights in ({"tsm": "random:3"}, {"tsm-resnet50": "random:3"}):
        (stream,) = resolve(["tsm/pool"], StreamSettings(), weights)
        assert (stream.name, stream.backbone) == ("tsm/pool", "tsm-resnet50")
        assert stream.recipe["backbone"]["name"] == "tsm-resnet50"
        assert stream.digest == resolve(["tsm-resnet50/pool"], StreamSettings(), weights)[0].digest
        assert stream.recipe["backbone"]["weights"] == Choice(seed=3).identity()
    assert backbones.input_spec("tsm") == backbones.input_spec("tsm-resnet50")
    with pytest.raises(OptionError, match="did you mean 'tsm'"):
        backbones.input_spec("tms")


# ---- which frames


@pytest.mark.parametrize("mode", ["segment", "prefix"])
@pytest.mark.parametrize("fps", [None, 12.5, 60.0])
@pytest.mark.parametrize("backbone", ["tsm", "i3d-flow", "resnet34-flow", "resnet34-flow5"])
def test_no_level_takes_a_frame_after_its_end(mode, fps, backbone):
    weights = dict.fromkeys(backbones.names(), "random:0")
    layer = backbones.input_spec(backbone).default_layer
    for count, start, stop in ((100, NAN, NAN), (60, 0.52, 1.72), (60, 0.52, 0.6), (7, NAN, NAN), (1, NAN, NAN)):
        times = np.arange(count) / 25
        low = 0 if math.isnan(start) else round(start * 25)
        high = count if math.isnan(stop) else round(stop * 25)
        settings = StreamSettings(levels=6, progress=mode, fps=fps, anchor="last")
        (stream,) = resolve([f"{backbone}/{layer}"], settings, weights)
        request = stream.request(times, ClipSpan("a", start, stop))
        frames = request.indices.reshape(6, -1)
        spans = low + level_spans(high - low, 6, mode)
        assert frames.shape[1] == stream.sampling.frames
        assert (frames >= spans[:, :1]).all()
        assert (frames < spans[:, 1:]).all()
        if stream.bound is not None:
            pairs = request.pairs.reshape(6, -1)
            assert pairs.shape[1] == 2 * stream.stack * stream.sampling.frames
            assert (pairs >= spans[:, :1]).all()
            assert (pairs < spans[:, 1:]).all()


def test_levels_of_even_sampling_are_the_published_frames():
    (stream,) = resolve(["tsm/clip"], StreamSettings(levels=10), {"tsm": "random:0"})
    for count in (160, 83, 12):
        request = stream.request(np.arange(count) / 25, ClipSpan("a", NAN, NAN))
        assert request.indices.tolist() == level_frames(count, 10, 8).ravel().tolist()


# ---- TSM


def test_tsm_levels_are_clips_of_their_own_and_causal(tmp_path, nets):
    rng = np.random.default_rng(0)
    frames = pictures(rng, 30)
    changed = frames.copy()
    changed[20:] = rng.integers(0, 256, changed[20:].shape, np.uint8)  # level 2 of 3 ends before frame 20
    write(tmp_path / "before", frames)
    write(tmp_path / "after", changed)
    table = rows(("before", "before", NAN, NAN), ("after", "after", NAN, NAN))
    weights = {"tsm-resnet50": "random:0"}
    streams = ["tsm/clip", "tsm/pool"]
    kdcache.extract(table, tmp_path, tmp_path / "out", streams, weights, levels=3, dtype="float32", **CALL)
    cache = kdcache.Cache(tmp_path / "out")
    clip, pool = (cache.read(s, ["before", "after"]) for s in streams)
    assert clip.shape == (2, 1, 3, 2048)
    assert pool.shape == (2, 1, 3, 8, 2048)
    net = nets("tsm-resnet50", "random:0")
    wanted = level_frames(30, 3, 8)
    assert cache.frames("tsm/clip", ["before"])[0].tolist() == wanted.ravel().tolist()
    views = Views(size=32, resize=SIDE)
    for level in range(3):
        x = torch.from_numpy(cut(frames[wanted[level]], views))
        with torch.inference_mode():
            expected = net.features(net.prepare(x), "pool").numpy()[0]
        assert np.allclose(pool[0, 0, level], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(clip, pool.mean(axis=3), rtol=1e-4, atol=1e-4 * np.abs(clip).max())
    assert np.array_equal(clip[0, :, :2], clip[1, :, :2])
    assert not np.array_equal(clip[0, :, 2], clip[1, :, 2])


# ---- stacked flow


def test_flow_stacks_by_hand():
    def stack(frames, low, high, size):
        found = flow_pairs(np.array(frames, np.int32), low, high, dense=False, fps=None, stack=size)
        assert (found[:, 1] - found[:, 0] <= 1).all()
        return found[:, 0].reshape(-1, size).tolist()

    assert stack([10, 14, 19], 10, 20, 3) == [[10, 10, 11], [13, 14, 15], [18, 18, 18]]
    assert stack([12], 10, 20, 5) == [[10, 11, 12, 13, 14]]
    assert flow_pairs(np.array([4], np.int32), 4, 5, dense=False, fps=None, stack=3).tolist() == [[4, 4]] * 3


@pytest.mark.parametrize(("backbone", "size"), [("resnet34-flow", 3), ("resnet34-flow5", 5)])
def test_stacked_flow_is_that_of_a_direct_computation(tmp_path, nets, backbone, size):
    """Bytes of x0, y0, x1, y1, … of consecutive fields round each frame; the mirrored view negates every x."""
    frames = pictures(np.random.default_rng(1), 10)
    write(tmp_path / "a", frames)
    stream = f"{backbone}/layer1"
    settings = {"views": ["centre", "centre-flip"], "frames": 4, "dtype": "float32", **CALL}
    kdcache.extract(
        rows(("a", "a", NAN, NAN)), tmp_path, tmp_path / "out", [stream], {backbone: "random:0"}, **settings
    )
    cache = kdcache.Cache(tmp_path / "out")
    sampled = [1, 3, 6, 8]
    assert cache.frames(stream, ["a"])[0].tolist() == sampled
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])
    fields = quantise(tvl1(gray), 20.0)[:, 4:36, 10:42]  # the centre crop of 32 × 32
    expected = np.zeros((2, 4, 32, 32, 2 * size), np.uint8)
    for t, frame in enumerate(sampled):
        for k in range(size):
            field = fields[min(max(frame + k - size // 2, 0), 8)]
            expected[0, t, ..., 2 * k : 2 * k + 2] = field
            expected[1, t, ..., 2 * k] = 256 - field[:, ::-1, 0].astype(int)
            expected[1, t, ..., 2 * k + 1] = field[:, ::-1, 1]
    net = nets(backbone, "random:0")
    with torch.inference_mode():
        features = net.features(net.prepare(torch.from_numpy(expected)), "layer1").numpy()
    found = cache.read(stream, ["a"])[0]
    assert found.shape == features.shape == (2, 4, 64, 8, 8)
    assert np.abs(fields.astype(int) - 128).max() > 5  # the texture moves
    assert np.allclose(found, features, rtol=1e-3, atol=1e-3 * np.abs(features).max())
    assert cache.recipe(stream)["stack"] == size

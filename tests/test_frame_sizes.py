"""Whole-clip streams of small sources: enlarged where a size is given alone; what needed no enlarging stays cached."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from make_videos import pictures, write

import kdcache
from kdcache.errors import StoreError
from kdcache.sources import open_source
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

STREAMS = ["rgb", "flow", "flow-warped", "idt"]
CALL = {"rgb": "raw", "bar": False, "device": "cpu"}
NAN = float("nan")
GOLDEN = {
    "rgb": "8d6821a6d80bbc23d94dfdb02200bb5f",
    "flow": "dae926988a1adb0c777b727f31787eb2",
    "flow-warped": "391679094bc164640071f25a5abe5bee",
    "idt": "6b17e42e54db2ad931fb60d619049bb6",
}


def rows(*names):
    return pd.DataFrame([(n, f"{n}.mp4", NAN, NAN) for n in names], columns=["clip_id", "source", "start_s", "stop_s"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small video (upright, 48 wide), and two whose frames are as large as the default or larger."""
    folder = tmp_path_factory.mktemp("sizes")
    write(folder / "small.mp4", pictures(4, 48, 64))
    write(folder / "exact.mp4", pictures(3, 320, 256))
    write(folder / "large.mp4", pictures(3, 400, 288))
    return folder


def shapes(cache, stream):
    clips = cache.clips["clip_id"].tolist()
    return dict(zip(clips, (a.shape[1:3] for a in cache.read(stream, clips)), strict=True))


def test_small_sources_keep_their_size_and_large_ones_are_shrunk(root, tmp_path):
    report = kdcache.extract(rows("small", "exact", "large"), root, tmp_path, STREAMS, **CALL)
    assert not report.failures
    cache = kdcache.Cache(tmp_path)
    for stream in STREAMS:
        assert shapes(cache, stream) == {"small": (64, 48), "exact": (256, 320), "large": (256, 356)}
        assert cache.recipe(stream)["short_side"] == 256
        assert cache.recipe(stream)["enlarge"] is False
    with open_source(root / "small.mp4") as source:
        frames = np.stack(list(source.read(range(4))))
    np.testing.assert_array_equal(cache.read("rgb", ["small"])[0], frames)  # untouched


def test_a_number_that_is_given_is_the_size_of_all_and_the_recipe_of_before(root, tmp_path):
    kdcache.extract(rows("small"), root, tmp_path, ["rgb"], short_side=256, **CALL)
    cache = kdcache.Cache(tmp_path)
    assert shapes(cache, "rgb") == {"small": (341, 256)}
    assert "enlarge" not in cache.recipe("rgb")


@pytest.mark.parametrize("stream", STREAMS)
def test_recipes_of_a_given_size_are_as_they_were(stream):
    """The digests of what was the default before."""
    (exact,) = resolve([stream], StreamSettings(short_side=256))
    (default,) = resolve([stream], StreamSettings())
    assert exact.digest == GOLDEN[stream]
    assert default.digest != exact.digest
    assert default.enlarging.digest == exact.digest
    assert exact.enlarging is None


def test_clips_that_needed_no_enlarging_are_found_and_read_beside_new_ones(root, tmp_path):
    """A cache of before holds three clips at 256: two of them are what the default gives, one was enlarged."""
    kdcache.extract(rows("small", "exact", "large"), root, tmp_path, ["rgb", "flow"], short_side=256, **CALL)
    before = kdcache.Cache(tmp_path).read("flow", ["exact", "large"])
    large = kdcache.extract(rows("exact", "large"), root, tmp_path, ["rgb", "flow"], **CALL)
    assert (large.cached, large.extracted) == (2, 0)
    named = kdcache.extract(rows("small", "exact"), root, tmp_path, ["rgb", "flow"], short_side=256, **CALL)
    assert (named.cached, named.extracted) == (2, 0)
    mixed = kdcache.extract(rows("small", "exact", "large"), root, tmp_path, ["rgb", "flow"], **CALL)
    assert (mixed.cached, mixed.extracted) == (2, 1)
    cache = kdcache.Cache(tmp_path)
    assert cache.recipe("flow")["enlarge"] is False
    assert shapes(cache, "rgb") == {"small": (64, 48), "exact": (256, 320), "large": (256, 356)}
    for a, b in zip(before, cache.read("flow", ["exact", "large"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert cache.verify().ok
    again = kdcache.extract(rows("small", "exact", "large"), root, tmp_path, ["rgb", "flow"], **CALL)
    assert (again.cached, again.extracted) == (3, 0)


def test_an_enlarged_clip_is_not_read_beside_one_that_kept_its_size(root, tmp_path):
    kdcache.extract(rows("small"), root, tmp_path, ["rgb"], short_side=256, **CALL)
    kdcache.extract(rows("exact"), root, tmp_path, ["rgb"], **CALL)
    with pytest.raises(StoreError, match=r"mixes recipes.*enlarge"):
        kdcache.Cache(tmp_path).recipe("rgb")


def test_flow_of_features_and_of_a_cached_stream_is_computed_once(root, tmp_path, monkeypatch):
    """Both take frames of 256 pixels of the large source, whatever is said of smaller ones."""
    import kdcache.motion

    calls = []
    real = kdcache.motion.tvl1_pairs

    def counted(first, second, **options):
        calls.append(len(first))
        return real(first, second, **options)

    monkeypatch.setattr(kdcache.motion, "tvl1_pairs", counted)
    settings = {**CALL, "frames": 8, "size": 224, "weights": {"i3d-flow": "random:0"}}
    kdcache.extract(rows("exact"), root, tmp_path, ["flow", "i3d-flow/mixed4a"], **settings)
    assert sum(calls) == 2  # the two pairs of three frames

"""Extraction end to end on small rendered videos: what is written, what is skipped, what fails, what survives."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from make_videos import pictures, write

import kdcache
from kdcache import backbones
from kdcache.backbones.freeze import FrozenLayers
from kdcache.demo.scene import make_dataset
from kdcache.errors import ClipError, DeviceError, OptionError, SourceError, StoreError
from kdcache.extraction import features as features_module
from kdcache.extraction import run as run_module
from kdcache.manifest import validate
from kdcache.sampling import Sampling, sample
from kdcache.sources import open_source
from kdcache.store import load_index
from kdcache.store.failures import load_failures
from kdcache.streams.video import flow_pairs
from kdcache.views import Views, cut, resize_short_side

STREAM = "i3d-rgb/mixed4a"
SMALL = {"size": 32, "frames": 8, "weights": {"i3d-rgb": "random:0", "i3d-flow": "random:0"}, "bar": False}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Six short videos with two clips each."""
    folder = tmp_path_factory.mktemp("dataset")
    make_dataset(folder, clips_per_class=1)
    return folder


@pytest.fixture
def rows(dataset) -> pd.DataFrame:
    return kdcache.read_manifest(dataset / "clips.csv", dataset)


def arrays(out: Path, stream: str = STREAM) -> dict[str, np.ndarray]:
    cache = kdcache.Cache(out)
    held = cache.clips["clip_id"][cache.has(stream)].tolist()
    return dict(zip(held, cache.read(stream, held), strict=True))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


@pytest.fixture(scope="module")
def clean_run(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "out"
    report = kdcache.extract(dataset / "clips.csv", root=dataset, out=out, streams=[STREAM], **SMALL)
    assert (report.extracted, report.cached, report.failures) == (12, 0, [])
    return out


def test_cached_features_are_those_of_the_network_on_the_sampled_frames(clean_run, dataset, rows):
    net = backbones.build("i3d-rgb", weights="random:0")
    cached = arrays(clean_run)
    for row in rows.iloc[[0, 5]].itertuples():
        with open_source(dataset / row.source) as source:
            indices = sample(source.times, row.start_s, row.stop_s, Sampling(8))
            assert source.times[indices].max() < row.stop_s
            frames = [resize_short_side(f, 37) for f in source.read(np.unique(indices))]
        segment = np.stack([frames[np.unique(indices).tolist().index(i)] for i in indices])
        x = net.prepare(torch.from_numpy(cut(segment, Views(size=32))))
        with torch.inference_mode():
            expected = net.features(x, "mixed4a").numpy()
        assert np.allclose(cached[row.clip_id], expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
        assert kdcache.Cache(clean_run).frames(STREAM, [row.clip_id])[0].tolist() == indices.tolist()


def test_an_unchanged_second_call_opens_nothing(clean_run, dataset, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a source was opened")

    monkeypatch.setattr("kdcache.streams.video.open_source", refuse)
    before = (clean_run / "manifest.csv").stat().st_mtime_ns
    report = kdcache.extract(dataset / "clips.csv", root=dataset, out=clean_run, streams=[STREAM], **SMALL)
    assert (report.cached, report.extracted, report.sources) == (12, 0, 0)
    assert (clean_run / "manifest.csv").stat().st_mtime_ns == before


def test_only_what_is_new_is_computed(clean_run, dataset, rows, tmp_path):
    """Another lead time moves the observed spans; the action clips are found by key, under any clip_id."""
    out = tmp_path / "out"
    shutil.copytree(clean_run, out)
    later = rows.copy()
    observed = later["role"] == "observed"
    later.loc[observed, "stop_s"] -= 0.4
    later["clip_id"] += "@0.4"
    report = kdcache.extract(later, root=dataset, out=out, streams=[STREAM], **SMALL)
    assert (report.cached, report.extracted) == (6, 6)
    old, new = arrays(clean_run), arrays(out)
    assert len(new) == 24
    for clip in rows["clip_id"]:
        same_span = clip.endswith("action")
        assert (new[f"{clip}@0.4"] == old[clip]).all() == same_span


def test_clips_of_one_span_are_computed_once(dataset, rows, tmp_path):
    twice = pd.concat([rows.iloc[:2], rows.iloc[:2].assign(clip_id=["again-0", "again-1"])], ignore_index=True)
    report = kdcache.extract(twice, root=dataset, out=tmp_path, streams=[STREAM], **SMALL)
    assert report.extracted == 4
    index = load_index(tmp_path)
    assert index[f"{STREAM}:row"].tolist() == [0, 1, 0, 1]


def test_a_cache_never_mixes_recipes_for_the_clips_at_hand(clean_run, dataset, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(clean_run, out)
    changed = {**SMALL, "dtype": "float32"}
    report = kdcache.extract(dataset / "clips.csv", root=dataset, out=out, streams=[STREAM], **changed)
    assert report.extracted == 12
    assert kdcache.Cache(out).recipe(STREAM)["dtype"] == "float32"
    back = kdcache.extract(dataset / "clips.csv", root=dataset, out=out, streams=[STREAM], **SMALL)
    assert back.cached == 12  # the old arrays are still there, found by key
    assert same(arrays(out), arrays(clean_run))


def test_workers_and_parts_write_the_same_arrays(clean_run, dataset, tmp_path):
    kdcache.extract(dataset / "clips.csv", root=dataset, out=tmp_path / "two", streams=[STREAM], workers=2, **SMALL)
    assert same(arrays(tmp_path / "two"), arrays(clean_run))
    assert len(list((tmp_path / "two").glob("shard-*.h5"))) == 2
    for part in ((1, 2), (2, 2)):
        kdcache.extract(
            dataset / "clips.csv", root=dataset, out=tmp_path / "parts", streams=[STREAM], part=part, **SMALL
        )
    assert same(arrays(tmp_path / "parts"), arrays(clean_run))


def test_all_streams_from_one_decode(dataset, rows, tmp_path):
    streams = ["rgb", "flow", "flow-warped", "idt", STREAM, "i3d-flow/mixed4a"]
    some = rows.iloc[:3]
    report = kdcache.extract(some, root=dataset, out=tmp_path, streams=streams, short_side=48, **SMALL)
    assert (report.extracted, report.failures) == (3, [])
    cache = kdcache.Cache(tmp_path)
    assert cache.streams == sorted(streams)
    clip = some["clip_id"][1]
    rgb, flow, warped, idt = (cache.read(s, [clip])[0] for s in streams[:4])
    frames = cache.frames("rgb", [clip])[0]
    assert frames.tolist() == list(range(20, 48))
    assert rgb.shape == (28, 48, 64, 3)
    assert flow.shape == warped.shape == (27, 48, 64, 2)
    assert idt.shape == (28, 48, 64)
    assert set(np.unique(idt)) <= {0, 255}
    with open_source(dataset / some["source"][1]) as source:
        truth = np.stack([resize_short_side(f, 48) for f in source.read(frames)])
    assert np.abs(rgb.astype(int) - truth).mean() < 3  # JPEG at quality 95
    from kdcache.motion import tvl1
    from kdcache.motion.flow_image import quantise

    gray = np.stack([np.round(f @ [0.299, 0.587, 0.114]).astype(np.uint8) for f in truth])
    ours = quantise(tvl1(gray), 20.0)
    assert np.abs(flow.astype(int) - ours).mean() < 0.05
    assert not (flow == warped).all()
    assert cache.read("i3d-flow/mixed4a", [clip]).shape == (1, 1, 480, 2, 2, 2)


@pytest.mark.parametrize(
    ("indices", "low", "high", "dense", "fps", "pairs"),
    [
        ([3, 4, 5], 3, 6, True, None, [[3, 4], [4, 5]]),
        ([3, 4, 5], 3, 6, False, None, [[3, 4], [4, 5], [4, 5]]),  # nothing after the clip's last frame
        ([2, 4, 6], 2, 8, False, 12.5, [[2, 4], [4, 6], [4, 6]]),
        ([7], 7, 8, False, None, [[7, 7]]),
        ([7], 7, 8, False, 10.0, [[7, 7]]),
        ([7], 7, 8, True, None, []),
    ],
)
def test_flow_pairs_stay_inside_the_clip(indices, low, high, dense, fps, pairs):
    found = flow_pairs(np.array(indices, np.int32), low, high, dense=dense, fps=fps)
    assert found.tolist() == pairs


# ---------------------------------------------------------------------------
# what goes wrong
# ---------------------------------------------------------------------------


@pytest.fixture
def broken(dataset, rows, tmp_path):
    """A root with one good video and one of each kind of bad clip."""
    root = tmp_path / "root"
    (root / "videos").mkdir(parents=True)
    good = dataset / rows["source"][0]
    shutil.copy(good, root / "videos/good.mp4")
    (root / "videos/empty.mp4").write_bytes(b"")
    (root / "videos/cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size * 6 // 10])
    (root / "videos/text.mp4").write_text("not a video")
    spans = {"good": (0, 1), "empty": (0, 1), "cut": (0, 1), "text": (0, 1), "missing": (0, 1), "late": (99, 100)}
    table = pd.DataFrame(
        {
            "clip_id": list(spans),
            "source": [f"videos/{'good' if n == 'late' else n}.mp4" for n in spans],
            "start_s": [float(a) for a, _ in spans.values()],
            "stop_s": [float(b) for _, b in spans.values()],
        }
    )
    kdcache.write_manifest(table, root / "clips.csv")
    return root


def test_bad_clips_are_listed_and_the_run_goes_on(broken, tmp_path):
    out = tmp_path / "out"
    report = kdcache.extract(broken / "clips.csv", root=broken, out=out, streams=[STREAM], **SMALL)
    assert report.extracted == 1
    listed = {f.clip_id: f for f in load_failures(out)}
    assert set(listed) == {"empty", "cut", "text", "missing", "late"}
    for name, failure in listed.items():
        assert failure.reason.endswith("."), failure.reason
        assert ("99" in failure.reason) if name == "late" else (f"{name}.mp4" in failure.reason)
    assert list(arrays(out)) == ["good"]
    with pytest.raises(StoreError, match=r"missing.*no such file"):
        kdcache.Cache(out).read(STREAM, ["missing"])


def test_failed_clips_wait_until_asked_for_or_changed(broken, dataset, rows, tmp_path):
    out = tmp_path / "out"
    call = {"root": broken, "out": out, "streams": [STREAM], **SMALL}
    kdcache.extract(broken / "clips.csv", **call)
    again = kdcache.extract(broken / "clips.csv", **call)
    assert (again.sources, len(again.failures)) == (0, 5)
    retried = kdcache.extract(broken / "clips.csv", retry_failed=True, **call)
    assert (retried.extracted, len(retried.failures)) == (0, 5)
    shutil.copy(dataset / rows["source"][2], broken / "videos/missing.mp4")
    shutil.copy(dataset / rows["source"][4], broken / "videos/cut.mp4")
    fixed = kdcache.extract(broken / "clips.csv", **call)
    assert (fixed.extracted, len(fixed.failures)) == (2, 3)


def test_features_that_are_not_finite_fail_their_clip(dataset, rows, tmp_path, monkeypatch):
    real = features_module._checked

    def poisoned(features, stream):
        if not poisoned.done:
            poisoned.done = True
            features = np.full_like(features, np.inf)
        return real(features, stream)

    poisoned.done = False
    monkeypatch.setattr(features_module, "_checked", poisoned)
    report = kdcache.extract(rows, root=dataset, out=tmp_path, streams=[STREAM], **SMALL)
    assert (report.extracted, len(report.failures)) == (11, 1)
    assert "NaN or infinite" in report.failures[0].reason


def test_overflow_of_the_stored_type_is_an_error_not_infinity():
    from kdcache.streams.registry import resolve
    from kdcache.streams.settings import StreamSettings

    (stream,) = resolve([STREAM], StreamSettings(size=32, frames=8), {"i3d-rgb": "random:0"})
    result = features_module._checked(np.full((1, 2), 1e5, np.float32), stream)
    assert isinstance(result, ClipError)
    assert "float32" in str(result)


def test_running_out_of_memory_halves_the_batch(dataset, rows, tmp_path, monkeypatch):
    seen = []
    real = FrozenLayers.at

    def limited(self, layers, x):
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("too much")
        return real(self, layers, x)

    monkeypatch.setattr(FrozenLayers, "at", limited)
    report = kdcache.extract(rows, root=dataset, out=tmp_path, streams=[STREAM], batch=8, **SMALL)
    assert report.extracted == 12
    assert seen[:4] == [8, 4, 2, 2]


def test_a_full_disk_is_noticed_before_any_work(dataset, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StoreError, match=r"kB are to be written and 67\.1 MB kept free, but only 1\.0 kB are free"):
        kdcache.extract(rows, root=dataset, out=tmp_path / "out", streams=[STREAM], **SMALL)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("shard*"))


def test_a_dry_run_writes_nothing(dataset, rows, tmp_path):
    report = kdcache.extract(rows, root=dataset, out=tmp_path / "out", streams=[STREAM], dry_run=True, **SMALL)
    assert report.bytes == 12 * 480 * 2 * 2 * 2 * 2
    assert "12 clips" in str(report)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"streams": ["i3d-rgb/mixed9z"]}, OptionError, "mixed9z"),
        ({"streams": ["flwo"]}, OptionError, "did you mean 'flow'"),
        ({"streams": ["i3d-rgb"]}, OptionError, "i3d-rgb/mixed4a"),
        ({"sise": 3}, OptionError, "did you mean 'size'"),
        ({"views": ("middle",)}, OptionError, "middle"),
        ({"part": (3, 2)}, OptionError, "--part 3/2"),
    ],
)
def test_wrong_options_are_refused_by_name(dataset, rows, tmp_path, change, error, match):
    options = {"streams": [STREAM], **SMALL, **change}
    with pytest.raises(error, match=match):
        kdcache.extract(rows, root=dataset, out=tmp_path / "out", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error(dataset, rows, tmp_path):
    with pytest.raises(DeviceError, match="device"):
        kdcache.extract(rows, root=dataset, out=tmp_path, streams=[STREAM], device="cuda", **SMALL)


def test_a_missing_root_is_an_error(rows, tmp_path):
    with pytest.raises((OptionError, SourceError), match="root"):
        kdcache.extract(rows, root=tmp_path / "nowhere", out=tmp_path, streams=[STREAM], **SMALL)


def test_extraction_sets_its_threads_and_leaves_them_as_they_were(tmp_path, monkeypatch):
    """Those of OpenCV too: it would start one a core in every worker."""
    before, inside = (torch.get_num_threads(), cv2.getNumThreads()), []
    write(tmp_path / "a.mp4", pictures(20))
    rows = validate(pd.DataFrame([{"clip_id": "a", "source": "a.mp4", "start_s": None, "stop_s": None}]))
    monkeypatch.setattr("kdcache.runtime.cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    real = features_module.Backbones.several

    def features(*args):
        inside.append((torch.get_num_threads(), cv2.getNumThreads()))
        return real(*args)

    monkeypatch.setattr(features_module.Backbones, "several", features)
    torch.set_num_threads(2)
    cv2.setNumThreads(4)
    try:
        kdcache.extract(rows, tmp_path, tmp_path / "out", ["resnet34/pool"], {"resnet34": "random:0"}, size=32)
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 4)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert inside == [(3, 3)]

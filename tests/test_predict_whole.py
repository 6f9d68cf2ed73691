"""Runs that see whole clips answer for a source as for the cached clip, from what their network reads alone."""

from __future__ import annotations

import shutil
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import streams_cache
import test_privileged
import torch
from click.testing import CliRunner
from make_videos import pictures, write
from unsealed import unsealed

import kdcache
from kdcache.cli import main
from kdcache.data.inputs import bind
from kdcache.data.open import StreamPool, open_streams
from kdcache.errors import ClipError, OptionError, SourceError, WeightsError
from kdcache.methods import registry
from kdcache.methods.contract import Input, Predictor, Segment
from kdcache.runs.online.clip import CLIP, SourceClip
from kdcache.sources.video import VideoSource
from kdcache.streams import video
from kdcache.streams.base import ClipSpan
from kdcache.streams.registry import resolve, restore
from kdcache.streams.settings import StreamSettings

pytestmark = pytest.mark.usefixtures("one_thread")
START, STOP = 0.2, 1.0  # frames 5 to 24 at 25 frames a second
SPAN = {"start": START, "stop": STOP}
MAPS = "i3d-rgb/mixed4a"
RECOGNITION = {"init": "random:0", "frames": 2, "size": 32, "epochs": 1, "batch_size": 2, "lr": 0.01}
CLIPS = [("v0", "train", 0), ("v1", "train", 3), ("v2", "train", 0), ("v3", "validation", 3), ("v4", "test", 0)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five short videos whose frames and flow are cached."""
    root = tmp_path_factory.mktemp("videos")
    for i, (name, _, _) in enumerate(CLIPS):
        write(root / f"{name}.mp4", pictures(30, 64, 48, seed=i))
    rows = [(name, f"{name}.mp4", START, STOP, split, label, f"class {label}") for name, split, label in CLIPS]
    columns = ["clip_id", "source", "start_s", "stop_s", "split", "label", "class"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "clips.csv", index=False)
    for stream in ("rgb", "flow"):  # each in a shard of its own
        kdcache.extract(root / "clips.csv", root, root / "out", [stream], short_side=40, bar=False)
    return root


@pytest.fixture(scope="module")
def recognition(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    options = {**RECOGNITION, "backbone": "resnet34", "augmentations": 5}
    return kdcache.train("recognition", videos / "out", out=out, device="cpu", **options)


@pytest.fixture
def with_flow(monkeypatch):
    """The method of ``test_privileged``: it reads frames, and flow while it trains."""
    names = ("inputs", "resolve", "stages", "predictor")
    module = ModuleType("kdcache.methods.with_flow")
    for name in names:
        setattr(module, name, getattr(test_privileged, name))
    module.Options = test_privileged.WithFlowOptions
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.METHODS, "with-flow", module.__name__)
    return module


def assert_one_answer(told, expected, end_s=STOP):
    (one,) = told
    assert (one.level, one.observed, one.seconds) == (1, 100, pytest.approx(end_s))
    assert one.classes == tuple(expected.columns)
    np.testing.assert_allclose(one.probabilities, expected.to_numpy()[0], atol=1e-5, rtol=0)
    return one


def test_recognition_on_cached_frames(recognition, videos):
    told = {clip: list(kdcache.predict(recognition.path, videos / f"{clip}.mp4", **SPAN)) for clip in ("v0", "v4")}
    for clip, answer in told.items():
        one = assert_one_answer(answer, recognition.predict([clip]))
        assert one.names == ("class 0", "class 3")
    assert not np.allclose(told["v0"][0].probabilities, told["v4"][0].probabilities, atol=1e-4)
    (best,) = kdcache.predict(recognition, videos / "v4.mp4", which="best", device="cpu", **SPAN)
    assert np.allclose(best.probabilities, recognition.predict(["v4"], "best").to_numpy()[0], atol=1e-5)


def test_only_the_frames_that_are_shown_are_decoded(recognition, videos, monkeypatch):
    read, seen = VideoSource.read, []

    def spy(self, indices):
        seen.extend(int(i) for i in indices)
        return read(self, indices)

    monkeypatch.setattr(VideoSource, "read", spy)
    list(kdcache.predict(recognition, videos / "v4.mp4", **SPAN))
    assert seen == [10, 20]  # of frames 5 to 24 the middles of two halves


def test_a_privileged_stream_is_neither_read_nor_computed(with_flow, videos, tmp_path, monkeypatch):
    cache = shutil.copytree(videos / "out", tmp_path / "out")
    run = kdcache.train("with-flow", cache, out=tmp_path / "run", device="cpu", epochs=1)
    expected = run.predict(["v4"])
    streams_cache.shard_of(cache, "flow").unlink()
    text = unsealed(run.path / "recipes.json").read_text().replace('"tvl1"', '"destroyed"')
    (run.path / "recipes.json").write_text(text)
    monkeypatch.setattr(video.FlowMemory, "get", lambda *args: pytest.fail("flow was computed"))
    assert_one_answer(kdcache.predict(run.path, videos / "v4.mp4", **SPAN), expected)


def test_flow_that_the_network_reads_is_computed(with_flow, videos, tmp_path, monkeypatch):
    segment = Segment(frames=3, size=16, resize=20, augmentations=2, stack=3)
    both = (
        Input(name="x", axes="THWC", stream="rgb", segment=Segment(frames=3, size=16, resize=20, augmentations=2)),
        Input(name="hint", axes="THWC", stream="flow", segment=segment),
    )
    classes = 2

    def networks():
        return torch.nn.ModuleDict(
            {"network": test_privileged.Pixels(3, classes), "teacher": test_privileged.Pixels(6, classes)}
        )

    def predictor(options, data):
        two = networks()

        def predict(batch):
            return two["network"](batch["x"])["logits"] + two["teacher"](batch["hint"])["logits"]

        return Predictor(stage="both", module=two, predict=predict, inputs=dict(data.inputs), role="clip")

    stages = test_privileged.stages

    def both_stages(options, data):
        with monkeypatch.context() as patch:
            made = iter([3, 6])
            pixels = test_privileged.Pixels
            patch.setattr(test_privileged, "Pixels", lambda channels, classes: pixels(next(made), classes))
            yield from stages(options, data)

    with_flow.inputs = lambda options: both
    with_flow.predictor = predictor
    with_flow.stages = both_stages
    run = kdcache.train("with-flow", videos / "out", out=tmp_path / "run", device="cpu", epochs=1)
    computed, get = [], video.FlowMemory.get

    def spy(self, clip, pairs, *how):
        computed.append(len(pairs))
        return get(self, clip, pairs, *how)

    monkeypatch.setattr(video.FlowMemory, "get", spy)
    assert_one_answer(kdcache.predict(run.path, videos / "v4.mp4", **SPAN), run.predict(["v4"]))
    assert computed == [9]  # of 19 fields


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three pairs of clips of one video with maps in two views of a network of random weights."""
    root = tmp_path_factory.mktemp("pairs")
    write(root / "long.mp4", pictures(40, 64, 48))
    rows = [
        (f"{pair}-{role}", "long.mp4", 0.2 * i + shift, 0.2 * i + shift + 0.4, split, i % 2, role, pair)
        for i, (pair, split) in enumerate((("a", "train"), ("b", "train"), ("c", "validation")))
        for role, shift in (("observed", 0.0), ("action", 0.6))
    ]
    columns = ["clip_id", "source", "start_s", "stop_s", "split", "label", "role", "pair"]
    settings = {"frames": 8, "size": 32, "views": ("centre-flip", "centre"), "bar": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.extraction.run.cores", lambda: 1)
        table = pd.DataFrame(rows, columns=columns)
        kdcache.extract(table, root, root / "out", [MAPS], weights={"i3d-rgb": "random:0"}, **settings)
    options = {"device": "cpu", "epochs": 1, "loss_d": "none"}
    return root, kdcache.train("anticipation", root / "out", out=root / "run", **options)


def test_anticipation_from_maps(pairs):
    root, run = pairs
    expected = run.predict(["c-observed"])
    one = assert_one_answer(kdcache.predict(run, root / "long.mp4", start=0.4, stop=0.8), expected, 0.8)
    (other,) = kdcache.predict(run, root / "long.mp4", start=1.0, stop=1.4)
    assert np.abs(other.probabilities - one.probabilities).max() > 1e-3
    args = ["predict", str(run.path), str(root / "long.mp4"), "--start", "0.4", "--stop", "0.8"]
    result = CliRunner().invoke(main, [*args, "--weights", "i3d-rgb=random:0"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("0.80 s  ")
    assert len(result.stdout.splitlines()) == 1


def test_what_is_computed_is_what_extraction_caches(pairs, videos):
    root, _ = pairs
    cached = kdcache.Cache(root / "out")
    (stream,) = resolve(
        [MAPS], StreamSettings(frames=8, size=32, views=("centre-flip", "centre")), {"i3d-rgb": "random:0"}
    )
    with SourceClip([stream], [ClipSpan(root / "long.mp4", 0.4, 0.8)], "cpu") as clip:
        assert (clip.shape(MAPS), clip.dtype(MAPS)) == (cached.shape(MAPS), cached.dtype(MAPS))
        assert np.array_equal(clip.frames(MAPS, [CLIP]), cached.frames(MAPS, ["c-observed"]))
        want = cached.read(MAPS, ["c-observed"])
        np.testing.assert_allclose(clip.read(MAPS, [CLIP]), want, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(clip.read(MAPS, [CLIP], 1), want[:, 1], rtol=2e-3, atol=1e-4)
    extracted = kdcache.Cache(videos / "out")
    dense = resolve(["rgb", "flow", "idt"], StreamSettings(short_side=40))
    with SourceClip(dense, [ClipSpan(videos / "v4.mp4", START, STOP)] * 3, "cpu") as clip:
        for name in ("rgb", "flow"):
            (want,) = extracted.read(name, ["v4"])
            assert clip.length(name, CLIP) == len(want)
            assert np.array_equal(clip.read_frames(name, CLIP, np.array([2, 7, 18])), want[[2, 7, 18]])
            assert np.array_equal(clip.read(name, [CLIP])[0], want)
            assert np.array_equal(clip.frames(name, [CLIP])[0], extracted.frames(name, ["v4"])[0])
        maps = clip.read("idt", [CLIP])[0]
        assert clip.length("idt", CLIP) == len(maps) == 20
        assert np.array_equal(clip.read_frames("idt", CLIP, np.array([3, 16])), maps[[3, 16]])


def test_frames_beside_features_are_those_of_the_cache(videos, tmp_path):
    folder, name = shutil.copytree(videos / "out", tmp_path / "out"), "resnet34/pool"
    weights = {"resnet34": "random:0"}
    settings = {"frames": 3, "size": 32, "resize": 36, "views": ("tl-flip", "centre")}
    kdcache.extract(videos / "clips.csv", videos, folder, [name], weights=weights, bar=False, **settings)
    segment = Segment(frames=3, size=16)
    inputs = [
        Input(name="x", axes="TD", stream=name),
        Input(name="rgb", axes="THWC", stream="rgb", segment=segment),
        Input(name="flow", axes="THWC", stream="flow", segment=segment),
    ]
    cache = kdcache.Cache(folder)
    streams = [restore(each, cache.recipe(each), weights if each == name else None) for each in (name, "rgb", "flow")]
    shown = []
    with SourceClip(streams, [ClipSpan(videos / "v4.mp4", START, STOP)] * 3, "cpu") as clip:
        for reader, clip_id in ((cache, "v4"), (clip, CLIP)):
            pool = StreamPool()
            pool.open(0)
            opened = open_streams(reader, bind(reader, inputs, None), [clip_id], 0, torch.device("cpu"), pool)
            one = torch.zeros(1, dtype=torch.int64)
            shown.append({each: opened[each].fetch(one, one, one).float() for each in opened})
    for each, want in shown[0].items():
        torch.testing.assert_close(shown[1][each], want, rtol=1e-3, atol=1e-4)
    assert shown[0]["x"].shape == (1, 3, 512)


def test_a_fit_answers_without_reading_its_clips(videos, tmp_path, monkeypatch):
    root = shutil.copytree(videos, tmp_path / "videos")
    made = kdcache.fit("resnet34", root / "clips.csv", root, tmp_path / "fit", device="cpu", **RECOGNITION)
    expected = made.run.predict(["v4"])
    for clip in ("v0", "v1", "v2", "v3"):
        (root / f"{clip}.mp4").unlink()
    one = assert_one_answer(kdcache.predict(made.path, root / "v4.mp4", **SPAN), expected)
    assert one.names == ("class 0", "class 3")
    with pytest.raises(OptionError, match=r"weights=random:0: .*fit was trained on sources, not on features"):
        kdcache.predict(made.path, root / "v4.mp4", weights="random:0")


def test_a_fit_on_skeletons(tmp_path):
    rng = np.random.default_rng(0)
    for name, _, _ in CLIPS:
        joints = rng.normal(size=(20, 3)) + np.cumsum(rng.normal(size=(12, 1, 3)), axis=0)
        lines = [f"{x:.4f} {y:.4f} {z:.4f} 1\n" for x, y, z in joints.reshape(-1, 3)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    rows = [(name, f"{name}.txt", np.nan, np.nan, split, label) for name, split, label in CLIPS]
    table = pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "split", "label"])
    options = {"init": "random:0", "epochs": 1, "batch_size": 2, "augmentations": 1, "device": "cpu"}
    made = kdcache.fit("vacnn", table, tmp_path, tmp_path / "fit", **options)
    assert_one_answer(kdcache.predict(made.path, tmp_path / "v4.txt"), made.run.predict(["v4"]), 12 / 15)


def test_what_cannot_be_answered_is_one_sentence(recognition, pairs, videos, tmp_path):
    root, anticipation = pairs
    with pytest.raises(WeightsError, match=r"random:1 is not what i3d-rgb/mixed4a was computed with \(random:0\)"):
        kdcache.predict(anticipation, root / "long.mp4", weights="random:1")
    with pytest.raises(OptionError, match=r"weights=random:0: the run reads rgb, which no backbone made; leave it out"):
        kdcache.predict(recognition, videos / "v4.mp4", weights="random:0")
    with pytest.raises(OptionError, match="this run reads no skeletons"):
        kdcache.predict(recognition, videos / "v4.mp4", skeleton=videos / "v4.mp4")
    for start, message in ((9.0, "starts at 9 s but the source ends at 1.200 s"), (0.0, "stops at 7 s")):
        with pytest.raises(ClipError, match=message):
            list(kdcache.predict(recognition, videos / "v4.mp4", start=start, stop=start + 7))
    with pytest.raises(SourceError, match="no such file"):
        list(kdcache.predict(recognition, videos / "v9.mp4"))
    other = shutil.copytree(recognition.path, tmp_path / "run")
    shutil.rmtree(other / "fit")
    with pytest.raises(OptionError, match="has not finished training stage 'fit'"):
        kdcache.predict(other, videos / "v4.mp4")


def test_an_imported_stream_is_refused_by_name(tmp_path):
    table = streams_cache.rows(4, 2, 2)
    vectors = list(np.random.default_rng(0).normal(size=(8, 1, 4, 6)).astype(np.float16))
    recipe = streams_cache.imported("tsm/levels", (1, 4, 6), "VND") | {"progress": {"levels": 4}}
    folder = streams_cache.write(tmp_path / "cache", table, [(recipe, vectors)])
    options = {"epochs": 1, "hidden": 4, "teacher_hidden": 2, "device": "cpu"}
    run = kdcache.train("early", folder, out=tmp_path / "run", **options)
    with pytest.raises(OptionError, match="tsm/levels was imported, so how to compute it from a source is not known"):
        kdcache.predict(run, tmp_path / "any.mp4")


def test_the_old_form_of_the_command_still_works_and_says_so(recognition, videos, caplog):
    args = [str(recognition.path), str(videos / "v4.mp4"), "--start", "0.2", "--stop", "1.0"]
    plain = CliRunner().invoke(main, ["predict", *args])
    assert not caplog.messages
    old = CliRunner().invoke(main, ["predict", "early", *args])
    assert (old.exit_code, old.stdout) == (0, plain.stdout)
    assert "predict early RUN SOURCE is predict RUN SOURCE now" in caplog.text
    refused = CliRunner().invoke(main, ["predict", "late", *args])
    assert refused.exit_code == 2
    assert "Give a run's folder and a source" in refused.output
    shown = CliRunner().invoke(main, ["predict", "--help"]).output
    assert "predict [OPTIONS] RUN SOURCE" in shown
    assert "kdcache predict runs/early-0 video.mp4" in shown

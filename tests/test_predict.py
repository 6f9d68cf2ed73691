"""Answers while a clip unfolds: those of the cached clip, from nothing that lies ahead."""

from __future__ import annotations

import csv
import functools
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from make_videos import pictures, write

import kdcache
from kdcache import backbones
from kdcache.backbones.weights import Choice
from kdcache.cli import main
from kdcache.errors import ClipError, OptionError, SourceError, WeightsError
from kdcache.manifest import validate
from kdcache.runs.online import streaming
from kdcache.runs.online.clip import CLIP, SourceClip
from kdcache.runs.online.recipes import find_weights, restore
from kdcache.skeletons import open_skeleton
from kdcache.sources.video import VideoSource
from kdcache.streams.base import ClipSpan
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

VIDEO, SCORES, JOINTS = "tsm/clip", "tsm/logits", "vacnn/pool"
START, STOP = 0.2, 1.0  # frames 5 to 24 at 25 frames a second
RANDOM = {"tsm": "random:0", "vacnn": "random:0"}
TRAINED = {"epochs": 2, "hidden": 8, "teacher_hidden": 4, "lr": 0.05, "validation": 0.0}


def joints(frames: int, seed: int) -> str:
    """MSR Action3D's text of a body that drifts."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(size=(20, 3)) + np.cumsum(rng.normal(size=(frames, 1, 3)), axis=0)
    return "".join(f"{x:.4f} {y:.4f} {z:.4f} 1\n" for x, y, z in moves.reshape(-1, 3))


def rows(suffix: str) -> pd.DataFrame:
    """Two training clips and a test clip, of classes that have names."""
    made = [
        {"clip_id": "a", "source": f"a{suffix}", "split": "train", "label": 4, "class": "wave"},
        {"clip_id": "b", "source": f"b{suffix}", "split": "train", "label": 7, "class": "clap"},
        {"clip_id": "c", "source": f"c{suffix}", "split": "test", "label": 7, "class": "clap"},
    ]
    return validate(pd.DataFrame(made).assign(start_s=START, stop_s=STOP))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Weights are drawn once (frozen networks are copies), and pictures this small are not worth a second thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.extraction.run.cores", lambda: 1)
        patch.setattr(streaming, "cores", lambda: 1)
        patch.setattr(backbones, "build", functools.cache(backbones.build))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos and skeletons of the same clips, and a cache of each."""
    root = tmp_path_factory.mktemp("predict")
    for seed, name in enumerate("abc"):
        write(root / f"{name}.mp4", pictures(30, seed=seed))
        (root / f"{name}.txt").write_text(joints(20, seed))
    for suffix, settings in (
        (".mp4", {"streams": [VIDEO, SCORES], "levels": 4, "size": 32}),
        (".txt", {"streams": [JOINTS], "levels": 2}),
    ):
        done = kdcache.extract(rows(suffix), root, root / f"out{suffix}", weights=RANDOM, bar=False, **settings)
        assert done.extracted == 3
    return root


@pytest.fixture(scope="module")
def train(folder):
    """Train once for each choice."""
    made = {}

    def get(stream: str = VIDEO, model: str = "student"):
        if (stream, model) not in made:
            cache = folder / ("out.txt" if stream == JOINTS else "out.mp4")
            options = {"stream": stream, "model": model, "k": 2, **TRAINED}
            made[stream, model] = kdcache.train("early", cache, out=folder / f"run-{len(made)}", **options)
        return made[stream, model]

    return get


def test_answers_are_those_of_the_cached_clip(train, folder):
    run = train()
    told = list(kdcache.predict(run.path, folder / "c.mp4", start=START, stop=STOP))
    expected = run.predict(["c"])
    assert [(p.level, p.observed) for p in told] == [(1, 25), (2, 50), (3, 75), (4, 100)]
    assert [p.seconds for p in told] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert [p.observed for p in told] == expected.index.get_level_values("observed").tolist()
    assert np.allclose(np.stack([p.probabilities for p in told]), expected.to_numpy(), atol=1e-6)
    assert all(p.classes == (4, 7) and p.names == ("wave", "clap") for p in told)
    (first, high), (second, low) = told[-1].top(2)
    assert {first, second} == {"wave", "clap"}
    assert high >= low
    assert str(told[-1]) == f"100 %     1.00 s  {first} {high:.2f}  {second} {low:.2f}"


@pytest.mark.parametrize("model", ["knn", "levels"])
def test_baselines_go_step_by_step_too(train, folder, model):
    run = train(model=model)
    told = kdcache.predict(run, folder / "c.mp4", start=START, stop=STOP)
    assert np.allclose([p.probabilities for p in told], run.predict(["c"]).to_numpy(), atol=1e-6)


def test_nothing_is_decoded_before_the_answers_that_do_not_need_it(train, folder, monkeypatch):
    read, seen = VideoSource.read, []

    def spy(self, indices):
        for index, frame in zip(indices, read(self, indices), strict=True):
            seen.append(int(index))
            yield frame

    monkeypatch.setattr(VideoSource, "read", spy)
    latest = [max(seen) for _ in kdcache.predict(train(), folder / "c.mp4", start=START, stop=STOP)]
    assert latest == [9, 14, 19, 24]  # TSM's 8 segments of a part of 5 frames include its last
    assert min(seen) == 5
    assert seen == sorted(set(seen))


def test_a_skeleton_file_and_what_follows_in_it(train, folder, tmp_path):
    run = train(JOINTS, "levels")
    told = list(kdcache.predict(run, folder / "c.txt", start=START, stop=STOP))
    assert np.allclose([p.probabilities for p in told], run.predict(["c"]).to_numpy(), atol=1e-3)
    lines = (folder / "c.txt").read_text().splitlines(keepends=True)
    other = joints(20, seed=9).splitlines(keepends=True)
    cut = 20 * 9  # the clip's frames are 3 to 14, half of it ends before frame 9
    (tmp_path / "other.txt").write_text("".join(lines[:cut] + other[cut:]))
    cache = kdcache.Cache(folder / "out.txt")
    stream = restore(JOINTS, cache.recipe(JOINTS), Choice(seed=0))
    nets = streaming.load_networks(stream, "cpu")
    first, second = (
        list(streaming.stream_features(stream, ClipSpan(path, START, STOP), nets))
        for path in (folder / "c.txt", tmp_path / "other.txt")
    )
    assert [p.seconds for p in told] == [s.seconds for s in first] == pytest.approx([9 / 15, 15 / 15])
    assert first[0].features.dtype == np.float16
    assert np.allclose([s.features for s in first], cache.read(JOINTS, ["c"], 0)[0], rtol=2e-3)  # 1 image, not 2
    same = [np.array_equal(a.features, b.features) for a, b in zip(first, second, strict=True)]
    assert same == [True, False]


def test_a_skeleton_clip_in_place_of_its_cache(folder):
    cache = kdcache.Cache(folder / "out.txt")
    stream = restore(JOINTS, cache.recipe(JOINTS), Choice(seed=0))
    with SourceClip([stream], [ClipSpan(folder / "c.txt", START, STOP)], "cpu") as clip:
        assert np.allclose(clip.read(JOINTS, [CLIP], 0), cache.read(JOINTS, ["c"], 0), rtol=2e-3)
        assert np.array_equal(clip.frames(JOINTS, [CLIP]), cache.frames(JOINTS, ["c"]))
        assert (clip.shape(JOINTS), clip.end_s) == (cache.shape(JOINTS), 15 / 15)
        with pytest.raises(OptionError, match="has one shape for all clips, no frames"):
            clip.length(JOINTS, CLIP)


def test_joined_streams(train, folder):
    run = train(f"{SCORES},{VIDEO}")
    told = kdcache.predict(run, folder / "c.mp4", start=START, stop=STOP)
    assert np.allclose([p.probabilities for p in told], run.predict(["c"]).to_numpy(), atol=1e-6)


@pytest.mark.parametrize("mode", ["segment", "prefix"])
@pytest.mark.parametrize("name", ["tsm/pool", "resnet34-flow/pool", "i3d-flow/mixed4a"])
def test_levels_alone_are_those_of_the_clip_to_the_bit(folder, name, mode):
    settings = StreamSettings(levels=3, progress=mode, size=32, resize=32, frames=8, views=("centre", "tl-flip"))
    stream = resolve([name], settings, {name.partition("/")[0]: "random:0"})[0]
    clip = ClipSpan(folder / "a.mp4", START, STOP)
    ((_, whole),) = stream.read([clip], [stream], 1)
    expected = stream.compute(whole)[:3]  # of the first view
    levels = [level for _, level in stream.level_inputs(clip, 1)]
    assert np.array_equal(np.concatenate(levels), expected)


def test_skeletons_of_single_parts(folder):
    settings = StreamSettings(levels=3, progress="segment", rotations=1, skeleton="float_bilinear")
    stream = resolve([JOINTS], settings, RANDOM)[0]
    clip = ClipSpan(folder / "a.txt", START, STOP)
    skeleton = open_skeleton(clip.path).span(START, STOP)
    levels = [level[0, 0] for _, level in stream.level_inputs(clip, 1)]
    assert np.array_equal(levels, stream.imaging.images(skeleton, 0)[0])


@pytest.mark.parametrize("given", [{}, {"progress": "prefix", "dtype": "float32", "views": ("tl@0.9", "centre-flip")}])
@pytest.mark.parametrize("name", ["tsm/clip", "i3d-flow/pool", "resnet34-flow5/pool"])
def test_a_recipe_leads_back_to_its_stream(name, given):
    settings = StreamSettings.of({"levels": 7, "fps": 12.5, "anchor": "last", "size": 96, "decoder": "pyav", **given})
    weights = {name.partition("/")[0]: "random:3"}
    stream = resolve([name], settings, weights)[0]
    assert restore(name, stream.recipe, Choice(seed=3)) == replace(
        stream, views=replace(stream.views, resize=stream.short_side)
    )
    with pytest.raises(OptionError, match=r"cached by other rules .*version: 0 → "):
        restore(name, {**stream.recipe, "version": 0}, Choice(seed=3))
    with pytest.raises(OptionError, match="without observation levels"):
        restore(name, resolve([name], StreamSettings(), weights)[0].recipe, Choice(seed=3))


def test_weights_are_found_by_digest_and_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCACHE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    right, wrong = tmp_path / "right.pt", tmp_path / "wrong.pt"
    right.write_bytes(b"right")
    wrong.write_bytes(b"wrong")
    known = {"sha256": hashlib.sha256(b"right").hexdigest()}
    recipes = {VIDEO: {"stream": VIDEO, "backbone": {"name": "tsm-resnet50", "weights": known}}}
    assert find_weights(recipes, {"tsm": right}, None) == {VIDEO: Choice(right)}
    assert find_weights(recipes, None, str(right)) == {VIDEO: Choice(right)}
    for of_run in (None, str(wrong), str(tmp_path / "absent.pt")):
        with pytest.raises(WeightsError, match=r"not among those of .*--weights tsm-resnet50=FILE"):
            find_weights(recipes, None, of_run)
    kept = shutil.copy(right, tmp_path / "weights" / "any.name")
    assert find_weights(recipes, None, str(wrong)) == {VIDEO: Choice(Path(kept))}
    with pytest.raises(WeightsError, match=r"wrong\.pt is not what tsm/clip was computed with \(sha256"):
        find_weights(recipes, wrong, None)
    with pytest.raises(OptionError, match="Unknown backbone of the run 'vacnn'"):
        find_weights(recipes, {"vacnn": right}, None)
    with pytest.raises(OptionError, match="was imported"):
        find_weights({VIDEO: {"stream": VIDEO}}, None, None)


def test_what_cannot_be_answered_is_one_sentence(train, folder):
    run = train()
    with pytest.raises(WeightsError, match=r"random:1 is not what tsm/clip was computed with \(random:0\)"):
        kdcache.predict(run, folder / "c.mp4", weights="random:1")
    with pytest.raises(OptionError, match="is a teacher, which needs the whole clip"):
        kdcache.predict(train(model="teacher"), folder / "c.mp4")
    with pytest.raises(SourceError, match="not a skeleton file"):
        next(kdcache.predict(train(JOINTS, "levels"), folder / "c.mp4"))
    with pytest.raises(ClipError, match="starts at 9 s"):
        next(kdcache.predict(run, folder / "c.mp4", start=9.0))


def test_command(train, folder, tmp_path):
    run, table = train(), tmp_path / "all.csv"
    args = ["predict", str(run.path), str(folder / "c.mp4"), "--start", str(START), "--stop", str(STOP)]
    result = CliRunner().invoke(main, [*args, "--top", "1", "--csv", str(table), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    told = list(kdcache.predict(run, folder / "c.mp4", start=START, stop=STOP))
    assert result.stdout.splitlines() == [p.line(1) for p in told]
    header, *lines = csv.reader(table.read_text().splitlines())
    assert header == ["observed", "seconds", "4", "7"]
    assert [line[:2] for line in lines] == [["25", "0.4"], ["50", "0.6"], ["75", "0.8"], ["100", "1"]]
    assert np.allclose(np.array(lines)[:, 2:].astype(float), [p.probabilities for p in told], atol=1e-5)
    refused = CliRunner().invoke(main, [*args, "--weights", "tsm=random:9"])
    assert refused.exit_code == 1
    assert refused.stderr.strip().endswith(
        "random:9 is not what tsm/clip was computed with (random:0): pass --weights with that one."
    )


def test_videos_and_skeletons_of_one_clip_side_by_side(folder, tmp_path):
    table = rows(".mp4").assign(skeleton=["a.txt", "b.txt", "c.txt"])
    for streams, settings in (([VIDEO], {"size": 32}), ([JOINTS], {})):
        kdcache.extract(table, folder, tmp_path, streams, weights=RANDOM, levels=2, bar=False, **settings)
    cache, alone = kdcache.Cache(tmp_path), kdcache.Cache(folder / "out.txt")
    assert np.array_equal(cache.read(JOINTS, ["a", "b", "c"]), alone.read(JOINTS, ["a", "b", "c"]))
    assert cache.has(VIDEO).all()
    assert set(cache.clips["source"]) == {"a.mp4", "b.mp4", "c.mp4"}
    assert kdcache.extract(table, folder, tmp_path, [JOINTS], weights=RANDOM, levels=2, bar=False).cached == 3
    run = kdcache.train("early", tmp_path, out=tmp_path / "run", stream=f"{VIDEO},{JOINTS}", **TRAINED)
    span = {"start": START, "stop": STOP}
    told = list(kdcache.predict(run, folder / "c.mp4", skeleton=folder / "c.txt", **span))
    assert np.allclose([p.probabilities for p in told], run.predict(["c"]).to_numpy(), atol=1e-3)
    with pytest.raises(OptionError, match="give the clip's skeleton file as well"):
        kdcache.predict(run, folder / "c.mp4", **span)


def test_a_skeleton_for_a_run_that_reads_none_is_refused(train, folder):
    with pytest.raises(OptionError, match="this run reads no skeletons"):
        kdcache.predict(train(), folder / "c.mp4", skeleton=folder / "c.txt")

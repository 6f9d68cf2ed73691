"""What a run sees in a clip, below its contact sheet: colours to the pixel, what is left out, what is refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from click.testing import CliRunner
from make_videos import write as write_video
from PIL import Image
from torch import nn
from torch.nn import functional as F

import kdcache
from kdcache.cli import main
from kdcache.errors import OptionError, StoreError
from kdcache.methods import registry
from kdcache.methods.contract import BatchSource, Data, Input, Predictor, Segment, Stage, reseed
from kdcache.methods.labels import held_out_sets
from kdcache.methods.options import LabelOptions, TrainOptions
from kdcache.methods.pictures import Picture
from kdcache.report import run_sheet as drawing
from kdcache.report.sheet import sheet
from kdcache.report.strips import GAP, LEFT, LINES, THUMB
from kdcache.runs.explain import explain as explain_run
from kdcache.runs.run import Run
from kdcache.streams.backbone import heat_colours
from kdcache.views import Views, cut, resize_short_side

pytestmark = pytest.mark.usefixtures("one_thread")
T, SIZE, RESIZE, FRAMES = 3, 16, 20, 4
BEFORE, AFTER = np.array([[0.0, 1.0], [1.0, 3.0]]), np.array([[1.0, 1.0], [1.0, 4.0]])
HOT = np.array([[1.0, 0.0], [0.0, 0.0]])
ALPHA = [0.5, 2.0, 1.25]


@dataclass(frozen=True, kw_only=True)
class ToyOptions(LabelOptions, TrainOptions):
    """Options of the method of this file."""

    epochs: int = 1
    batch_size: int = 4
    reads: str = "rgb"
    loads: str = "first"
    draws: str = "all"


class Means(nn.Module):
    """Means over all but the batch, and a linear layer."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(1, classes)

    def forward(self, x):
        return {"logits": self.layer(x.float().flatten(1).mean(1, keepdim=True) / 64 - 2)}


def inputs(options):
    segment = Segment(frames=T, size=SIZE, resize=RESIZE, augmentations=20)
    if options.reads == "maps":
        return (Input(name="x", axes="TCHW", stream="resnet34/layer3"),)
    return (
        Input(name="x", axes="CTHW", stream="rgb", segment=segment)
        if options.reads == "turned"
        else Input(name="x", axes="THWC", stream="rgb", segment=segment),
        Input(name="hint", axes="THWC", stream="flow", segment=segment, when="train"),
    )


def resolve(options, data):
    return replace(options, target=options.choose_target(data))


def stages(options: ToyOptions, data: Data) -> Iterator[Stage]:
    train = data.splits["train"]
    for name in ("first", "second"):
        reseed(data, name)
        network = Means(len(data.classes[options.target]))
        optimizer, scheduler = options.optimise(network.parameters())

        def losses(batch, network=network):
            return {"L": F.cross_entropy(network(batch["x"])["logits"], batch["y"])}

        yield Stage(
            name=name,
            module=network,
            train=BatchSource({"x": (data.inputs["x"], train.rows["clip"])}, {"y": train.labels[options.target]}),
            losses=losses,
            predict=lambda batch, network=network: network(batch["x"])["logits"],
            optimizer=optimizer,
            scheduler=scheduler,
            epochs=options.epochs,
            batch_size=options.batch_size,
            eval_sets=held_out_sets(data, options.target, {"x": data.inputs["x"]}, "clip"),
        )


def predictor(options: ToyOptions, data: Data) -> Predictor:
    net = Means(len(data.classes[options.target]))
    return Predictor(
        stage="second",
        module=net,
        predict=lambda batch: net(batch["x"])["logits"],
        inputs={"x": data.inputs["x"]},
        role="clip",
    )


def steady(one):
    return torch.tensor(np.stack([one] * T), dtype=torch.float32)


def explain(options, data, predictor, batch, load):
    """An overlay, two maps on one scale, a curve; the privileged input's mean where it is there."""
    earlier = load(options.loads, Means(len(data.classes[options.target])))
    assert not earlier.training
    assert not predictor.module.training
    assert not torch.is_grad_enabled()
    assert all(len(tensor) == 1 for tensor in batch.values())
    if options.draws == "nan":
        return [Picture(title="broken", values=steady(BEFORE) / 0)]
    if options.draws == "wrong":
        return [Picture(title="flat", values=torch.zeros(T, 2))]
    pictures = [
        Picture(title="attention", values=steady(HOT), over=True, note="of the network", scale=(0.0, 1.0)),
        Picture(title="before", values=steady(BEFORE), scale=(0.0, 4.0)),
        Picture(title="after", values=steady(AFTER), scale=(0.0, 4.0)),
        Picture(title="alpha", values=torch.tensor(ALPHA)),
    ]
    if "hint" in batch:
        pictures.append(Picture(title="teacher", values=batch["hint"][0, ..., 0].float()))
    return pictures


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The method ``toy``, of this file."""
    module = ModuleType("kdcache.methods.toy")
    for one in (inputs, resolve, stages, predictor, explain):
        setattr(module, one.__name__, one)
    module.Options = ToyOptions
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.METHODS, "toy", module.__name__)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Clips with frames and, but for those of the test split, flow; ``apart-00`` is of no split."""
    table = streams_cache.rows(6, 2, 2)
    other = table.iloc[[0]].assign(clip_id="apart-00", source="apart.mp4", split="")
    table = pd.concat([table, other], ignore_index=True)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 120 + 60 * (i % 2), (FRAMES, 20, 26, 3)).astype(np.uint8) for i in range(len(table))]
    fields = [
        None if clip.startswith("test") else rng.integers(60, 200, (FRAMES - 1, 20, 26, 2)).astype(np.uint8)
        for clip in table["clip_id"]
    ]
    folder = tmp_path_factory.mktemp("made") / "cache"
    return streams_cache.write(folder, table, [(streams_cache.RAW, frames), (streams_cache.FLOW, fields)])


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made, tmp_path / "cache")


@pytest.fixture
def run(shards, tmp_path):
    return kdcache.train("toy", shards, out=tmp_path / "run", device="cpu")


def middles(length):
    return [int((part + 0.5) * length / T) for part in range(T)]


def thumbs(row, height=THUMB):
    """The pictures of a row, [T, height, width, 3]."""
    return np.stack([row[:height, LEFT + i * (THUMB + GAP) :][:, :THUMB] for i in range(T)])


def rows_below(shards, clip, run, tmp_path, count):
    """The rows that ``show`` draws for a run, the curve's excepted: title, then maps."""
    path = kdcache.show(shards, clip, tmp_path / "sheet.png", run=run)
    with Image.open(path) as image:
        picture = np.asarray(image)
    above = sheet(kdcache.Cache(shards), clip)
    assert np.array_equal(picture[: len(above)], above)
    title, below = np.split(picture[len(above) :], [44])
    assert (title < 128).any()
    heights = [174, 174, 174, 134, 174][:count]
    assert sum(heights) == len(below)
    return np.split(below, np.cumsum(heights)[:-1])


def enlarged(images):
    return np.stack([cv2.resize(i, (THUMB, THUMB), interpolation=cv2.INTER_NEAREST) for i in images])


def test_pictures_to_the_pixel(shards, run, tmp_path):
    overlay, before, after, curve, teacher = rows_below(shards, "train-01", run, tmp_path, 5)
    (rgb,) = kdcache.Cache(shards).read("rgb", ["train-01"])
    seen = cut(np.stack([resize_short_side(rgb[i], RESIZE) for i in middles(FRAMES)]), Views(SIZE, RESIZE))[0]
    frames, shown = enlarged(seen), thumbs(overlay)
    cold, hot = np.s_[:, 115:, 115:], np.s_[:, :35, :35]  # where interpolation has reached the corners of a 2 × 2 map
    assert np.array_equal(shown[cold], frames[cold])
    colour = heat_colours(np.full((1, 1, 1), 255, np.uint8))[0, 0, 0].astype(float)
    want = (1 - drawing.OPACITY) * frames[hot] + drawing.OPACITY * colour
    assert np.abs(shown[hot].astype(float) - want).max() <= 0.5
    assert (np.abs(shown[hot].astype(int) - frames[hot]).max(axis=3) > 20).mean() > 0.9

    one = thumbs(before)[0, 5, -5]  # 1 of 4 in both, the least of one and the middle of the other
    assert np.array_equal(one, heat_colours(np.full((1, 1, 1), 64, np.uint8))[0, 0, 0])
    assert np.array_equal(one, thumbs(after)[0, 5, 5])
    assert not np.array_equal(thumbs(before)[0, -5, -5], thumbs(after)[0, -5, -5])
    assert np.array_equal(thumbs(after)[0, -5, -5], colour)

    line = (curve == LINES[0]).all(axis=2)
    tops = [np.flatnonzero(line[:, LEFT + i * (THUMB + GAP) + THUMB // 2]).mean() for i in range(T)]
    assert tops[1] < tops[2] < tops[0]
    assert abs(tops[2] - (tops[0] + tops[1]) / 2) <= 1
    assert (curve[-20:, LEFT : LEFT + 30] < 128).any()
    assert len(np.unique(thumbs(teacher).reshape(-1, 3), axis=0)) > 50
    margins = [row[:, :LEFT] for row in (overlay, before, after, curve, teacher)]
    assert all((margin < 128).any() for margin in margins)
    assert not any((margin[:, -6:] < 250).any() for margin in margins)


def test_source_frames_are_told(shards, run):
    seen = explain_run(run, shards, "train-01")
    assert seen.numbers.tolist() == middles(FRAMES)
    assert seen.frames.shape == (T, SIZE, SIZE, 3)
    assert seen.stage == "second"


def test_axes_of_any_order_are_frames_again(shards, run, tmp_path):
    turned = kdcache.train("toy", shards, out=tmp_path / "turned", device="cpu", reads="turned")
    assert np.array_equal(explain_run(turned, shards, "train-01").frames, explain_run(run, shards, "train-01").frames)


def test_a_clip_without_the_privileged_input_is_drawn_without_it(shards, run, tmp_path, caplog):
    assert len(rows_below(shards, "test-00", run, tmp_path, 4)) == 4
    assert "pictures of input hint are left out: " in caplog.text
    assert "clip 'test-00' has no flow" in caplog.text


@pytest.mark.parametrize("lost", ["shard", "stream"])
def test_a_lost_privileged_stream_leaves_the_rest(shards, run, lost, caplog):
    want = explain_run(run, shards, "train-00")
    streams_cache.shard_of(shards, "flow").unlink()
    if lost == "stream":
        kdcache.Cache(shards).verify(repair=True)
    seen = explain_run(Run(run.path), shards, "train-00")
    assert [p.title for p in seen.pictures] == ["attention", "before", "after", "alpha"]
    assert np.array_equal(seen.frames, want.frames)
    assert "input hint are left out" in caplog.text


def test_a_lost_stream_that_the_network_reads_is_an_error(shards, run):
    streams_cache.shard_of(shards, "rgb").unlink()
    with pytest.raises(StoreError):
        explain_run(Run(run.path), shards, "train-00")


def test_a_moved_cache_and_a_clip_of_no_split(shards, run, tmp_path):
    want = explain_run(run, shards, "apart-00")
    moved = shards.rename(tmp_path / "moved")
    path = kdcache.show(moved, "apart-00", tmp_path / "moved.png", run=run.path)
    assert path.exists()
    assert np.array_equal(explain_run(Run(run.path), moved, "apart-00").frames, want.frames)


def test_a_stage_is_loaded_as_it_was_last(shards, run, toy):
    found = {}

    def looking(options, data, predictor, batch, load):
        for name in ("first", "second"):
            found[name] = load(name, Means(2)).layer.bias
        found["answers"] = predictor.module.layer.bias
        return []

    toy.explain = looking
    assert explain_run(run, shards, "train-00").pictures == []
    assert torch.equal(found["second"], found["answers"])
    assert not torch.equal(found["first"], found["second"])


def test_what_cannot_be_drawn_is_refused(shards, run, tmp_path, toy):
    def trained(name, **options):
        return kdcache.train("toy", shards, out=tmp_path / name, device="cpu", **options)

    with pytest.raises(OptionError, match=r"missing has no trained stage 'third': it has first, second\."):
        explain_run(trained("missing", loads="third"), shards, "train-00")
    with pytest.raises(OptionError, match="Picture 'broken' has values that are not finite"):
        kdcache.show(shards, "train-00", tmp_path / "x.png", run=trained("nan", draws="nan"))
    with pytest.raises(ValueError, match=r"picture 'flat' has values of shape \(3, 2\): give \[T, h, w\] or \[T\]"):
        kdcache.show(shards, "train-00", tmp_path / "x.png", run=trained("wrong", draws="wrong"))
    with pytest.raises(OptionError, match="there is no clip 'train-99'"):
        explain_run(run, shards, "train-99")
    with pytest.raises(OptionError, match="is no run"):
        kdcache.show(shards, "train-00", tmp_path / "x.png", run=tmp_path)
    shutil.rmtree(run.path / "second")
    with pytest.raises(OptionError, match="has not finished training stage 'second'"):
        explain_run(Run(run.path), shards, "train-00")
    assert not (tmp_path / "x.png").exists()


def test_a_clip_without_what_the_network_reads_is_refused(tmp_path, shards, run):
    table = streams_cache.rows(4, 2, 2)
    frames = [None if i == 0 else np.zeros((FRAMES, 20, 26, 3), np.uint8) for i in range(len(table))]
    other = streams_cache.write(tmp_path / "other", table, [(streams_cache.RAW, frames)])
    with pytest.raises(OptionError, match="other: clip 'train-00' has no rgb, which the run reads: run `kdcache extra"):
        explain_run(run, other, "train-00")
    assert [p.title for p in explain_run(run, other, "train-01").pictures][-1] == "alpha"
    jpegs = [streams_cache.jpegs(np.zeros((FRAMES, 20, 26, 3), np.uint8)) for _ in range(len(table))]
    changed = streams_cache.write(tmp_path / "changed", table, [(streams_cache.JPEG, jpegs)])
    with pytest.raises(OptionError, match=r"changed: rgb is not what .*run was trained on \(layout: 'ragged' → 'jpeg'"):
        explain_run(run, changed, "train-01")


def test_a_method_without_pictures_names_those_that_have_them(shards, run, tmp_path, toy, monkeypatch):
    other = ModuleType("kdcache.methods.plain")
    for name in ("inputs", "resolve", "stages", "predictor", "Options"):
        setattr(other, name, getattr(toy, name))
    monkeypatch.setitem(sys.modules, other.__name__, other)
    monkeypatch.setitem(registry.METHODS, "plain", other.__name__)
    plain = kdcache.train("plain", shards, out=tmp_path / "plain", device="cpu")
    answered = CliRunner().invoke(main, ["show", str(shards), "train-00", "--run", str(plain.path)])
    assert answered.exit_code != 0
    assert "is a run of plain, which has no pictures of clips: choose a run of " in str(answered.output)
    assert "toy" in answered.output


def test_from_the_command_line(shards, run, tmp_path):
    output = tmp_path / "a.png"
    command = ["show", str(shards), "train-00", "-o", str(output)]
    answered = CliRunner().invoke(main, [*command, "--run", str(run.path), "--which", "best"])
    assert answered.exit_code == 0, answered.output
    best = output.read_bytes()
    kdcache.show(shards, "train-00", output, run=run, which="best")
    assert output.read_bytes() == best
    refused = CliRunner().invoke(main, [*command, "--which", "best"])
    assert refused.exit_code == 2
    assert "give --run too" in refused.output


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Frames and layer-3 maps of short videos, of the last frames of each part of a clip and a corner."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    rows = []
    for i, split in enumerate(("train", "train", "validation", "test")):
        texture = rng.integers(40, 216, (14, 30, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        write_video(root / f"{i}.mp4", [texture[:48, 2 * t : 2 * t + 64] for t in range(11)])
        rows.append((str(i), f"{i}.mp4", np.nan, np.nan, split, i % 2))
    table = pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "split", "label"])
    settings = {"size": 32, "frames": T, "anchor": "last", "views": ("tl@0.75-flip", "centre"), "short_side": 48}
    weights = {"resnet34": "random:0"}
    kdcache.extract(table, root, root / "out", ["rgb", "resnet34/layer3"], weights=weights, bar=False, **settings)
    return root / "out"


def test_beside_maps_the_frames_are_those_that_they_were_computed_from(extracted, tmp_path):
    run = kdcache.train("toy", extracted, out=tmp_path / "run", device="cpu", reads="maps")
    cache = kdcache.Cache(extracted)
    seen = explain_run(run, extracted, "1")
    assert seen.numbers.tolist() == cache.frames("resnet34/layer3", ["1"])[0].tolist() == [3, 7, 10]
    resize = cache.recipe("resnet34/layer3")["views"]["resize"]
    (rgb,) = cache.read("rgb", ["1"])
    shown = np.stack([resize_short_side(rgb[i], resize) for i in (3, 7, 10)])
    assert np.array_equal(seen.frames, cut(shown, Views(32, resize, ("tl@0.75-flip",)))[0])


def test_without_frames_overlays_are_heat_alone(tmp_path):
    table = streams_cache.rows(4, 2, 2)
    recipe = streams_cache.features("resnet34/layer3", views=("centre",))
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, FRAMES, 5, 2, 2)).astype(np.float16) for _ in range(len(table))]
    folder = streams_cache.write(tmp_path / "maps", table, [(recipe, maps)])
    run = kdcache.train("toy", folder, out=tmp_path / "run", device="cpu", reads="maps")
    seen = explain_run(run, folder, "train-00")
    assert seen.frames is None
    assert seen.numbers.tolist() == list(range(FRAMES))
    overlay = rows_below(folder, "train-00", run, tmp_path, 4)[0]
    assert np.array_equal(thumbs(overlay)[0, -5, -5], heat_colours(np.zeros((1, 1, 1), np.uint8))[0, 0, 0])
    assert np.array_equal(thumbs(overlay)[0, 5, 5], heat_colours(np.full((1, 1, 1), 255, np.uint8))[0, 0, 0])


def test_maps_are_resized_smoothly_and_many_steps_are_thinned():
    ramp = np.tile(np.array([[0.0, 1.0]], np.float32), (1, 2, 1))
    drawn = drawing.heat(ramp, 0.0, 1.0, (40, 40))[0]
    assert (np.diff(drawn[0]) >= 0).all()
    assert len(np.unique(drawn)) > 15
    assert not drawing.heat(np.full((1, 2, 2), 0.5, np.float32), 0.5, 0.5, (4, 4)).any()  # all alike: all cold
    assert drawing.spread(20, 7).tolist() == [0, 3, 6, 10, 13, 16, 19]
    assert drawing.spelled("α_t beside β, γ") == "alpha_t beside beta, gamma"
    still = drawing.curve(np.full(20, 0.7, np.float32), np.arange(20, dtype=np.int32))
    line = (still == LINES[0]).all(axis=2)
    assert line.any(axis=1).sum() < 12  # a level line
    assert line[:, LEFT + THUMB // 2].any()
    assert line[:, LEFT + 7 * (THUMB + GAP) + THUMB // 2].any()

"""Relation distillation from videos to answers: what is extracted, RGB alone at the end, the tables."""

from __future__ import annotations

import shutil
import tomllib
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from make_videos import write_moving_squares
from unsealed import unsealed

import kdcache
import kdcache.motion
from kdcache.engine import loop
from kdcache.errors import OptionError
from kdcache.methods import relation
from kdcache.options import build
from kdcache.runs import presets
from kdcache.runs.explain import explain
from kdcache.runs.requirements import extraction_calls
from kdcache.runs.run import Run
from kdcache.runs.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"preset": "light", "frames": 9, "size": 64}
OPTIONS = {**presets.preset("relation", "light"), "frames": 9, "size": 64, "width": 16, "device": "cpu"}
LINES = dict.fromkeys(("teacher", "appearance", "student", "fused"), "epochs=2 milestones= batch_size=2")
QUICK = {**OPTIONS, **LINES}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six clips of a texture over which a square goes right or down, with what ``extract --for relation`` caches."""
    root = tmp_path_factory.mktemp("videos")
    write_moving_squares(root)
    (call,) = extraction_calls("relation", **SMALL)
    weights = dict.fromkeys(("i3d-rgb", "i3d-flow"), "random:0")
    for stream in ("rgb", "flow", *call.streams):  # each in a shard of its own, so that a test may destroy one
        more = call.settings if "/" in stream else {"short_side": 64}
        report = kdcache.extract(root / "clips.csv", root, root / "out", [stream], weights=weights, **more)
        assert report.failures == []
    return root


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """All four stages."""
    return kdcache.train("relation", videos / "out", out=tmp_path_factory.mktemp("runs") / "run", **QUICK)


def test_what_is_extracted():
    (maps,) = extraction_calls("relation")
    assert maps.streams == ("resnext101/layer3", "resnext101-flow/layer3")
    assert maps.settings == {"frames": 16, "size": 112, "views": ("centre", "centre-flip")}
    assert maps.inputs == ("rgb", "flow (in training only)")
    (i3d,) = extraction_calls("relation", preset="i3d")
    assert i3d.streams == ("i3d-rgb/mixed4a", "i3d-flow/mixed4a")
    assert i3d.settings["frames"] == 32
    (frames,) = extraction_calls("relation", preset="kinetics")
    assert frames.streams == ("rgb", "flow")
    (alone,) = extraction_calls("relation", network="rgb")
    assert alone.streams == ("resnext101/layer3",)
    (both,) = extraction_calls("relation", network="two-stream")
    assert both.inputs == ("rgb", "flow")


def test_four_stages(run):
    assert list(run.history["stage"]) == [s for s in ("teacher", "appearance", "student", "fused") for _ in range(2)]
    assert run.history["L_rep"].notna().tolist() == [s == "student" for s in run.history["stage"]]
    assert run.history["L_ir"].notna().tolist() == [s == "student" for s in run.history["stage"]]
    assert run.metrics["steps"] == 3 * 2 * 2  # A, S and the fusion: the teacher's steps are not the answer's
    assert {name: s.views for name, s in run.training_data.data.inputs.items()} == {"rgb": 2, "flow": 2}
    assert set(Run(run.path).training_data.data.inputs) == {"rgb"}


def test_rgb_alone_answers(run, videos, tmp_path, monkeypatch):
    """The flow stream is unreadable, TV-L1 cannot be computed, and the answers are the same."""
    before = run.predict("test")
    folder, moved = tmp_path / "out", tmp_path / "run"
    shutil.copytree(videos / "out", folder)
    shutil.copytree(run.path, moved)
    config = unsealed(moved / "config.toml")
    config.write_text(config.read_text().replace(str(videos / "out"), str(folder)))
    for stream in ("flow", "i3d-flow/mixed4a"):
        streams_cache.shard_of(folder, stream).write_bytes(b"no longer a shard")
    again = Run(moved)
    pd.testing.assert_frame_equal(again.predict("test"), before, check_exact=True)
    assert set(again.training_data.data.inputs) == {"rgb"}

    def never(*given, **more):
        raise AssertionError("flow was computed")

    monkeypatch.setattr(kdcache.motion, "tvl1_pairs", never)
    (answer,) = kdcache.predict(moved, videos / "v4.mp4", weights={"i3d-rgb": "random:0"})
    np.testing.assert_allclose(answer.probabilities, before.loc["v4"], atol=1e-3)  # cached maps are float16
    two = kdcache.train("relation", videos / "out", out=tmp_path / "two", **OPTIONS_OF["two-stream"])
    weights = dict.fromkeys(("i3d-rgb", "i3d-flow"), "random:0")
    with pytest.raises(AssertionError, match="flow was computed"):
        list(kdcache.predict(two, videos / "v4.mp4", weights=weights))


OPTIONS_OF = {
    "two-stream": {**OPTIONS, "network": "two-stream", "teacher": "epochs=1", "appearance": "epochs=1"},
}


def test_pictures_of_the_fusion(run, videos, tmp_path):
    found = explain(run, videos / "out", "v4")
    pictures = {picture.title: picture for picture in found.pictures}
    assert list(pictures) == ["evidence of A", "evidence of S", "weight of motion", "motion of S", "motion of F"]
    said = sum(float(pictures[f"evidence of {of}"].values.sum()) for of in "AS")
    predictor, row = run.predictor(), torch.tensor([4])
    x = predictor.inputs["rgb"]
    with torch.no_grad():
        logits = predictor.predict({"rgb": x.to_device(x.fetch(row, 0 * row, row))})[0]
        bias = run.network().fusion.classify.bias[logits.argmax()]
    assert said == pytest.approx(float((logits.max() - bias).detach()), abs=1e-4)
    share = pictures["weight of motion"].values
    assert share.shape == (16,)
    assert ((share > 0) & (share < 1)).all()
    assert not pictures["weight of motion"].in_time
    assert found.frames is not None
    assert found.answer == f"{run.predict(['v4']).iloc[0].idxmax()} {run.predict(['v4']).iloc[0].max():.2f}"
    kdcache.show(videos / "out", "v4", tmp_path / "sheet.png", run=run.path)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_pictures_without_flow_and_of_other_answers(run, videos, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(videos / "out", folder)
    streams_cache.shard_of(folder, "i3d-flow/mixed4a").unlink()
    found = explain(run, folder, "v4")
    assert [picture.title for picture in found.pictures][-1] == "weight of motion"
    alone = kdcache.train("relation", videos / "out", out=tmp_path / "rgb", **{**QUICK, "network": "rgb"})
    with pytest.raises(OptionError, match="no weights of a fusion to draw"):
        explain(alone, videos / "out", "v4")


def test_pictures_of_a_run_that_kept_its_last_stage_alone(videos, tmp_path, caplog):
    run = kdcache.train("relation", videos / "out", out=tmp_path / "run", keep_stages=False, **QUICK)
    found = explain(run, videos / "out", "v4")
    assert [picture.title for picture in found.pictures][-1] == "motion of S"
    assert "has not kept stage teacher (keep_stages=false)" in caplog.text


def test_nothing_is_mirrored_where_it_must_not_be(videos, tmp_path):
    given = {**QUICK, "network": "rgb", "mirror": False}
    run = kdcache.train("relation", videos / "out", out=tmp_path / "run", **given)
    stream = run.training_data.data.inputs["rgb"]
    assert stream.views == 1
    assert stream.view_of == [0]


def test_flow_needs_the_view_in_which_rgb_is_judged(videos, tmp_path):
    """A finished run does not open flow, and would answer from RGB's first view, which it was not judged in."""
    common = {"frames": 9, "size": 64, "weights": dict.fromkeys(("i3d-rgb", "i3d-flow"), "random:0")}
    for stream, views in (("i3d-rgb/mixed4a", ("centre-flip", "centre")), ("i3d-flow/mixed4a", ("centre",))):
        kdcache.extract(videos / "clips.csv", videos, tmp_path / "out", [stream], views=views, **common)
    with pytest.raises(OptionError, match=r"i3d-flow/mixed4a has no view centre-flip, the first of what the trained"):
        kdcache.train("relation", tmp_path / "out", out=tmp_path / "run", **QUICK)


@pytest.mark.parametrize("teacher", ["lr=1e20", "weight_decay=1e20"])
def test_a_divergence_in_the_last_step_is_one_sentence(videos, tmp_path, teacher):
    given = {**QUICK, "network": "flow", "teacher": f"{teacher} epochs=1 batch_size=32 milestones="}
    with pytest.raises(OptionError, match=r"teacher: what it predicts after epoch 1 is not finite: lower lr"):
        kdcache.train("relation", videos / "out", out=tmp_path / "run", **given)


def test_a_comparison_says_what_is_reconstructed_and_what_is_random(videos, tmp_path):
    rows = {"A": {"network": "rgb"}, "S": {"network": "student"}}
    call = {**QUICK, **dict.fromkeys(LINES, "epochs=1 milestones= batch_size=2")}
    result = kdcache.ablate("relation", shards=videos / "out", rows=rows, seeds=1, tune=0, out=tmp_path / "out", **call)
    assert "Only the abstract of the paper is at hand" in result.text
    assert "of random weights, which have learned nothing: i3d-rgb/mixed4a, i3d-flow/mixed4a." in result.text


def test_an_interrupted_run_goes_on_to_the_same_numbers(run, videos, tmp_path, monkeypatch):
    original, seen = loop._step, []

    def stopping(training, batch):
        original(training, batch)
        seen.append(training.stage.name)
        if seen.count("fused") == 3:  # in its second epoch
            raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            kdcache.train("relation", videos / "out", out=tmp_path / "run", save_every=0.0, **QUICK)
    again = kdcache.train("relation", videos / "out", out=tmp_path / "run", save_every=0.0, **QUICK)
    assert (again.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()


def test_rows_share_teacher_appearance_and_student(run, videos, tmp_path, monkeypatch):
    seen: list[str] = []
    original = loop._step
    monkeypatch.setattr(loop, "_step", lambda run, batch: (seen.append(run.stage.name), original(run, batch)))
    session = Session(stages=tmp_path / "kept", bars=False)
    for name, given in {
        "attention": {},
        "sum": {"fusion": "sum"},
        "mars": {"network": "student", "ir": "none"},
        "rgb": {"network": "rgb"},
    }.items():
        made = kdcache.train("relation", videos / "out", out=tmp_path / name, session=session, **{**QUICK, **given})
        if name == "attention":
            assert (made.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()
    assert {name: seen.count(name) // 4 for name in seen} == {"teacher": 1, "appearance": 1, "student": 2, "fused": 2}


def test_frames_from_end_to_end(videos, tmp_path):
    """Whole networks on cached frames and flow, cut alike."""
    given = {**LINES, "backbone": "i3d", "start": "frames", "frames": 9, "size": 32, "network": "student"}
    starts = {"init": "random:0", "init_flow": "random:0", "augmentations": 2, "keep_stages": False}
    run = kdcache.train("relation", videos / "out", out=tmp_path / "run", device="cpu", **given, **starts)
    assert list(dict.fromkeys(run.history["stage"])) == ["teacher", "student"]
    assert run.resolved["options"]["taps"] == ["Mixed_4f", "Mixed_5c"]
    assert set(Run(run.path).training_data.data.inputs) == {"rgb"}
    (answer,) = kdcache.predict(run, videos / "v4.mp4")
    np.testing.assert_allclose(answer.probabilities, run.predict("test").loc["v4"], atol=1e-5)


# The tables


def test_every_row_is_runnable_and_differs():
    found = presets.tables("relation")
    for name, quoted in (("ucf101", 4), ("hmdb51", 4), ("kinetics", 4), ("ssv1", 3), ("i3d", 0), ("light", 0)):
        rows = found[name].rows
        own = [row for row in rows if not row.quoted]
        assert (len(own), len(rows) - len(own)) == (19, quoted)
        assert len({build(relation.Options, row.options) for row in own}) == 19
        assert not any(row.paper for row in own)  # no number of the paper is known
    choices = [build(relation.Options, row.options) for row in found["choices"].rows]
    assert len(set(choices)) == len(choices)


def test_quoted_figures_are_those_of_mars():
    """Of its README: MARS, MARS + RGB, MARS + RGB + Flow; and ResNeXt-101 on RGB."""
    published = {
        "ucf101": [94.5, 97.4, 97.6, 98.1],
        "hmdb51": [70.1, 79.3, 79.5, 80.9],
        "kinetics": [65.1, 72.7, 74.8, 74.9],
        "ssv1": [48.7, 51.7, 53.0],
    }
    content = tomllib.loads((files("kdcache") / "presets" / "relation.toml").read_text())["tables"]
    for name, figures in published.items():
        assert [row["paper"]["top1"] for row in content[name]["rows"] if "options" not in row] == figures

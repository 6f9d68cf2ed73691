"""Fitting a backbone: what is trained on, exact resume, the file that comes out, what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
import tomllib
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_network import Tiny

import kdcache
from kdcache import backbones
from kdcache.backbones import InputSpec
from kdcache.backbones import metadata as fitted
from kdcache.cli import main
from kdcache.data.ondemand import videos
from kdcache.data.ondemand.clips import Clip
from kdcache.engine import loop
from kdcache.errors import OptionError, WeightsError
from kdcache.methods import recognition as options
from kdcache.methods import recognition_options as recipes
from kdcache.methods.contract import Segment
from kdcache.methods.labels import keep_fraction
from kdcache.runs.fit import load_config
from kdcache.runs.run import Run
from kdcache.views import Views

QUICK = {"epochs": 3, "lr": 0.05, "batch_size": 4, "augmentations": 50, "device": "cpu", "save_every": 0.0}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A backbone ``tiny``, fitted by TSM's recipe, that takes 2 frames of 16 pixels."""
    module = ModuleType("kdcache.backbones.tiny")
    module.make = lambda spec, classes=None: Tiny(classes or 10)
    monkeypatch.setitem(sys.modules, "kdcache.backbones.tiny", module)
    spec = InputSpec("rgb", frames=2, size=16, resize=18)
    monkeypatch.setitem(backbones.REGISTRY, "tiny", backbones.BackboneEntry("tiny", spec))
    monkeypatch.setitem(recipes.RECIPES, "tiny", {**recipes.RECIPES["tsm-resnet50"], "dropout": 0.25})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 folders of 8 images, three classes of colour, 6 subjects: two of them test, none validates."""
    root = tmp_path_factory.mktemp("images")
    rng, rows = np.random.default_rng(0), []
    for number in range(30):
        name, label = f"clip{number:02d}", number % 3
        (root / name).mkdir()
        for frame in range(8):
            image = rng.integers(0, 160, (20, 26, 3))
            image[..., label] += 60
            cv2.imwrite(str(root / name / f"{frame:03d}.png"), image.astype(np.uint8))
        subject = number // 3 % 6
        rows.append((name, name, 5 * label, f"s{subject}", "test" if subject > 3 else "train", "10"))
    table = pd.DataFrame(rows, columns=["clip_id", "source", "label", "subject", "split", "fps"])
    table.insert(2, "start_s", np.nan)
    table.insert(3, "stop_s", np.nan)
    kdcache.write_manifest(table, root / "clips.csv")
    return root


def rows_of(folder):
    return kdcache.read_manifest(folder / "clips.csv", folder)


def same_weights(one, other):
    left, right = load_file(one.weights), load_file(other.weights)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def finished(folder, tmp_path):
    return kdcache.fit("tiny", folder / "clips.csv", folder, tmp_path / "whole", **QUICK)


def test_the_file_tells_what_it_has_seen_and_loads_as_it_is(finished, folder):
    facts, rows = fitted.read_metadata(finished.weights), rows_of(folder)
    assert (facts.backbone, facts.num_classes, facts.classes, facts.limits) == ("tiny", 3, (0, 5, 10), None)
    train = set(rows["clip_id"][rows["split"] == "train"])
    assert set(facts.fitted_on) | set(facts.validated_on) == train
    assert not set(facts.fitted_on) & set(facts.validated_on)
    subject = rows.set_index("clip_id")["subject"]
    assert not {subject[c] for c in facts.fitted_on} & {subject[c] for c in facts.validated_on}
    assert facts.options["epochs"] == 3
    assert facts.options["dropout"] == 0.25

    net = backbones.build("tiny", finished.weights)
    own = net.state_dict()
    assert own["fc.weight"].shape == (3, 8)
    stored = load_file(finished.weights)
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], stored[name]) for name in own)
    assert net.weights_id["sha256"] == backbones.weights_id("tiny", finished.weights)["sha256"]


def test_what_the_file_scores_is_what_the_metrics_say(finished, folder):
    """The metrics, from the file alone: centre crops of the middle frame of each half, decoded here by hand."""
    rows = rows_of(folder)
    test = rows[rows["split"] == "test"]
    net = backbones.build("tiny", finished.weights)
    hits = []
    for clip, label in zip(test["clip_id"], test["label"], strict=True):
        shown = []
        for frame in (2, 6):  # ⌊(i + 1/2) 8 / 2⌋
            image = cv2.imread(str(folder / clip / f"{frame:03d}.png"))[..., ::-1]
            image = cv2.resize(image, (round(26 * 18 / 20), 18), interpolation=cv2.INTER_AREA)
            left = (image.shape[1] - 16) // 2
            shown.append(image[1:17, left : left + 16])
        with torch.no_grad():
            scores = net(net.prepare(torch.from_numpy(np.stack(shown)[None])))
        hits.append(facts_label(finished, scores) == label)
    assert finished.metrics["test"]["top1"] == pytest.approx(100 * np.mean(hits))
    assert finished.metrics["test"]["top1"] > 60  # chance is a third


def facts_label(fit, scores):
    return fit.facts.classes[int(scores.argmax())]


def test_labels_of_test_clips_change_nothing_but_their_own_metric(finished, folder, tmp_path):
    rows = rows_of(folder)
    test = rows["split"] == "test"
    rows.loc[test, "label"] = (rows.loc[test, "label"] + 5) % 15
    other = kdcache.fit("tiny", rows, folder, tmp_path / "wrong", **QUICK)
    assert same_weights(finished, other)
    assert other.metrics["validation"] == finished.metrics["validation"]
    assert other.metrics["test"]["top1"] < finished.metrics["test"]["top1"]


def test_test_clips_may_all_be_unlabelled(finished, folder, tmp_path):
    rows = rows_of(folder)
    rows.loc[rows["split"] == "test", "label"] = pd.NA
    other = kdcache.fit("tiny", rows, folder, tmp_path / "unlabelled", **QUICK)
    assert same_weights(finished, other)
    assert "test" not in other.metrics
    with pytest.raises(OptionError, match="No clip of test has what the network reads"):
        Run(tmp_path / "unlabelled").predict("test")


def test_validation_labels_choose_the_epoch_and_move_nothing(finished, folder, tmp_path):
    rows = rows_of(folder)
    held = rows["clip_id"].isin(finished.facts.validated_on)
    rows.loc[held, "split"] = "validation"
    one = kdcache.fit("tiny", rows, folder, tmp_path / "one", **QUICK, keep="last")
    rows.loc[held, "label"] = (rows.loc[held, "label"] + 5) % 15
    other = kdcache.fit("tiny", rows, folder, tmp_path / "other", **QUICK, keep="last")
    assert same_weights(one, other)
    assert one.metrics["validation"] != other.metrics["validation"]


def test_an_interrupted_fit_goes_on_to_the_same_weights(finished, folder, tmp_path, monkeypatch):
    class Crash(RuntimeError):
        pass

    taken, original = iter(range(100)), loop._step

    def step(run, batch):
        original(run, batch)
        if next(taken) == 6:  # in the second epoch
            raise Crash

    monkeypatch.setattr(loop, "_step", step)
    with pytest.raises(Crash):
        kdcache.fit("tiny", folder / "clips.csv", folder, tmp_path / "broken", **QUICK)
    monkeypatch.setattr(loop, "_step", original)
    assert not (tmp_path / "broken" / "tiny.safetensors").exists()
    with pytest.raises(OptionError, match=r"other settings .*seed"):
        kdcache.fit("tiny", folder / "clips.csv", folder, tmp_path / "broken", **QUICK, seed=1)
    again = kdcache.fit("tiny", folder / "clips.csv", folder, tmp_path / "broken", **QUICK)
    assert same_weights(finished, again)
    assert again.metrics == finished.metrics
    logs = [pd.read_csv(f.path / "metrics.csv").drop(columns="seconds") for f in (finished, again)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)


@pytest.mark.parametrize("label_fraction", [1.0, 0.5])
def test_its_run_answers_for_the_clips_that_it_loaded(folder, tmp_path, label_fraction):
    """Frames of clips without a label in use are not decoded; naming such a clip says so."""
    rows = rows_of(folder)
    rows.loc[rows["clip_id"].isin(["clip00", "clip01", "clip20"]), "label"] = pd.NA
    options = QUICK | {"epochs": 1, "label_fraction": label_fraction, "validation": 0.0}
    run = Run(kdcache.fit("tiny", rows, folder, tmp_path / "fit", **options).path)
    data = run.training_data.data
    train, clips = data.splits["train"], data.inputs["x"].clips
    loaded = [n for n, row in zip(train.names, train.rows["clip"].tolist(), strict=True) if row in clips]
    labelled = rows["clip_id"][rows["label"].notna() & (rows["split"] == "train")]
    assert set(loaded) <= set(labelled)
    assert len(loaded) == (len(labelled) if label_fraction == 1 else 3 * round(0.5 * len(labelled) / 3))
    assert list(run.predict("train").index) == loaded
    assert run.evaluate()["last"] == run.metrics["last"]
    stored = pd.read_csv(run.path / "predictions.csv")
    np.testing.assert_allclose(stored[["0", "5", "10"]], run.predictions()[[0, 5, 10]], atol=1e-5)
    with pytest.raises(OptionError, match="Clip 'clip00' has no array of what the network reads"):
        run.predict([loaded[0], "clip00"])


def test_a_finished_fit_is_returned_as_it_is(finished, folder, monkeypatch):
    monkeypatch.setattr(loop, "_step", None)
    again = kdcache.fit("tiny", folder / "clips.csv", folder, finished.path, **QUICK)
    assert again == finished


def test_augmentations_show_other_moments_corners_and_mirrors(tmp_path):
    """Frame k is 20 k grey, brighter to the right by its column: moment and mirror can be read off each segment."""
    for frame in range(8):
        image = np.full((20, 26, 3), 20 * frame) + np.arange(26)[None, :, None] // 2
        cv2.imwrite(str(tmp_path / f"{frame}.png"), image.astype(np.uint8))
    clip = Clip("a", "a", tmp_path, np.nan, np.nan, 10.0)
    views = Views(16, 20)

    def segments(fps=None, **given):
        shown = videos.VideoInput(2, fps, views, "auto")
        shot = videos.load([clip], shown, 1e9).clips["a"]
        segment = Segment(frames=2, size=16, **given)
        return videos.VideoClips({0: shot}, shown, segment, 0, torch.device("cpu"))

    stream = segments()
    centre = stream.view(0, 0, 0)
    np.testing.assert_array_equal(centre[:, 0, :, 0], [[20 * k + (5 + c) // 2 for c in range(16)] for k in (2, 6)])
    drawn = [stream.view(0, view, 0).astype(int) for view in range(1, 200)]
    moments = {tuple(segment.mean((1, 2, 3)) // 20) for segment in drawn}
    assert moments == {(a, b) for a in (0, 2, 3) for b in (4, 6, 7)}
    rising = [segment[0, 0, -1, 0] > segment[0, 0, 0, 0] for segment in drawn]
    assert 0.4 < np.mean(rising) < 0.6
    assert (
        len({segment[0].tobytes() for segment in drawn}) > 60
    )  # 3 moments × 5 places × 4 scales × 2, less what is alike
    straight = segments(mirror=False)
    assert all(s[0, 0, -1, 0] > s[0, 0, 0, 0] for s in (straight.view(0, v, 0).astype(int) for v in range(1, 40)))

    together = segments(fps=5.0)  # at a fixed rate a segment moves as a whole
    steps = {np.diff(s.astype(int).mean((1, 2, 3)))[0].round() for s in (together.view(0, v, 0) for v in range(1, 30))}
    assert steps == {40}


def test_its_config_makes_the_same_fit_again(folder, tmp_path):
    first = kdcache.fit("tiny", rows_of(folder), folder, tmp_path / "first", **QUICK, seed=3)
    config = tomllib.loads((first.path / "config.toml").read_text())
    assert config["seed"] == 3
    assert config["resolved"]["options"]["grad_clip"] == 20
    second = kdcache.fit(**load_config(first.path / "config.toml"), out=tmp_path / "second")
    assert same_weights(first, second)
    third = kdcache.fit("tiny", rows_of(folder), folder, tmp_path / "third", **QUICK, seed=4)
    assert not same_weights(first, third)


def test_it_may_be_fitted_on_another_of_the_manifests_splits(folder, tmp_path):
    rows = rows_of(folder)
    subject = rows["subject"]
    rows["split_2"] = np.select([subject == "s0", subject == "s1"], ["test", "validation"], "train")
    fit = kdcache.fit("tiny", rows, folder, tmp_path / "second", **QUICK, split="split_2")
    assert set(fit.facts.fitted_on) == set(rows["clip_id"][rows["split_2"] == "train"])
    assert set(fit.facts.validated_on) == set(rows["clip_id"][rows["split_2"] == "validation"])
    same = kdcache.fit("tiny", rows.assign(split=rows["split_2"]), folder, tmp_path / "same", **QUICK)
    assert same_weights(fit, same)
    assert fit.metrics == same.metrics
    kdcache.write_manifest(rows, tmp_path / "clips.csv")
    call = ["fit", "tiny", f"--manifest={tmp_path / 'clips.csv'}", f"--root={folder}", f"--out={tmp_path / 'wrong'}"]
    refused = CliRunner().invoke(main, [*call, "--split=split2"])
    assert refused.exit_code == 1
    assert "did you mean 'split_2'" in refused.output


def test_a_fraction_of_the_labels_is_the_one_that_training_keeps(folder, tmp_path):
    fit = kdcache.fit("tiny", rows_of(folder), folder, tmp_path / "part", **QUICK, label_fraction=0.4, label_seed=7)
    rows = rows_of(folder).sort_values("clip_id")
    train = rows[(rows["split"] == "train") & ~rows["clip_id"].isin(fit.facts.validated_on)]
    y = torch.tensor((train["label"] // 5).to_numpy(np.int64))
    kept = keep_fraction(y, 0.4, 7) >= 0
    assert list(fit.facts.fitted_on) == train["clip_id"][kept.numpy()].tolist()
    assert 3 <= len(fit.facts.fitted_on) < len(train)

    rows.loc[rows["clip_id"].isin(train["clip_id"][~kept.numpy()]), "label"] = pd.NA
    other = kdcache.fit("tiny", rows, folder, tmp_path / "rest", **QUICK)
    assert same_weights(fit, other)  # labels that are not kept are as good as none


def test_frames_that_do_not_fit_into_memory_are_decoded_again_by_several_threads(finished, folder, tmp_path):
    other = kdcache.fit(
        "tiny", folder / "clips.csv", folder, tmp_path / "decoded", **QUICK, memory_fraction=0.0, workers=3
    )
    assert same_weights(finished, other)


def test_clips_that_cannot_be_read_are_listed_and_left_out(finished, folder, tmp_path):
    rows = rows_of(folder)
    lost = finished.facts.fitted_on[0]
    rows.loc[rows["clip_id"] == lost, "source"] = "nowhere"
    late = finished.facts.fitted_on[1]
    rows.loc[rows["clip_id"] == late, ["start_s", "stop_s"]] = (50.0, 60.0)
    kdcache.write_manifest(rows, tmp_path / "clips.csv")
    arguments = ["fit", "tiny", "--manifest", str(tmp_path / "clips.csv"), "--root", str(folder)]
    sets = [f"--set={name}={value}" for name, value in QUICK.items() if name != "device"]
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out"), "--device", "cpu", *sets])
    assert result.exit_code == 3, result.output
    table = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert sorted(table["clip_id"]) == sorted([lost, late])
    assert set(table["stage"]) == {"open", "sample"}
    facts = fitted.read_metadata(tmp_path / "out" / "tiny.safetensors")
    assert set(facts.fitted_on) == set(finished.facts.fitted_on) - {lost, late}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["epochs"]["last"] == 3


def test_a_fit_may_go_on_from_another_and_remembers_its_clips(finished, folder, tmp_path):
    rows = rows_of(folder)
    held = rows["clip_id"].isin(finished.facts.validated_on)
    some = rows[held].assign(split=["train", "validation"] * (held.sum() // 2), label=range(held.sum()))
    fit = kdcache.fit("tiny", some, folder, tmp_path / "more", **QUICK | {"lr": 1e-9}, init=finished.weights)
    assert set(finished.facts.fitted_on) < set(fit.facts.fitted_on)
    old, new = load_file(finished.weights), load_file(fit.weights)
    assert torch.allclose(old["conv.weight"], new["conv.weight"], atol=1e-6)
    assert new["fc.weight"].shape == (held.sum(), 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"lr": -1.0}, "lr=-1.0: give a positive number"),
        ({"levels": 5}, "levels is for skeletons"),
        ({"label_fraction": 0.0}, "label_fraction"),
        ({"validation": 0.0, "schedule": "plateau"}, "schedule=plateau follows"),
        ({"target": "verb"}, "target=verb: the manifest has none; it has label"),
        ({"init": "random:x"}, "random:0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_folder_is_made(folder, tmp_path, given, message):
    with pytest.raises(OptionError, match=message):
        kdcache.fit("tiny", rows_of(folder), folder, tmp_path / "out", **{**QUICK, **given})
    assert not (tmp_path / "out").exists()


def test_backbones_of_flow_and_unknown_ones_are_refused(folder):
    with pytest.raises(OptionError, match="i3d-flow takes flow, from which fit does not train"):
        kdcache.fit("i3d-flow", rows_of(folder), folder)
    with pytest.raises(OptionError, match="did you mean 'tiny'"):
        kdcache.fit("tinny", rows_of(folder), folder)
    assert options.with_recipe(options.Options(backbone="tsm-resnet50")).dropout == 0.8
    assert (
        options.with_recipe(options.Options(backbone="tsm-resnet50", init="random:0")).lr == 0.02
    )  # nothing to fine-tune


def test_facts_survive_the_file_and_other_files_have_none(tmp_path):
    facts = fitted.FitMetadata(
        backbone="vacnn", num_classes=2, classes=(3, 7), limits=(-1.25, 2.5), fitted_on=("a", "ü"), options={"lr": 0.1}
    )
    fitted.write(tmp_path / "w.safetensors", {"w": torch.arange(3.0)}, facts)
    assert fitted.read_metadata(tmp_path / "w.safetensors") == facts
    assert torch.equal(load_file(tmp_path / "w.safetensors")["w"], torch.arange(3.0))
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    (tmp_path / "empty").touch()
    for name in ("w.pt", "empty"):
        assert fitted.read_metadata(tmp_path / name) is None
    with pytest.raises(WeightsError, match="missing"):
        fitted.read_metadata(tmp_path / "missing")
    damaged = (tmp_path / "w.safetensors").read_bytes().replace(b'\\"classes\\"', b'\\"glasses\\"')
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(WeightsError, match="damaged"):
        fitted.read_metadata(tmp_path / "damaged.safetensors")
    assert dataclasses.asdict(facts)["validated_on"] == ()


def test_weights_of_another_backbone_are_refused_by_name(finished):
    with pytest.raises(WeightsError, match="was fitted as tiny, not as resnet34"):
        backbones.build("resnet34", finished.weights)

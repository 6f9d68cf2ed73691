"""Recognition on cached features of every shape: what it pools, trains, predicts, and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import ragged_cache
import streams_cache
import torch
from click.testing import CliRunner
from make_videos import write as write_video

import kdcache
from kdcache.cli import main
from kdcache.engine import loop
from kdcache.errors import OptionError
from kdcache.methods import recognition_features
from kdcache.methods.recognition import Options
from kdcache.runs.fit import Fit
from kdcache.runs.requirements import extraction_calls
from kdcache.runs.run import Run
from kdcache.store.fitted import save_fitted

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"device": "cpu", "epochs": 20, "lr": 0.05, "batch_size": 8}
SHAPES = {
    "D": (5,),
    "TD": (3, 5),
    "ND": (4, 5),
    "PD": (3, 5),
    "TPD": (2, 3, 5),
    "CTHW": (5, 3, 2, 2),
    "TCHW": (3, 5, 2, 2),
}


def with_axes(folder, axes, seed=0):
    """A stream with these axes in which two classes differ."""
    rng, table, shape = np.random.default_rng(seed), streams_cache.rows(16, 6, 6), SHAPES[axes]
    signs = rng.choice([-1, 1], shape[axes.index("D" if "D" in axes else "C")])
    along = signs.reshape([-1 if letter in "CD" else 1 for letter in axes])
    arrays = [(rng.normal(size=(1, *shape)) + 2 * along * (label / 7)).astype(np.float16) for label in table["label"]]
    return streams_cache.write(folder, table, [(streams_cache.imported("f/x", (1, *shape), f"V{axes}"), arrays)])


@pytest.mark.parametrize("axes", SHAPES)
def test_every_kind_of_features_trains_and_answers(tmp_path, axes):
    folder = with_axes(tmp_path / "cache", axes)
    pools = ["mean"] + ["attention"] * (axes != "D") + ["last"] * ("T" in axes or "N" in axes)
    for pool in pools:
        run = kdcache.train("recognition", folder, out=tmp_path / pool, pool=pool, **QUICK)
        assert run.metrics["last"]["test"]["label"]["top1"] > 80
        assert run.metrics["baselines"]["test"] == {"clips": 6, "chance": 50.0, "majority": 50.0}
        again = Run(run.path)
        assert again.evaluate()["last"] == run.metrics["last"]
        whole = again.predict("test")
        np.testing.assert_allclose(again.predict([whole.index[3]]).to_numpy()[0], whole.to_numpy()[3], rtol=1e-5)
    assert "test: 6 clips; chance 50.0" in str(run)
    refused = {"pool": "attention"} if axes == "D" else {"pool": "last"}
    if axes in ("D", "PD"):
        with pytest.raises(OptionError, match=f"pool={refused['pool']}: the stream"):
            kdcache.train("recognition", folder, out=tmp_path / "no", **refused, **QUICK)


def test_pooled_vectors_are_what_their_names_say():
    rng = np.random.default_rng(0)
    for axes, shape in SHAPES.items():
        x = torch.tensor(rng.normal(size=shape), dtype=torch.float32)
        others = tuple(i for i, letter in enumerate(axes) if letter not in "CD")
        if axes != "D":
            torch.testing.assert_close(recognition_features.mean_vector(axes)(x), x.mean(others))
    x = torch.tensor(rng.normal(size=(2, 3, 5)), dtype=torch.float32)  # TPD
    torch.testing.assert_close(recognition_features.last_vector("TPD")(x), x[-1].mean(0))
    torch.testing.assert_close(recognition_features.last_vector("NTD")(x), x[-1, -1])
    torch.testing.assert_close(recognition_features.vectors_of("TPD")(x), x.reshape(6, 5))
    maps = torch.tensor(rng.normal(size=(5, 4, 3, 3)), dtype=torch.float32)  # CTHW: cells of 2×2×2
    vectors = recognition_features.vectors_of("CTHW")(maps)
    assert vectors.shape == (2 * 2 * 2, 5)
    torch.testing.assert_close(vectors[0], maps[:, :2, :2, :2].mean((1, 2, 3)))
    torch.testing.assert_close(recognition_features.last_vector("CTHW")(maps), maps[:, -1].mean((1, 2)))


@pytest.mark.parametrize("pool", ["mean", "attention", "last"])
def test_clips_that_differ_in_length(tmp_path, pool):
    folder, table, made = ragged_cache.clips(tmp_path / "cache", 16, 6, 6)
    run = kdcache.train("recognition", folder, out=tmp_path / "run", pool=pool, head="mlp", width=8, **QUICK)
    assert run.metrics["last"]["test"]["label"]["top1"] > 80
    whole = run.predict("train")
    one = run.predict([whole.index[5]])
    np.testing.assert_allclose(one.to_numpy()[0], whole.to_numpy()[5], rtol=1e-5)
    train = [x for x, split in zip(made, table["split"], strict=True) if split == "train"]
    shown = {"mean": [x.mean(0, keepdims=True) for x in train], "last": [x[-1:] for x in train], "attention": train}
    vectors = np.concatenate(shown[pool]).astype(np.float64)
    network = run.network()
    np.testing.assert_allclose(network.standardise.mean.numpy(), vectors.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(1 / network.standardise.scale.numpy(), vectors.std(0), rtol=1e-4)


def test_a_feature_that_never_varies_and_features_as_they_are(tmp_path):
    table = streams_cache.rows(8, 4, 4)
    arrays = [np.array([[label / 7, 3.0]], np.float32) for label in table["label"]]
    recipe = streams_cache.imported("f/x", (1, 2)) | {"dtype": "float32"}
    folder = streams_cache.write(tmp_path / "cache", table, [(recipe, arrays)])
    run = kdcache.train("recognition", folder, out=tmp_path / "run", **QUICK)
    assert run.network().standardise.scale.tolist() == [2.0, 0.0]
    assert run.metrics["last"]["test"]["label"]["top1"] == 100
    plain = kdcache.train("recognition", folder, out=tmp_path / "plain", standardise=False, **QUICK)
    assert plain.network().standardise.scale.tolist() == [1.0, 1.0]


def test_it_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    folder, _, _ = ragged_cache.clips(tmp_path / "cache", 16, 6, 6)
    options = {"pool": "attention", "save_every": 0.0, **QUICK}
    whole = kdcache.train("recognition", folder, out=tmp_path / "whole", **options)
    taken, original = iter(range(100)), loop._step

    def stopping(run, batch):
        original(run, batch)
        if next(taken) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            kdcache.train("recognition", folder, out=tmp_path / "run", **options)
    run = kdcache.train("recognition", folder, out=tmp_path / "run", **options)
    assert (run.path / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()


def test_runs_are_fused_compared_and_told_from_fits(tmp_path):
    folder = with_axes(tmp_path / "cache", "TD")
    runs = [kdcache.train("recognition", folder, out=tmp_path / f"run{i}", seed=i, **QUICK) for i in range(2)]
    fused = CliRunner().invoke(main, ["evaluate", *(str(run.path) for run in runs)])
    assert fused.exit_code == 0, fused.output
    assert json.loads(fused.stdout)["test"]["top1"] > 80
    with pytest.raises(OptionError, match="trained a classifier on cached features, no backbone: nothing to export"):
        runs[0].export()
    with pytest.raises(OptionError, match="is a run of recognition on features: name a folder of a fit"):
        Fit.open(runs[0].path)
    rows = {"linear": {}, "mlp": {"head": "mlp", "width": 4}}
    common = {"epochs": 2, "device": "cpu", "batch_size": 8, "min_steps": 1, "widen": 0}
    result = kdcache.ablate("recognition", shards=folder, rows=rows, seeds=1, tune=2, out=tmp_path / "abl", **common)
    assert "linear" in str(result)
    assert "mlp" in str(result)


def test_options_that_mean_nothing_together_are_refused():
    with pytest.raises(OptionError, match="head=mlp means nothing with a backbone, for it is of classifiers"):
        Options(backbone="tsm", head="mlp")
    with pytest.raises(OptionError, match="frames=4 means nothing with features, for it is of a backbone"):
        Options(frames=4)
    with pytest.raises(OptionError, match="width=8 means nothing with head=linear"):
        Options(width=8)
    assert Options().completed().lr == 1e-3
    (call,) = extraction_calls("recognition")
    assert call.streams == ("tsm/clip",)


def test_features_of_a_backbone_that_saw_the_test_labels_are_refused(tmp_path):
    table = streams_cache.rows(8, 4, 4)
    recipe = streams_cache.features("resnet34/pool", views=("centre",))
    recipe["backbone"]["weights"] = {"sha256": "0" * 64}
    arrays = list(np.random.default_rng(0).normal(size=(16, 1, 8, 5)).astype(np.float16))
    folder = streams_cache.write(tmp_path / "cache", table, [(recipe, arrays)])
    save_fitted(folder, {"0" * 64: {"fitted_on": ["test-00", "test-01"]}})
    with pytest.raises(OptionError, match="was fitted with labels of 2 test clips"):
        kdcache.train("recognition", folder, out=tmp_path / "run", **QUICK)
    kdcache.train("recognition", folder, out=tmp_path / "run", allow_leak=True, **QUICK)


def test_it_answers_for_a_video_and_says_what_that_costs(tmp_path):
    """From pixels to a table to a new clip, on extracted features."""
    rng, lines = np.random.default_rng(0), ["clip_id,source,start_s,stop_s,split,label"]
    for i, split in enumerate(("train", "train", "train", "train", "validation", "test")):
        frames = [rng.integers(0, 120, (48, 64, 3)).astype(np.uint8) for _ in range(4)]
        for frame in frames:
            frame[..., i % 2] += 100
        write_video(tmp_path / f"v{i}.mp4", frames)
        lines.append(f"v{i},v{i}.mp4,,,{split},{i % 2}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    sizes = {"size": 32, "frames": 2}
    sizes["weights"] = {"resnet34": "random:0"}
    kdcache.extract(tmp_path / "clips.csv", tmp_path, tmp_path / "out", ["resnet34/pool"], **sizes)
    run = kdcache.train("recognition", tmp_path / "out", out=tmp_path / "run", **QUICK | {"epochs": 3})
    (answer,) = kdcache.predict(run, tmp_path / "v5.mp4")
    np.testing.assert_allclose(answer.probabilities, run.predict(["v5"]).to_numpy()[0], rtol=1e-3, atol=1e-4)
    cost = kdcache.cost(run)
    assert cost.parameters > 21_000_000  # ResNet-34, and a linear classifier of 512 × 2
    shown = CliRunner().invoke(main, ["predict", str(run.path), str(tmp_path / "v5.mp4")])
    assert shown.exit_code == 0, shown.output

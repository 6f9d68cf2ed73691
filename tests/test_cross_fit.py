"""Cross-fitting: who is left out of which fit, which network computes a clip, keys and recipes, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from tiny_network import Tiny

import kdcache
from kdcache import backbones
from kdcache.backbones import InputSpec, crossfit
from kdcache.backbones.metadata import FitMetadata, read_metadata, write
from kdcache.backbones.weights import of_folder, weights_digest
from kdcache.cli import main
from kdcache.data.parts import draw_parts
from kdcache.errors import OptionError, StoreError, WeightsError
from kdcache.methods import recognition_options as recipes
from kdcache.recipe import clip_key, digest
from kdcache.runs.cross_fit import CrossFit
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

PARTS = 3
QUICK = {
    "epochs": 1, "lr": 0.05, "batch_size": 4, "augmentations": 3, "device": "cpu", "init": "random:3",
}  # fmt: skip
EXTRACT = {"frames": 2, "size": 16, "bar": False, "device": "cpu"}


def add_small(patch):
    """A backbone ``small`` in the registry: its parts are those of tests/test_fit.py."""
    module, layers = ModuleType("kdcache.backbones.small"), ModuleType("kdcache.backbones.small_layers")
    module.make = lambda spec, classes=None: Tiny(classes or 10, norm=False)
    layers.ORDER = Tiny.order
    layers.resolve = lambda layer: layer
    layers.axes = lambda layer: "TD"
    layers.shape = lambda layer, channels, frames, size, num_classes=10: (frames, 8 if layer == "pool" else num_classes)
    patch.setitem(sys.modules, "kdcache.backbones.small", module)
    patch.setitem(sys.modules, "kdcache.backbones.small_layers", layers)
    spec = InputSpec("rgb", frames=2, size=16, resize=18)
    patch.setitem(backbones.REGISTRY, "small", backbones.BackboneEntry("small", spec))
    patch.setitem(recipes.RECIPES, "small", {**recipes.RECIPES["tsm-resnet50"], "dropout": 0.0})


@pytest.fixture(autouse=True)
def small(monkeypatch, one_thread):
    add_small(monkeypatch)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """24 folders of 4 images: three classes of colour, 8 subjects, two of whom test and none of whom validates."""
    root = tmp_path_factory.mktemp("images")
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        name, label, subject = f"clip{number:02d}", number % 3, number // 3
        (root / name).mkdir()
        for frame in range(4):
            image = rng.integers(0, 160, (20, 26, 3))
            image[..., label] += 60
            cv2.imwrite(str(root / name / f"{number:02d}-{frame}.png"), image.astype(np.uint8))
        rows.append((name, name, 5 * label, f"s{subject}", "test" if subject > 5 else "train", "10"))
    table = pd.DataFrame(rows, columns=["clip_id", "source", "label", "subject", "split", "fps"])
    table.insert(2, "start_s", np.nan)
    table.insert(3, "stop_s", np.nan)
    kdcache.write_manifest(table, root / "clips.csv")
    return root


@pytest.fixture(scope="module")
def fitted(clips, tmp_path_factory):
    """Four fits in one folder: subjects s0 to s5 but for those held out, in three parts."""
    with pytest.MonkeyPatch.context() as patch:
        add_small(patch)
        out = tmp_path_factory.mktemp("fits") / "cross"
        return kdcache.fit("small", clips / "clips.csv", clips, out, cross_fit=PARTS, **QUICK)


@pytest.fixture(scope="module")
def cache(clips, fitted, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        add_small(patch)
        out = tmp_path_factory.mktemp("cross") / "out"
        weights = {"small": fitted.weights}
        kdcache.extract(clips / "clips.csv", clips, out, ["small/logits"], weights, **EXTRACT)
    return out


def rows_of(clips):
    return kdcache.read_manifest(clips / "clips.csv", clips)


def parts_of(fit):
    return of_folder(fit.weights).cross_fit.clips


# ---- the fits


def test_each_part_is_left_out_of_one_fit_whole_by_subject(fitted, clips):
    subject = rows_of(clips).set_index("clip_id")["subject"]
    whole = read_metadata(fitted.run.path / "small.safetensors")
    parts = parts_of(fitted)
    assert set(parts) == set(whole.fitted_on)
    assert sorted(set(parts.values())) == list(range(PARTS))
    of_subject = {(subject[clip], part) for clip, part in parts.items()}
    assert len(of_subject) == len({name for name, _ in of_subject}) == 4  # two of six subjects validate
    for number, part in enumerate(fitted.parts):
        left_out = {clip for clip, its in parts.items() if its == number}
        assert set(part.facts.fitted_on) == set(parts) - left_out
        assert part.facts.validated_on == whole.validated_on
        assert part.facts.classes == whole.classes == (0, 5, 10)
    assert fitted.facts == whole


def test_it_opens_again_and_the_same_call_fits_nothing_anew(fitted, clips):
    before = {f: f.stat().st_mtime_ns for f in fitted.path.rglob("*.safetensors")}
    again = kdcache.fit("small", clips / "clips.csv", clips, fitted.path, cross_fit=PARTS, **QUICK)
    assert again == CrossFit.open(fitted.path) == fitted
    assert {f: f.stat().st_mtime_ns for f in fitted.path.rglob("*.safetensors")} == before
    assert json.loads(json.dumps(again.to_json(), default=str))["parts"][2]["weights"].endswith("small.safetensors")
    assert "3 more fits" in str(again)


def test_the_fit_on_all_clips_is_the_ordinary_one(fitted, clips, tmp_path):
    alone = kdcache.fit("small", clips / "clips.csv", clips, tmp_path / "alone", **QUICK)
    assert alone.weights.read_bytes() == (fitted.path / "all" / "small.safetensors").read_bytes()


def test_hidden_labels_stay_hidden_in_every_part(clips, tmp_path):
    fit = kdcache.fit(
        "small", clips / "clips.csv", clips, tmp_path / "cross", cross_fit=2, label_fraction=0.4, label_seed=2, **QUICK
    )
    known = set(read_metadata(fit.run.path / "small.safetensors").fitted_on)
    assert len(known) == 6  # 2 of 5 of each of 3 classes
    assert set(parts_of(fit)) == known
    assert all(set(part.facts.fitted_on) < known for part in fit.parts)


def test_what_cannot_be_cross_fitted_is_refused(fitted, clips, tmp_path):
    call = ("small", clips / "clips.csv", clips)
    with pytest.raises(OptionError, match="cross_fit=1: cut the clips into 2 parts or more"):
        kdcache.fit(*call, tmp_path / "one", cross_fit=1, **QUICK)
    with pytest.raises(OptionError, match="part-0 leaves other clips out than are to be left out now"):
        kdcache.fit(*call, fitted.path, cross_fit=PARTS + 1, **QUICK)
    with pytest.raises(OptionError, match=r"init=.*has seen the labels of 6 of these clips, such as clip"):
        kdcache.fit(*call, tmp_path / "known", cross_fit=2, **QUICK | {"init": str(fitted.parts[0].weights)})


def test_a_single_fit_is_not_taken_for_cross_fitted(clips, tmp_path):
    alone = kdcache.fit("small", clips / "clips.csv", clips, tmp_path / "alone", **QUICK)
    with pytest.raises(OptionError, match="holds a fit that is not cross-fitted"):
        kdcache.fit("small", clips / "clips.csv", clips, alone.path, cross_fit=2, **QUICK)
    with pytest.raises(WeightsError, match=r"is a folder without crossfit.json: name a weights file"):
        of_folder(alone.path)


# ---- the parts


def manifest(**columns):
    count = len(next(iter(columns.values())))
    base = {"clip_id": [f"c{n:02d}" for n in range(count)], "source": [f"v{n}" for n in range(count)]}
    return pd.DataFrame({**base, "start_s": 0.0, "stop_s": 1.0, **columns})


def test_parts_keep_groups_whole_and_spread_classes():
    rows = manifest(group=[f"g{n // 2}" for n in range(24)])
    classes = pd.Series([n % 2 for n in range(24)], index=rows["clip_id"])
    parts = draw_parts(rows, classes, 4)
    assert parts == draw_parts(rows.sample(frac=1, random_state=0), classes, 4)
    assert pd.Series(parts).value_counts().tolist() == [6] * 4
    assert all(parts[f"c{n:02d}"] == parts[f"c{n + 1:02d}"] for n in range(0, 24, 2))


def test_too_few_groups_leave_classes_in_equal_shares():
    rows = manifest(subject=["a", "b"] * 12)
    classes = pd.Series([n // 12 for n in range(24)], index=rows["clip_id"])
    table = pd.crosstab(pd.Series(draw_parts(rows, classes, 3)), classes)
    assert (table == 4).all(axis=None)


def test_clips_of_one_span_stay_together():
    rows = manifest(source=["v"] * 8, start_s=[n // 2 for n in range(8)])
    parts = draw_parts(rows, pd.Series([0] * 8, index=rows["clip_id"]), 4)
    assert [parts[f"c{n:02d}"] == parts[f"c{n + 1:02d}"] for n in range(0, 8, 2)] == [True] * 4
    with pytest.raises(OptionError, match="4 labelled training clips cannot be cut into 5 parts"):
        draw_parts(rows, pd.Series([0] * 8, index=rows["clip_id"]), 5)


def test_classes_that_a_network_cannot_know_are_said(caplog):
    rows = manifest(subject=["a", "a", "b", "c"])
    with caplog.at_level(logging.WARNING, "kdcache"):
        draw_parts(rows, pd.Series([7, 7, 1, 1], index=rows["clip_id"]), 3)
    assert "1 of the classes (number 7) have labelled clips in one part alone" in caplog.text
    assert "computes these 2 clips" in caplog.text


# ---- extraction


def test_each_clip_is_computed_by_the_network_that_has_not_seen_it(cache, fitted, clips):
    """Every clip again, with each network as if it were alone; weights of one file give the same bytes as before."""
    files = {None: fitted.path / "all" / "small.safetensors"} | dict(enumerate(p.weights for p in fitted.parts))
    alone = {}
    for part, file in files.items():
        out = cache.parent / f"alone-{part}"
        kdcache.extract(clips / "clips.csv", clips, out, ["small/logits"], {"small": file}, **EXTRACT)
        alone[part] = kdcache.Cache(out)
    found, parts = kdcache.Cache(cache), parts_of(fitted)
    differ = 0
    for clip in found.clips["clip_id"]:
        array = found.read("small/logits", [clip])
        assert np.array_equal(array, alone[parts.get(clip)].read("small/logits", [clip]))
        differ += not np.array_equal(array, alone[None].read("small/logits", [clip]))
    assert array.shape == (1, 1, 2, 3)
    assert differ == len(parts) == 12


def test_one_recipe_names_all_networks_and_keys_the_one_of_a_clip(fitted, clips, cache):
    (stream,) = resolve(["small/logits"], StreamSettings(frames=2, size=16), {"small": fitted.weights})
    sha256 = weights_digest(fitted.path / "all" / "small.safetensors")
    known = stream.recipe["backbone"]["weights"]
    assert known == {
        "sha256": sha256,
        "cross_fit": {"parts": [weights_digest(p.weights) for p in fitted.parts], "clips": digest(parts_of(fitted))},
    }
    found = kdcache.Cache(cache)
    assert digest(found.recipe("small/logits")) == stream.digest
    clip, part = next(iter(parts_of(fitted).items()))
    test = rows_of(clips)["clip_id"][23]
    assert stream.digest_of(test) == stream.digest
    assert stream.digest_of(clip) == digest({"recipe": stream.digest, "part": part})
    assert clip_key(stream.digest_of(clip), "f", 0, 1) != clip_key(stream.digest, "f", 0, 1)
    (plain,) = resolve(["small/logits"], StreamSettings(frames=2, size=16), {"small": fitted.parts[0].weights})
    assert plain.recipe["backbone"]["weights"] == {"sha256": weights_digest(fitted.parts[0].weights)}
    assert plain.digest_of(clip) == plain.digest


def test_nothing_is_computed_twice_and_workers_give_the_same(cache, fitted, clips, tmp_path):
    call = (clips / "clips.csv", clips)
    more = (["small/logits"], {"small": fitted.weights})
    again = kdcache.extract(*call, cache, *more, **EXTRACT)
    assert (again.cached, again.extracted) == (24, 0)
    kdcache.extract(*call, tmp_path / "batched", *more, batch=4, **EXTRACT)
    one, other = kdcache.Cache(cache), kdcache.Cache(tmp_path / "batched")
    ids = one.clips["clip_id"].tolist()
    assert np.array_equal(one.read("small/logits", ids), other.read("small/logits", ids))


def test_levels_and_views_have_their_network_too(fitted, clips, tmp_path):
    settings = {**EXTRACT, "frames": 1, "levels": 2, "views": ("centre", "centre-flip")}
    out = tmp_path / "out"
    kdcache.extract(clips / "clips.csv", clips, out, ["small/logits"], {"small": fitted.weights}, **settings)
    clip, part = next(iter(parts_of(fitted).items()))
    alone = tmp_path / "alone"
    weights = {"small": fitted.parts[part].weights}
    kdcache.extract(clips / "clips.csv", clips, alone, ["small/logits"], weights, **settings)
    found = kdcache.Cache(out).read("small/logits", [clip])
    assert found.shape == (1, 2, 2, 3)
    assert np.array_equal(found, kdcache.Cache(alone).read("small/logits", [clip]))


def test_hidden_layers_of_networks_from_random_weights_are_warned_of(fitted, clips, tmp_path):
    call = (clips / "clips.csv", clips, tmp_path / "out")
    report = kdcache.extract(*call, ["small/pool"], {"small": fitted.weights}, dry_run=True, **EXTRACT)
    (sentence,) = report.warnings
    assert sentence.startswith("small/pool: the 4 cross-fitted networks started from random weights")
    assert "class scores (small/logits) mean the same in all" in sentence
    report = kdcache.extract(*call, ["small/logits"], {"small": fitted.weights}, dry_run=True, **EXTRACT)
    assert not report.warnings


def test_a_folder_that_was_tampered_with_is_refused(fitted, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(fitted.path, copy)
    shutil.copyfile(copy / "part-0" / "small.safetensors", copy / "part-1" / "small.safetensors")
    with pytest.raises(WeightsError, match=r"part-1/small.safetensors is another file than .*crossfit.json says"):
        backbones.choose("small", copy)
    (copy / "part-1" / "small.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"part-1/small.safetensors is missing"):
        backbones.choose("small", copy)
    content = json.loads((copy / crossfit.FILE).read_text())
    clip = content["parts"][1]["clips"][0]
    (copy / crossfit.FILE).write_text((copy / crossfit.FILE).read_text().replace(f'"{clip}"', f'"{clip}?"'))
    with pytest.raises(
        WeightsError, match=r"crossfit.json is not as it was written"
    ):  # whose label part 1 has not seen
        backbones.choose("small", copy)
    del content["seal"]  # as of version 0.1
    content["parts"][1]["clips"] = content["parts"][0]["clips"]
    (copy / crossfit.FILE).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"crossfit.json is damaged \(a clip lies in two parts"):
        backbones.choose("small", copy)
    content["backbone"] = "../../elsewhere/small"
    content["parts"][1]["clips"] = []
    (copy / crossfit.FILE).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"copy/all/..-..-elsewhere-small.safetensors is missing"):
        backbones.choose("small", copy)


# ---- training


TRAIN = {"epochs": 1, "device": "cpu", "pool": "mean"}


def test_training_is_told_apart_from_leaks(cache, fitted, clips, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "kdcache"):
        run = kdcache.train("recognition", cache, out=tmp_path / "run", **TRAIN)
    assert "surer than on new clips" not in caplog.text
    data = run.training_data.data
    assert data.fitted == data.cross_fitted == set(parts_of(fitted))
    with pytest.raises(OptionError, match="fitted with labels of 3 test clips"):
        kdcache.train("recognition", cache, out=tmp_path / "fold", split_column="subject=s0", **TRAIN)

    out = tmp_path / "plain"
    kdcache.extract(clips / "clips.csv", clips, out, ["small/logits"], {"small": fitted.path / "all/small.safetensors"},
                    **EXTRACT)  # fmt: skip
    with caplog.at_level(logging.WARNING, "kdcache"):
        kdcache.train("recognition", out, out=tmp_path / "run-plain", **TRAIN)
    assert "was fitted on the labels of 12 of the 12 training clips" in caplog.text


def test_a_source_is_answered_for_by_the_network_of_all(cache, fitted, clips, tmp_path):
    run = kdcache.train("recognition", cache, out=tmp_path / "run", **TRAIN)
    whole = fitted.path / "all" / "small.safetensors"
    shown = run.predict("test").loc["clip23"].tolist()
    for its in (whole, fitted.path):
        (told,) = kdcache.predict(run, clips / "clip23", fps=10.0, weights=its)
        assert [float(p) for p in told.probabilities] == pytest.approx(shown, abs=1e-3)
    with pytest.raises(WeightsError, match="is not what small/logits was computed with"):
        next(kdcache.predict(run, clips / "clip23", fps=10.0, weights=fitted.parts[0].weights))


def test_the_lists_of_clips_stand_beside_the_shards(cache, fitted, tmp_path):
    shown = CliRunner().invoke(main, ["inspect", str(cache)])
    assert shown.exit_code == 0, shown.output
    assert "small/logits: 12 clips in 3 parts of 6, 3, 3" in shown.output
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    (lists,) = (copy / "fitted").glob("parts-*.json")
    lists.unlink()
    with pytest.raises(StoreError, match=r"parts-.*\.json is missing, which says what network computed a clip"):
        kdcache.train("recognition", copy, out=tmp_path / "run", **TRAIN)


# ---- skeletons, and networks from elsewhere


def test_skeletons_and_the_class_scores_of_a_fit(tmp_path):
    """Networks that differ in their last layer alone, whose scores are two and three times those of the one of all."""
    name, parts, root = "vacnn-small", {"a": 0, "b": 1}, tmp_path / "fit"
    rng = np.random.default_rng(0)
    for clip in "abc":
        lines = [" ".join(f"{v:.6g}" for v in joint) + " 1" for joint in rng.normal(0, 1, (12 * 20, 3))]
        (tmp_path / f"{clip}.txt").write_text("\n".join(lines) + "\n")
    net, shas = backbones.build(name, "random:0", num_classes=5), []
    for number, folder in enumerate(("all", "part-0", "part-1")):
        (root / folder).mkdir(parents=True)
        last = {key: (1 + number) * net.state_dict()[key] for key in net.classifier}
        facts = FitMetadata(backbone=name, num_classes=5, classes=(0, 1, 2, 3, 4), limits=(-3.0, 3.0))
        write(root / folder / f"{name}.safetensors", net.state_dict() | last, facts)
        shas.append(weights_digest(root / folder / f"{name}.safetensors"))
    crossfit.save(root, name, shas[0], shas[1:], parts, random_start=True)
    rows = manifest(source=["a.txt", "b.txt", "c.txt"]).assign(clip_id=list("abc"), start_s=np.nan, stop_s=np.nan)
    found = {}
    for out, weights in (("cross", root), ("alone", root / "all" / f"{name}.safetensors")):
        call = {"weights": {name: weights}, "levels": 2, "bar": False, "device": "cpu", "dtype": "float32"}
        kdcache.extract(rows, tmp_path, tmp_path / out, [f"{name}/logits"], **call)
        found[out] = kdcache.Cache(tmp_path / out)
    assert found["cross"].recipe(f"{name}/logits")["skeleton"]["limits"] == [-3.0, 3.0]
    cross, alone = (cache.read(f"{name}/logits", list("abc")) for cache in found.values())
    assert cross.shape == (3, 1, 2, 5)
    np.testing.assert_allclose(cross, alone * np.reshape([2, 3, 1], (3, 1, 1, 1)), rtol=1e-3)


def test_class_scores_behind_a_network_of_ones_own(clips, tmp_path):
    """The classifier that the fit puts on the pooled features, by hand; cross-fitted; a run on its scores."""
    name, shown = backbones.allow("own_networks:video"), {"frames": 4, "size": 16, "device": "cpu"}
    made = kdcache.fit(
        name, clips / "clips.csv", clips, tmp_path / "fit", cross_fit=2, init="random:0", epochs=1, **shown
    )
    scores, call = f"{name}/logits", (clips / "clips.csv", clips)
    more = {**shown, "levels": 2, "bar": False}
    kdcache.extract(*call, tmp_path / "out", [scores], {name: made.weights}, **more)
    found = kdcache.Cache(tmp_path / "out")
    assert found.recipe(scores)["backbone"]["axes"] == "D"
    clip, part = next(iter(parts_of(made).items()))
    weights = made.parts[part].weights
    kdcache.extract(*call, tmp_path / "alone", [scores, f"{name}/pool"], {name: weights}, **more)
    alone, array = kdcache.Cache(tmp_path / "alone"), found.read(scores, [clip])
    assert array.shape == (1, 1, 2, 3)
    assert np.array_equal(array, alone.read(scores, [clip]))
    pooled = torch.from_numpy(alone.read(f"{name}/pool", [clip]).astype(np.float32))
    with torch.no_grad():
        by_hand = backbones.build(name, weights).head(pooled).numpy()
    np.testing.assert_allclose(array, by_hand, atol=5e-3)
    run = kdcache.train(
        "early", tmp_path / "out", out=tmp_path / "run", epochs=1, hidden=4, teacher_hidden=2, device="cpu"
    )
    assert run.training_data.data.cross_fitted == set(parts_of(made))
    with pytest.raises(OptionError, match=r"are the scores of the classifier that `kdcache fit` puts on pool"):
        kdcache.extract(*call, tmp_path / "none", [scores], {name: "built"}, **more)

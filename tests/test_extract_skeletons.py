"""Skeleton streams: features of every degree of progress, turned views, what fails, and weights that were fitted."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import kdcache
from kdcache import backbones
from kdcache.backbones.metadata import FitMetadata, write
from kdcache.errors import OptionError
from kdcache.levels import LevelSpec
from kdcache.skeletons import Skeleton, open_skeleton
from kdcache.skeletons.image import NTU_LIMITS, Imaging, centred, level_images, skeleton_image, turn
from kdcache.skeletons.jhmdb import clips_of
from kdcache.store.failures import load_failures
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

STREAM, EARLY = "vacnn/pool", "vacnn/layer1"  # the second costs less, and does where only what goes in matters
CALL = {"weights": {"vacnn": "random:0"}, "streams": [STREAM], "levels": 3, "bar": False, "device": "cpu"}


def walk(rng, frames, joints=20, planar=False):
    """A smooth walk of joints, float32 [frames, joints, 3], away from zero."""
    steps = rng.normal(0, 0.05, (frames, joints, 3)).cumsum(axis=0)
    points = steps + rng.normal(0, 0.4, (1, joints, 3)) + [0.3, 0.2, 3]
    points[..., 2] *= not planar
    return points.astype(np.float32)


def write_msr(path, joints):
    lines = [" ".join(f"{v:.9g}" for v in joint) + " 1" for frame in joints for joint in frame]
    path.write_text("\n".join(lines) + "\n")


def write_jhmdb(path, train, test):
    arrays = {}
    for part, clips in (("train", train), ("test", test)):
        arrays[f"{part}_pose"] = np.concatenate(clips)[..., :2]
        arrays[f"{part}_length"] = np.array([len(c) for c in clips])
        arrays[f"{part}_label"] = np.array(["run"] * len(clips))
    np.savez(path, **arrays)


def rows(*clips):
    """A manifest of (clip_id, source, start_s, stop_s)."""
    return pd.DataFrame(clips, columns=["clip_id", "source", "start_s", "stop_s"])


NAN = float("nan")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skeletons")
    rng = np.random.default_rng(0)
    write_msr(folder / "a.txt", walk(rng, 31))
    write_jhmdb(folder / "j.npz", [walk(rng, 16, 15), walk(rng, 20, 15)], [walk(rng, 18, 15)])
    return folder


@pytest.fixture(scope="module", autouse=True)
def net():
    """Drawn once: drawing 25 million numbers takes longer than most of these tests."""
    drawn = backbones.build("vacnn", "random:0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "build", lambda name, weights: drawn)
        yield drawn


def features(net, images):
    with torch.inference_mode():
        return net.features(net.prepare(torch.from_numpy(images)), "pool").numpy()


def test_features_are_those_of_the_images_of_each_level(root, net, tmp_path):
    clips = clips_of(root / "j.npz")
    table = rows(
        ("part", "a.txt", 0.2, NAN),
        ("test-0", "j.npz", clips[2].start / 30, clips[2].stop / 30),
    )
    report = kdcache.extract(table, root=root, out=tmp_path, **CALL)
    assert (report.extracted, report.failures) == (2, [])
    cache = kdcache.Cache(tmp_path)
    found = cache.read(STREAM, table["clip_id"].tolist())
    assert (found.shape, found.dtype) == ((2, 1, 3, 2048), np.float16)
    for (clip_id, source, start, stop), features_found in zip(table.itertuples(index=False), found, strict=True):
        clip = open_skeleton(root / source).span(start, stop)
        expected = features(net, level_images(clip, 3)[None])
        assert np.allclose(features_found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
        last = clip.begin + np.arange(1, 4) * clip.total // 3 - 1
        assert cache.frames(STREAM, [clip_id])[0].tolist() == last.tolist()
    assert cache.origin(["part"])[0]["decoder"] == "joints of msraction3d"
    with pytest.raises(OptionError, match=r"only features of a skeleton \(vacnn/pool\), and caches keep no joints"):
        kdcache.show(cache, "part", tmp_path / "sheet.png")
    assert kdcache.extract(table, root=root, out=tmp_path, **CALL).cached == 2


@pytest.mark.parametrize("mode", ["prefix", "segment"])
def test_no_level_knows_what_follows(tmp_path, mode):
    rng = np.random.default_rng(1)
    joints = walk(rng, 31)
    changed = joints.copy()
    changed[20:] = 4 * walk(rng, 11)  # level 2 of 3 ends before frame 20
    for name, values in (("before", joints), ("after", changed)):
        write_msr(tmp_path / f"{name}.txt", values)
    table = rows(("before", "before.txt", NAN, NAN), ("after", "after.txt", NAN, NAN))
    kdcache.extract(table, root=tmp_path, out=tmp_path / "out", progress=mode, **CALL | {"streams": [EARLY]})
    before, after = kdcache.Cache(tmp_path / "out").read(EARLY, ["before", "after"])
    assert np.array_equal(before[:, :2], after[:, :2])
    assert not np.array_equal(before[:, 2], after[:, 2])


def test_turned_views_by_hand():
    """View v is the image of joints turned about the origin, R_z R_y R_x, whatever the level."""
    rng = np.random.default_rng(2)
    imaging = Imaging(LevelSpec(3, "prefix"), (-4.0, 4.0), "float_bilinear", rotations=2)
    joints = walk(rng, 30)
    clip = Skeleton(joints, 20, 3, np.arange(30, dtype=np.int32), 30, 15.0, "msraction3d")
    images = imaging.images(clip, 7)
    assert images.shape == (3, 3, 224, 224, 3)
    np.testing.assert_array_equal(images[0], level_images(clip, 3, "prefix", (-4.0, 4.0), "float_bilinear"))
    for view in (1, 2):
        a, b, c = turn(7, view).astype(float)
        assert np.abs([a, b, c]).max() <= 0.3
        x = np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]])
        y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
        z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
        turned = (centred(joints, 20, 3) @ (z @ y @ x).T).astype(np.float32)
        for level in range(3):
            expected = skeleton_image(turned[: (level + 1) * 10], 20, (-4.0, 4.0), "float_bilinear")
            np.testing.assert_allclose(images[view, level], expected, atol=0.01)
    assert not np.array_equal(turn(7, 1), turn(7, 2))
    assert not np.array_equal(turn(7, 1), turn(8, 1))


def test_joints_in_the_plane_turn_in_the_plane(root):
    clip = open_skeleton(root / "j.npz").span(0, 16 / 30)
    images = Imaging(LevelSpec(3, "prefix"), (-4.0, 4.0), "float_bilinear", rotations=3).images(clip, 5)
    assert np.ptp(images[..., 2]) < 1e-4
    assert all(np.abs(images[v] - images[0]).max() > 1 for v in (1, 2, 3))


def test_views_belong_to_the_clip_not_to_its_name(root, tmp_path):
    for name in ("one", "other"):
        table = rows((name, "a.txt", NAN, NAN))
        kdcache.extract(table, root=root, out=tmp_path / name, rotations=1, **CALL | {"streams": [EARLY]})
    one, other = (kdcache.Cache(tmp_path / name).read(EARLY, [name])[0] for name in ("one", "other"))
    assert one.shape == (2, 3, 256, 56, 56)
    assert np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


def test_bad_skeletons_are_listed_and_the_run_goes_on(tmp_path):
    rng = np.random.default_rng(3)
    good, holed = walk(rng, 12), walk(rng, 12)
    holed[5, 2] = np.nan
    write_msr(tmp_path / "good.txt", good)
    write_msr(tmp_path / "zero.txt", 0 * good)
    write_msr(tmp_path / "holed.txt", holed)
    (tmp_path / "clip.avi").write_bytes(b"RIFF")
    write_jhmdb(tmp_path / "j.npz", [good[:, :15], holed[:, :15]], [0 * good[:, :15], good[:, :15]])
    names = ["good.txt", "zero.txt", "holed.txt", "clip.avi", "none.txt"]
    table = [(n, n, NAN, NAN) for n in names] + [("late", "good.txt", 9.0, 10.0)]
    table += [(f"j{i}", "j.npz", 12 * i / 30, 12 * (i + 1) / 30) for i in range(4)]
    report = kdcache.extract(rows(*table), root=tmp_path, out=tmp_path / "out", **CALL | {"streams": [EARLY]})
    assert report.extracted == 3
    listed = {f.clip_id: f for f in load_failures(tmp_path / "out")}
    assert set(listed) == {"zero.txt", "holed.txt", "clip.avi", "none.txt", "late", "j1", "j2"}
    assert "all joints are zero" in listed["zero.txt"].reason
    assert "frame 5 holds a NaN" in listed["holed.txt"].reason
    assert "not a skeleton file" in listed["clip.avi"].reason
    assert "starts at 9 s" in listed["late"].reason
    assert (listed["j1"].stage, listed["j2"].stage) == ("sample", "sample")
    assert "frame 17 holds a NaN" in listed["j1"].reason
    assert "Frames 24 to 35: all joints are zero" in listed["j2"].reason


def test_the_recipe_holds_what_makes_the_images():
    stream, plain = (
        resolve([STREAM], settings, {"vacnn": "random:0"})[0]
        for settings in (
            StreamSettings(levels=5, progress="segment", rotations=2, skeleton="float_bilinear"),
            StreamSettings(),
        )
    )
    assert stream.shape == (3, 5, 2048)
    assert stream.recipe["skeleton"] == {
        "levels": 5,
        "mode": "segment",
        "limits": list(NTU_LIMITS),
        "resize": "float_bilinear",
        "rotations": 2,
    }
    assert plain.shape == (1, 10, 2048)
    assert plain.recipe["skeleton"]["mode"] == "prefix"
    assert not {"decoder", "sampling", "views"} & plain.recipe.keys()


@pytest.mark.parametrize(
    ("streams", "settings", "match"),
    [
        ([STREAM], {"fps": 12.5}, "fps is for videos and vacnn/pool reads skeletons"),
        ([STREAM], {"views": ("centre", "tl")}, "views is for videos"),
        ([STREAM, "flow"], {}, "vacnn/pool reads skeleton files and flow videos: extract them in two calls"),
        (["flow"], {"rotations": 2}, "rotations is 2, but flow reads videos"),
        (["flow"], {"progress": "prefix"}, "say of how many levels"),
        ([STREAM], {"levels": 0}, "levels is 0"),
        ([STREAM], {"progress": "prefx"}, "segment or prefix"),
        ([STREAM], {"rotations": -1}, "rotations is -1"),
        ([STREAM], {"skeleton": "bilinear"}, "did you mean 'float_bilinear'"),
    ],
)
def test_settings_that_cannot_be_honoured(streams, settings, match):
    with pytest.raises(OptionError, match=match):
        resolve(streams, StreamSettings(**settings), {"vacnn": "random:0"})


@pytest.fixture
def fitted(tmp_path):
    """A fitted weights file, of which planning reads the facts alone."""
    facts = FitMetadata(
        backbone="vacnn",
        num_classes=3,
        classes=(0, 1, 2),
        limits=(-1.5, 2.0),
        fitted_on=("a", "b"),
        validated_on=("c",),
    )
    write(tmp_path / "w.safetensors", {"x": torch.zeros(1)}, facts)
    return tmp_path / "w.safetensors"


def test_limits_come_with_the_weights(fitted):
    (stream,) = resolve([STREAM], StreamSettings(), {"vacnn": fitted})
    assert stream.recipe["skeleton"]["limits"] == [-1.5, 2.0]
    assert stream.imaging.limits == (-1.5, 2.0)


def test_weights_that_saw_held_out_clips_are_told_of(fitted, tmp_path):
    """All sources are missing, so no network is built; facts and warning come from the plan."""
    out = tmp_path / "out"
    table = rows(*((name, f"{name}.txt", NAN, NAN) for name in "abcd")).assign(split=["train", "test", "test", "test"])
    call = {**CALL, "weights": {"vacnn": fitted}}
    report = kdcache.extract(table, root=tmp_path, out=out, **call)
    assert len(report.warnings) == 1
    assert "vacnn was fitted on the labels of 1 clips that this manifest holds out, such as b:" in str(report)
    (kept,) = (out / "fitted").iterdir()
    assert (
        kept.stem == resolve([STREAM], StreamSettings(), {"vacnn": fitted})[0].recipe["backbone"]["weights"]["sha256"]
    )
    assert json.loads(kept.read_text())["fitted_on"] == ["a", "b"]
    clean = kdcache.extract(table.assign(split=["train", "train", "test", "test"]), root=tmp_path, out=out, **call)
    assert clean.warnings == []
    random = kdcache.extract(table, root=tmp_path, out=tmp_path / "random", **CALL)
    assert random.warnings == []
    assert not (tmp_path / "random/fitted").exists()


def test_planning_needs_no_torch(root, tmp_path):
    """An unchanged call reads manifests and plans; importing torch would take longer than that."""
    table = rows(("whole", "a.txt", NAN, NAN))
    call = CALL | {"streams": [EARLY]}
    kdcache.extract(table, root=root, out=tmp_path, **call)
    code = (
        "import sys, kdcache, pandas as pd\n"
        f"rows = pd.DataFrame([['whole', 'a.txt', None, None]], columns={list(table)!r})\n"
        f"report = kdcache.extract(rows, root={str(root)!r}, out={str(tmp_path)!r}, **{call!r})\n"
        "assert report.cached == 1, report\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

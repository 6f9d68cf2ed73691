"""Joints of any sensor: arrays whose centre joint and rate are stated, through extraction, fit and prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kdcache
from kdcache import datasets
from kdcache.backbones.weights import Choice
from kdcache.errors import OptionError, SourceError
from kdcache.runs.fit import load_config
from kdcache.runs.latency import check_readable
from kdcache.skeletons import JointLayout, open_skeleton
from kdcache.skeletons.image import image_of
from kdcache.streams.registry import resolve, restore
from kdcache.streams.settings import StreamSettings

NAN = float("nan")
LAYOUT = JointLayout(centre=1, fps=20)
STATED = {"centre_joint": 1, "skeleton_fps": 20}


def walk(seed, *shape):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32) + np.float32(2)


def save(folder, array, name="a.npy", **named):
    if name.endswith(".npy"):
        np.save(folder / name, array)
    else:
        np.savez(folder / name, **named)
    return folder / name


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 1, 5, 3), (6, 2, 5, 3), (6, 5, 2)])
def test_axes(tmp_path, shape):
    array = walk(0, *shape)
    skeleton = open_skeleton(save(tmp_path, array), LAYOUT)
    bodies = 2 if shape == (6, 2, 5, 3) else 1
    assert (skeleton.bodies, skeleton.per_body, skeleton.total, skeleton.fps) == (bodies, 5, 6, 20)
    assert skeleton.planar == (shape[-1] == 2)
    np.testing.assert_array_equal(skeleton.joints[..., : shape[-1]].reshape(shape), array)
    assert skeleton.span(0.1, 0.2).frames.tolist() == [0, 1]  # frames 2 and 3
    assert skeleton.span(0.1, 0.2).begin == 2


def test_joints_that_were_not_seen(tmp_path):
    """One joint: the body's centre; centre too: the mean of the others; a whole body: zeros, and left out of images."""
    array = walk(1, 4, 2, 3, 3)
    array[1, 0, 2] = NAN
    array[2, 0, 1:] = [[NAN, 1, 1], [4, 4, 4]]
    array[3, 1] = NAN
    joints = open_skeleton(save(tmp_path, array), LAYOUT).joints.reshape(4, 2, 3, 3)
    expected = array.copy()
    expected[1, 0, 2] = array[1, 0, 1]
    expected[2, 0, 1] = (array[2, 0, 0] + array[2, 0, 2]) / 2
    expected[3, 1] = 0
    np.testing.assert_allclose(joints, expected, rtol=1e-6)


def test_named_arrays(tmp_path):
    array = walk(2, 4, 5, 3).astype(np.float64)
    one = save(tmp_path, None, "one.npz", xyz=array)
    two = save(tmp_path, None, "two.npz", xyz=array, score=array[..., 0])
    assert open_skeleton(one, LAYOUT).total == open_skeleton(two, JointLayout(1, 20, "xyz")).total == 4
    with pytest.raises(SourceError, match="holds the arrays xyz, score; name one"):
        open_skeleton(two, LAYOUT)
    with pytest.raises(SourceError, match="Unknown array 'xy': did you mean 'xyz'"):
        open_skeleton(two, JointLayout(1, 20, "xy"))
    with pytest.raises(SourceError, match="leave array=xyz out"):
        open_skeleton(save(tmp_path, array), JointLayout(1, 20, "xyz"))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (walk(3, 4, 5), r"the array is \[4, 5\]; give \[T, J, 3\] or \[T, bodies, J, 3\]"),
        (walk(3, 4, 3, 5), r"the array is \[4, 3, 5\]"),
        (walk(3, 0, 5, 3), r"the array is \[0, 5, 3\]"),
        (walk(3, 3, 40, 25, 2), "which is 40 bodies .* check the order of its axes"),
        (walk(3, 4, 1, 3), "a body has joints 0 to 0, and centre_joint is 1"),
        (np.full((4, 5, 3), NAN), "all joints are zero in all 4 frames"),
        (np.array([[[0, 1, np.inf]] * 5] * 4), "frame 0 holds an infinite joint; write NaN"),
        (walk(3, 4, 5, 3).astype(complex), "holds complex128"),
    ],
)
def test_arrays_that_are_no_joints(tmp_path, array, found):
    with pytest.raises(SourceError, match=found):
        open_skeleton(save(tmp_path, array), LAYOUT)


def test_damaged_and_pickled_files(tmp_path):
    path = save(tmp_path, walk(4, 4, 5, 3))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged"):
        open_skeleton(path, LAYOUT)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(SourceError, match="pickle"):
        open_skeleton(path, LAYOUT)
    with pytest.raises(SourceError, match="cannot be read"):
        open_skeleton(tmp_path / "none.npy", LAYOUT)


def test_a_statement_is_needed_where_the_format_has_none_and_refused_where_it_has_one(tmp_path):
    path = save(tmp_path, walk(5, 4, 5, 3))
    with pytest.raises(SourceError, match="says neither its centre joint nor its frame rate; state them: extract --ce"):
        open_skeleton(path)
    (tmp_path / "a.txt").write_text("0 1 2 1\n" * 20)
    with pytest.raises(SourceError, match="a centre joint and a rate of their own"):
        open_skeleton(tmp_path / "a.txt", LAYOUT)
    for values, found in (
        ({"centre_joint": 1}, "give both"),
        ({"array": "x"}, "give both"),
        ({"centre_joint": -1, "skeleton_fps": 20}, "the number of a joint is from 0"),
        ({"centre_joint": 1, "skeleton_fps": NAN}, "a rate in frames a second is from"),
    ):
        with pytest.raises(OptionError, match=found):
            resolve(["vacnn/pool"], StreamSettings.of(values), {"vacnn": "random:0"})
    with pytest.raises(OptionError, match="centre_joint is 1, but rgb reads videos"):
        resolve(["rgb"], StreamSettings.of(STATED))
    check_readable(path)  # what an array lacks, a run's recipe says
    with pytest.raises(SourceError):
        check_readable(tmp_path / "none.npy")


def test_recipes():
    """The statement is part of it; without one it is as before."""
    weights = {"vacnn": "random:0"}
    (plain,) = resolve(["vacnn/pool"], StreamSettings(), weights)
    (stated,) = resolve(["vacnn/pool"], StreamSettings.of(STATED), weights)
    assert plain.digest == "2e28461a2f28fb3c018e59e2698dd424"
    assert stated.recipe == plain.recipe | {"joints": {"centre": 1, "fps": 20.0}}
    assert restore("vacnn/pool", stated.recipe, weights) == stated


@pytest.fixture(scope="module", autouse=True)
def net():
    """Drawn once: drawing 25 million numbers takes longer than most of these tests."""
    drawn, real = kdcache.backbones.build("vacnn", "random:0"), kdcache.backbones.build

    def build(name, weights):
        return drawn if weights == Choice(seed=0) else real(name, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdcache.backbones, "build", build)
        yield drawn


@pytest.fixture
def root(tmp_path):
    """Four clips in two classes, two people a frame, and a manifest of source, label, split."""
    folder = tmp_path / "joints"
    folder.mkdir()
    lines = ["source,label,split"]
    for i in range(4):
        save(folder, walk(i, 12, 2, 6, 3), f"{i}.npy")
        lines.append(f"{i}.npy,{'ab'[i % 2]},{'test' if i > 1 else 'train'}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_extraction_training_and_prediction(root, tmp_path):
    call = {"weights": {"vacnn": "random:0"}, "levels": 2, "bar": False, "device": "cpu"}
    with pytest.raises(OptionError, match=r"0\.npy: an array says neither .* extract --centre-joint 1 --skeleton-fps"):
        kdcache.extract(tmp_path / "clips.csv", root, tmp_path / "out", ["vacnn/pool"], **call)
    assert not list(tmp_path.glob("out/*.h5")) + list(tmp_path.glob("out/failures.csv"))
    report = kdcache.extract(tmp_path / "clips.csv", root, tmp_path / "out", ["vacnn/pool"], **call, **STATED)
    assert (report.extracted, report.failures) == (4, [])
    run = kdcache.train("early", tmp_path / "out", out=tmp_path / "run", epochs=1, device="cpu", validation=0)
    cached = run.predict("test", "last")
    answers = list(kdcache.predict(run.path, root / "3.npy"))
    assert [a.seconds for a in answers] == [0.3, 0.6]
    assert answers[0].names == ("a", "b")
    np.testing.assert_allclose(
        np.stack([a.probabilities for a in answers]), cached.loc["3"].to_numpy(np.float32), atol=2e-3
    )


def test_a_fit(root, tmp_path):
    fit = kdcache.fit(
        "vacnn", tmp_path / "clips.csv", root, tmp_path / "fit", epochs=1, validation=0.0, device="cpu", **STATED
    )
    assert not fit.failures
    assert load_config(fit.path / "config.toml")["centre_joint"] == 1
    (answer,) = kdcache.predict(fit.path, root / "3.npy")
    assert answer.seconds == pytest.approx(0.6)
    image = image_of(open_skeleton(root / "3.npy", LAYOUT), fit.facts.limits)
    net = kdcache.backbones.build("vacnn", fit.weights)
    with torch.inference_mode():
        scores = net.features(net.prepare(torch.from_numpy(image[None, None].copy())), "logits")
    np.testing.assert_allclose(torch.softmax(scores.flatten(), 0).numpy(), answer.probabilities, atol=1e-4)


def test_the_third_split_of_jhmdb_is_read_as_the_other_two(tmp_path):
    """Its archive in the format of the others: 3 clips train, 2 test."""
    arrays = {}
    for part, lengths in (("train", [15, 20, 16]), ("test", [18, 40])):
        arrays |= {
            f"{part}_pose": walk(9, sum(lengths), 15, 2).astype(np.float64),
            f"{part}_length": np.array(lengths),
            f"{part}_label": np.array(["run", "clap", "run"][: len(lengths)]),
        }
    np.savez(tmp_path / "jhmdb_joints_split3.npz", **arrays)
    rows = datasets.manifest_for("jhmdb-joints", tmp_path, split="3")
    assert rows["clip_id"].tolist()[::4] == ["split3_train_000", "split3_test_001"]
    assert rows["label"].tolist() == [1, 0, 1, 1, 0]
    assert rows["start_s"].tolist() == pytest.approx([0, 15 / 30, 35 / 30, 51 / 30, 69 / 30])
    clip = open_skeleton(tmp_path / "jhmdb_joints_split3.npz").span(*rows.loc[4, ["start_s", "stop_s"]])
    np.testing.assert_allclose(clip.joints[..., :2], arrays["test_pose"][18:], rtol=1e-6)

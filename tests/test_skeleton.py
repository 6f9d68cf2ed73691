"""Skeleton files: real MSR Action3D and JHMDB, NTU text written here, and damage of every kind."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import ClipError, SourceError
from kdcache.skeletons import open_skeleton
from kdcache.skeletons.jhmdb import clips_of
from kdcache.skeletons.msr import read_msraction3d
from kdcache.skeletons.ntu import Actors, Track, choose_actors, read_ntu


def person(rng, frames, motion=0.1, wide=False):
    """A body [frames, 25, 3] standing upright 3 m away (or lying, when ``wide``), moving by about ``motion``."""
    shape = rng.normal(0, 0.02, (25, 3))
    shape[:, 0 if wide else 1] += np.linspace(-0.8, 0.8, 25)
    drift = rng.normal(0, motion, (frames, 1, 3))
    return (shape + drift + [0, 0, 3]).astype(np.float32)


def write_ntu(path, frames):
    """``frames``: for each frame, a dict of body id → joints [25, 3]."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for identity, joints in bodies.items():
            lines += [f"{identity} 0 1 1 1 1 0 0.01 -0.2 2", "25"]
            lines += [" ".join(f"{v:.9g}" for v in joint) + " 253 210 960 540 0.1 0.2 0.3 0.4 2" for joint in joints]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_msraction3d_file_reads(shared):
    folder = shared / "data/skeletons/msraction3d"
    read, refused = 0, []
    for path in sorted(folder.glob("a*_s*_e*_skeleton3D.txt")):
        try:
            skeleton = open_skeleton(path)
        except SourceError as error:
            refused.append(str(error))
            continue
        read += 1
        assert skeleton.joints.shape == (skeleton.total, 20, 3)
        assert skeleton.joints.dtype == np.float32
    assert read == 566
    assert len(refused) == 1
    assert "a13_s09_e02" in refused[0]
    assert "all joints are zero" in refused[0]


def test_msraction3d_values_are_the_files(shared):
    path = shared / "data/skeletons/msraction3d/a01_s01_e01_skeleton3D.txt"
    expected = np.loadtxt(path, dtype=np.float32).reshape(-1, 20, 4)[..., :3]
    skeleton = open_skeleton(path)
    np.testing.assert_array_equal(skeleton.joints, expected)
    assert (skeleton.bodies, skeleton.per_body, skeleton.kind) == (1, 20, "msraction3d")
    hips, spine, shoulders = skeleton.joints[:, 6], skeleton.joints[:, skeleton.centre], skeleton.joints[:, 2]
    assert np.all((hips[:, 1] < spine[:, 1]) & (spine[:, 1] < shoulders[:, 1]))


def test_lost_frames_stay_and_are_told(shared):
    skeleton = open_skeleton(shared / "data/skeletons/msraction3d/a07_s04_e01_skeleton3D.txt")
    assert skeleton.total == 45
    assert np.flatnonzero(skeleton.seen)[0] == 36
    assert len(skeleton.observed(40).joints) == 40


@pytest.mark.parametrize("split", [1, 2])
def test_jhmdb_reads(shared, split):
    path = shared / f"data/skeletons/jhmdb/jhmdb_joints_split{split}.npz"
    source, clips = open_skeleton(path), clips_of(path)
    assert [sum(c.part == part for c in clips) for part in ("train", "test")] == [433, 176]
    assert len({c.label for c in clips}) == 14
    assert clips[-1].stop == source.total == len(source.joints)
    with np.load(path) as archive:
        file = dict(archive)
    at = {"train": 0, "test": 0}
    for clip in clips:
        skeleton = source.span(clip.start / 30, clip.stop / 30)
        length = int(file[f"{clip.part}_length"][clip.number])
        pose = file[f"{clip.part}_pose"]
        assert 15 <= skeleton.total == length <= 40
        np.testing.assert_array_equal(skeleton.joints[..., :2], pose[at[clip.part] : at[clip.part] + length])
        assert not skeleton.joints[..., 2].any()
        assert clip.label == str(file[f"{clip.part}_label"][clip.number])
        at[clip.part] += length


def save_jhmdb(path, train, test=(), lengths=None):
    """A file of these clips [T, 15, 2]."""
    arrays = {}
    for part, clips in (("train", train), ("test", test)):
        arrays[f"{part}_pose"] = np.concatenate([np.zeros((0, 15, 2)), *clips])
        arrays[f"{part}_length"] = np.array(lengths or [len(c) for c in clips], int)
        arrays[f"{part}_label"] = np.array(["walk"] * len(clips), "U4")
        lengths = None
    np.savez(path, **arrays)
    return path


def test_damage_in_one_jhmdb_clip_is_that_clips(tmp_path):
    holed = np.ones((6, 15, 2))
    holed[4, 2, 0] = np.nan
    path = save_jhmdb(tmp_path / "a.npz", [np.ones((3, 15, 2)), np.zeros((5, 15, 2))], [holed, 2 * np.ones((4, 15, 2))])
    source = open_skeleton(path)
    spans = [(c.start / 30, c.stop / 30) for c in clips_of(path)]
    assert source.span(*spans[0]).total == 3
    with pytest.raises(ClipError, match="Frames 3 to 7: all joints are zero in all 5 frames"):
        source.span(*spans[1])
    with pytest.raises(ClipError, match="Frames 8 to 13: frame 12 holds a NaN"):
        source.span(*spans[2])
    last = source.span(*spans[3])
    assert (last.begin, last.total, last.frames.tolist()) == (14, 4, [0, 1, 2, 3])
    assert (last.joints[..., :2] == 2).all()


def test_damaged_jhmdb(shared, tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        open_skeleton(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(SourceError, match=r"bad\.npz: damaged, or neither an array of joints nor JHMDB"):
        open_skeleton(tmp_path / "bad.npz")
    np.savez(tmp_path / "half.npz", train_pose=np.ones((8, 15, 2)), train_length=[4, 4], train_label=["a", "b"])
    with pytest.raises(SourceError, match="test_pose"):
        open_skeleton(tmp_path / "half.npz")
    clips = [np.ones((4, 15, 2)), np.ones((5, 15, 2))]
    for lengths in ([4, 4], [9, 0], [9]):
        with pytest.raises(SourceError, match="do not fit together"):
            open_skeleton(save_jhmdb(tmp_path / "short.npz", clips, lengths=lengths))
    labels = np.array(["a", None], dtype=object)
    np.savez(tmp_path / "pickled.npz", train_pose=np.ones((8, 15, 2)), train_length=[4, 4], train_label=labels)
    with pytest.raises(SourceError, match="pickle"):
        open_skeleton(tmp_path / "pickled.npz")


def test_span_of_msraction3d(shared):
    whole = open_skeleton(shared / "data/skeletons/msraction3d/a01_s01_e01_skeleton3D.txt")
    clip = whole.span(1.0, 2.0)  # 15 frames a second
    np.testing.assert_array_equal(clip.joints, whole.joints[15:30])
    assert (clip.begin, clip.total, clip.frames.tolist()) == (15, 15, list(range(15)))
    np.testing.assert_array_equal(clip.observed(4).joints, whole.joints[15:19])
    again = clip.span(0.2, float("nan"))
    assert (again.begin, again.total) == (18, 12)
    np.testing.assert_array_equal(whole.span(float("nan"), float("nan")).joints, whole.joints)
    with pytest.raises(ClipError, match=r"starts at 60 s but the source ends at 3\.6"):
        whole.span(60.0, 61.0)
    with pytest.raises(ClipError, match=r"stops at 61 s"):
        whole.span(0.0, 61.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1 2 3 4\n" * 25, "25 lines are no whole number of frames of 20 joints"),
        ("1 2 3 4\n" * 19 + "1 2 3\n", "line 20 does not hold four numbers"),
        ("1 2 3 4\n" * 7 + "1 2 x 4\n" + "1 2 3 4\n" * 12, "line 8 does not hold four numbers"),
        ("1 2 3 4\n" * 20 + "1 nan 3 4\n" * 20, "frame 1 holds a NaN"),
        ("0 0 0 1\n" * 40, "all joints are zero in all 2 frames"),
    ],
)
def test_damaged_msraction3d(tmp_path, text, message):
    path = tmp_path / "a01_s01_e01.txt"
    path.write_text(text)
    with pytest.raises(SourceError, match=message) as error:
        read_msraction3d(path)
    assert str(path) in str(error.value)


def test_what_is_no_skeleton_file(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        open_skeleton(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    with pytest.raises(SourceError, match="not a text file"):
        open_skeleton(tmp_path / "binary.txt")
    with pytest.raises(SourceError, match="not a skeleton file; give"):
        open_skeleton(tmp_path / "clip.avi")


def test_ntu_one_body(tmp_path):
    body = person(np.random.default_rng(0), 6)
    frames = [{"72057594037931101": joints} for joints in body]
    frames.insert(2, {})  # a frame in which nobody was found
    skeleton = open_skeleton(write_ntu(tmp_path / "S001C001P001R001A001.skeleton", frames))
    np.testing.assert_allclose(skeleton.joints, body, rtol=1e-6)
    assert skeleton.frames.tolist() == [0, 1, 3, 4, 5, 6]
    assert (skeleton.total, skeleton.bodies, skeleton.centre) == (7, 1, 1)
    assert pickle.loads(pickle.dumps(skeleton)).observed(4).frames.tolist() == [0, 1, 3]


def test_ntu_two_people_the_livelier_first(tmp_path):
    rng = np.random.default_rng(1)
    calm, lively = person(rng, 20, 0.05), person(rng, 20, 0.4)
    frames = [{"1": calm[t], "2": lively[t]} for t in range(20)]
    skeleton = read_ntu(write_ntu(tmp_path / "a.skeleton", frames))
    assert skeleton.joints.shape == (20, 50, 3)
    np.testing.assert_allclose(skeleton.joints[:, :25], lively, rtol=1e-5)
    np.testing.assert_allclose(skeleton.joints[:, 25:], calm, rtol=1e-5)


def test_ntu_noise_is_dropped(tmp_path):
    rng = np.random.default_rng(2)
    actor, chair, glimpse = person(rng, 30), person(rng, 30, wide=True), person(rng, 11, 2.0)
    frames = [{"1": actor[t], "2": chair[t], **({"3": glimpse[t - 10]} if 10 <= t < 21 else {})} for t in range(30)]
    skeleton = read_ntu(write_ntu(tmp_path / "a.skeleton", frames))
    assert skeleton.bodies == 1
    np.testing.assert_allclose(skeleton.joints, actor, rtol=1e-5)


def test_ntu_actor_who_is_renamed_stays_one_actor():
    rng = np.random.default_rng(3)
    whole = person(rng, 40, 0.3)
    other = person(rng, 40, 0.1)
    tracks = [
        Track(np.arange(20, dtype=np.int32), whole[:20]),
        Track(np.arange(20, 40, dtype=np.int32), whole[20:]),
        Track(np.arange(40, dtype=np.int32), other),
    ]
    joints, frames = choose_actors(tracks, np.arange(40, dtype=np.int32))
    np.testing.assert_array_equal(joints[:, :25], whole)
    np.testing.assert_array_equal(joints[:, 25:], other)
    assert frames.tolist() == list(range(40))


def test_ntu_gap_is_closed_as_published():
    body = person(np.random.default_rng(4), 20)
    still = person(np.random.default_rng(5), 30, 0.0)
    gap = np.r_[0:10, 20:30].astype(np.int32)
    joints, _ = choose_actors([Track(gap, body), Track(np.arange(30, dtype=np.int32), still)], np.arange(30))
    np.testing.assert_array_equal(joints[:20, :25], body)
    assert not joints[20:, :25].any()


def test_ntu_short_bodies_only_keep_the_longest():
    rng = np.random.default_rng(6)
    tracks = [Track(np.arange(n, dtype=np.int32), person(rng, n)) for n in (4, 9)]
    joints, frames = choose_actors(tracks, np.arange(9, dtype=np.int32))
    np.testing.assert_array_equal(joints, tracks[1].joints)
    assert len(frames) == 9


def test_ntu_choice_sees_no_later_frame():
    rng = np.random.default_rng(7)
    first, second = person(rng, 40, 0.2), person(rng, 40, 0.1)
    changed = second.copy()
    changed[25:] = person(rng, 15, 3.0)  # later on, the second moves far more
    every = np.arange(40, dtype=np.int32)
    before = Actors((Track(every, first), Track(every, second)), every)
    after = Actors((Track(every, first), Track(every, changed)), every)
    np.testing.assert_array_equal(before(25)[0], after(25)[0])
    assert not np.array_equal(before(40)[0][:25], after(40)[0][:25])  # over the whole clip the two swap places


def test_ntu_span_is_the_file_of_those_frames(tmp_path):
    """A span's actors, chosen anew, are those of a file that holds nothing else."""
    rng = np.random.default_rng(11)
    first, second, late = person(rng, 60, 0.2), person(rng, 60, 0.1), person(rng, 20, 3.0)
    frames = [{"1": first[t], "2": second[t], **({"3": late[t - 40]} if t >= 40 else {})} for t in range(60)]
    frames[18] = {}
    whole = open_skeleton(write_ntu(tmp_path / "whole.skeleton", frames))
    for low, high in ((0, 30), (10, 45), (35, 60)):
        alone = open_skeleton(write_ntu(tmp_path / "alone.skeleton", frames[low:high]))
        clip = whole.span(low / 30, high / 30)
        for stop in (3, 14, high - low):
            np.testing.assert_array_equal(clip.observed(stop).joints, alone.observed(stop).joints)
            assert clip.observed(stop).frames.tolist() == alone.observed(stop).frames.tolist()
        assert (clip.begin, clip.total) == (low, high - low)
    with pytest.raises(ClipError, match="Frames 18 to 18: all joints are zero"):
        whole.span(18 / 30, 19 / 30)


def test_ntu_body_with_nan_counts_as_unseen(tmp_path):
    body = person(np.random.default_rng(8), 5)
    body[3, 7] = np.nan
    skeleton = read_ntu(write_ntu(tmp_path / "a.skeleton", [{"1": joints} for joints in body]))
    assert skeleton.frames.tolist() == [0, 1, 2, 4]
    assert np.isfinite(skeleton.joints).all()


def damage(lines, kind):
    if kind == "empty":
        return []
    if kind == "cut":
        return lines[:40]
    if kind == "joints":
        return [*lines[:3], "20", *lines[4:]]
    if kind == "word":
        return [*lines[:10], lines[10].replace("960", "x"), *lines[11:]]
    if kind == "fraction":
        return ["2.5", *lines[1:]]
    return ["3", "0", "0", "0"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "the file is empty"),
        ("cut", "ends at line 40 in the middle of a frame"),
        ("joints", "line 4: a body has 20 joints, not 25"),
        ("word", "lines 5 to 29: expected 12"),
        ("fraction", "line 1: 2.5 is no number of frames"),
        ("nobody", "no body in any of its 3 frames"),
    ],
)
def test_damaged_ntu(tmp_path, kind, message):
    body = person(np.random.default_rng(9), 3)
    path = write_ntu(tmp_path / "a.skeleton", [{"1": joints} for joints in body])
    path.write_text("\n".join(damage(path.read_text().splitlines(), kind)))
    with pytest.raises(SourceError, match=message) as error:
        read_ntu(path)
    assert str(Path(path)) in str(error.value)


def test_ntu_zeros_and_twins(tmp_path):
    path = write_ntu(tmp_path / "zero.skeleton", [{"1": np.zeros((25, 3))}] * 4)
    with pytest.raises(SourceError, match="all joints are zero in all 4 frames"):
        read_ntu(path)
    body = person(np.random.default_rng(10), 1)[0]
    path = write_ntu(tmp_path / "twins.skeleton", [{"1": body, "2": body}])
    path.write_text(path.read_text().replace("\n2 0 1", "\n1 0 1"))
    with pytest.raises(SourceError, match="frame 0 lists body 1 twice"):
        read_ntu(path)

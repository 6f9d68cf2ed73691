"""Class folders: labels, splits by subject or group, and anticipation pairs from whole clips."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from kdcache.datasets import manifest_for
from kdcache.errors import ManifestError, OptionError

SUBJECT = r"(?P<subject>[a-z]+)_"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_classes_are_numbered_in_sorted_order_and_nothing_is_lost(tmp_path):
    touch(
        tmp_path, "walk/b.avi", "walk/a.MP4", "run/c.mkv", "run/.hidden.avi", ".trash/x.avi", "run/notes.txt", "x.avi"
    )
    rows = manifest_for("folder", tmp_path)
    assert rows["clip_id"].tolist() == ["run/c", "walk/a", "walk/b"]
    assert rows["source"].tolist() == ["run/c.mkv", "walk/a.MP4", "walk/b.avi"]
    assert rows["class"].tolist() == ["run", "walk", "walk"]
    assert rows["label"].tolist() == [0, 1, 1]
    assert rows[["start_s", "stop_s"]].isna().all(axis=None)
    assert rows.attrs["report"].extra == ("x.avi", "run/notes.txt")


def test_a_share_of_each_class_is_held_out_where_nothing_says_what_belongs_together(tmp_path, caplog):
    touch(tmp_path, *(f"walk/{i}.avi" for i in range(10)), *(f"run/{i}.avi" for i in range(3)), "jump/0.avi")
    rows = manifest_for("folder", tmp_path, held_out_share=0.3)
    assert "may lie on both sides" in caplog.text
    test = rows[rows["split"] == "test"].groupby("class").size().to_dict()
    assert test == {"walk": 3, "run": 1}  # a class of one clip trains
    assert set(rows["split"]) == {"train", "test"}
    again = manifest_for("folder", tmp_path, held_out_share=0.3)
    assert again.equals(rows)
    with pytest.raises(OptionError, match="held_out names subjects or groups: say who is in a clip"):
        manifest_for("folder", tmp_path, held_out="ann")


def test_split_folders(tmp_path):
    touch(tmp_path, "train/walk/1.avi", "train/run/2.avi", "Validation/walk/3.avi", "test/run/4.avi", "test/jump/5.avi")
    rows = manifest_for("folder", tmp_path).set_index("clip_id")
    assert rows["split"].to_dict() == {
        "Validation/walk/3": "val",
        "test/jump/5": "test",
        "test/run/4": "test",
        "train/run/2": "train",
        "train/walk/1": "train",
    }
    assert rows["label"].to_dict()["test/jump/5"] == 0
    assert rows["label"].to_dict()["train/walk/1"] == 2


def test_names_that_differ_in_their_suffix_alone_stay_apart(tmp_path):
    touch(tmp_path, "a/1.avi", "a/1.mp4", "a/2.avi")
    assert manifest_for("folder", tmp_path)["clip_id"].tolist() == ["a/1.avi", "a/1.mp4", "a/2"]


def test_folders_of_pictures_count_only_with_a_frame_rate(tmp_path):
    touch(tmp_path, "walk/clip/0001.jpg", "walk/clip/0002.jpg", "walk/empty/readme.txt", "run/clip.tar", "run/v.avi")
    assert manifest_for("folder", tmp_path)["source"].tolist() == ["run/v.avi"]
    rows = manifest_for("folder", tmp_path, fps=25)
    assert dict(zip(rows["source"], rows["fps"], strict=True)) == {
        "run/clip.tar": "25",
        "run/v.avi": "",
        "walk/clip": "25",
    }
    assert rows.attrs["report"].extra == ("walk/empty",)


@pytest.mark.parametrize(
    "given", [{"fps": "nan"}, {"fps": 0}, {"fps": "1e400"}, {"observe": "nan"}, {"held_out_share": "inf"}]
)
def test_numbers_that_are_none_are_named(tmp_path, given):
    touch(tmp_path, "a/1.avi")
    (name,) = given
    with pytest.raises(OptionError, match=f"{name} is .*: give"):
        manifest_for("folder", tmp_path, **given)


def test_weizmann_with_two_people_held_out(shared):
    root = shared / "data" / "weizmann"
    rows = manifest_for("folder", root, subject=SUBJECT, held_out=["ido", "ira"])
    assert len(rows) == 60
    assert rows["class"].nunique() == 10
    assert rows["split"].value_counts().to_dict() == {"train": 40, "test": 20}
    assert set(rows.loc[rows["split"] == "test", "subject"]) == {"ido", "ira"}
    pd.testing.assert_frame_equal(manifest_for("folder", root, subject=SUBJECT, held_out="ido,ira"), rows)


def test_weizmann_observed_parts(shared):
    root = shared / "data" / "weizmann"
    rows = manifest_for("folder", root, subject=SUBJECT, held_out="ido,ira", observe=0.4)
    assert rows["role"].value_counts().to_dict() == {"observed": 60, "action": 60}
    clip = rows[rows["pair"] == "bend/daria_bend"].set_index("role")  # 84 frames at 25 a second
    assert clip.loc["observed", "stop_s"] == clip.loc["action", "start_s"] == pytest.approx(math.ceil(0.4 * 84) / 25)
    assert clip["split"].tolist() == ["train", "train"]
    assert math.isnan(clip.loc["action", "stop_s"])


def test_fight_clips_split_by_source_video(shared):
    root = shared / "data" / "fight"
    rows = manifest_for("folder", root, groups="groups.csv", held_out_share=0.3)
    listed = pd.read_csv(root / "groups.csv", dtype=str).set_index("source")
    assert len(rows) == 64
    assert (rows["group"] == rows["source"].map(listed["group"])).all()
    assert (rows["class"] == rows["source"].map(listed["label"])).all()
    assert rows.groupby("group")["split"].nunique().max() == 1
    assert 0.3 <= (rows["split"] == "test").mean() < 0.6
    again = manifest_for("folder", root, groups=root / "groups.csv", held_out_share=0.3)
    assert again["split"].equals(rows["split"])
    named = manifest_for("folder", root, groups="groups.csv", held_out=["0", "4"])
    assert set(named.loc[named["split"] == "test", "group"]) == {"0", "4"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": "([a-z]+)_"}, r"needs a group \(\?P<subject>"),
        ({"subject": "(?P<subject>"}, "not a regular expression"),
        ({"subject": r"(?P<subject>\d+)"}, "matches 2 files not at all, such as 'run/ann_run'"),
        ({"held_out": "ann"}, "held_out names subjects or groups"),
        ({"subject": SUBJECT, "held_out": "anm"}, "Unknown subject 'anm': did you mean 'ann'"),
        ({"subject": SUBJECT, "held_out": "ann", "held_out_share": 0.5}, "give one of the two"),
        ({"subject": SUBJECT, "held_out_share": 1.5}, "between 0 and 1"),
        ({"subject": SUBJECT, "held_out_share": 0.5}, "leaves a class without training clips"),
        ({"groups": "absent.csv"}, "no such file"),
        ({"observe": 1.0}, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be_honoured(tmp_path, options, message):
    touch(tmp_path, "run/ann_run.avi", "walk/bob_walk.avi")
    with pytest.raises(OptionError, match=message):
        manifest_for("folder", tmp_path, **options)


def test_group_lists_must_cover_every_clip(tmp_path):
    touch(tmp_path, "run/1.avi", "run/2.avi")
    (tmp_path / "groups.csv").write_text("source,group\nrun/1.avi,a\n")
    with pytest.raises(ManifestError, match=r"run/2.avi has no group"):
        manifest_for("folder", tmp_path, groups="groups.csv")
    (tmp_path / "groups.csv").write_text("file,group\nrun/1.avi,a\n")
    with pytest.raises(ManifestError, match="needs the columns source and group"):
        manifest_for("folder", tmp_path, groups="groups.csv")

"""Datasets by their official lists: split counts, labels, quirks, and small trees in the documented layouts."""

from __future__ import annotations

import hashlib
import math
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from copies import copy_tree
from make_videos import number, pictures

import kdcache
from kdcache.datasets import manifest_for, status
from kdcache.datasets.gtea import class_name
from kdcache.datasets.thumos14 import read_instances
from kdcache.errors import ManifestError, OptionError
from kdcache.manifest import read_manifest, write_manifest


@pytest.fixture(scope="module")
def lists(shared):
    return shared / "data" / "annotations"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def fill(folder, frames):
    """JPEG files 00001.jpg … of RGB pictures."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(frames, 1):
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), picture[:, :, ::-1])


def counts(rows):
    return rows["split"].value_counts().to_dict()


@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101_official_splits(lists, split, train, test):
    rows = manifest_for("ucf101", lists / "ucf101", split=split)
    assert counts(rows) == {"train": train, "test": test}
    assert rows["label"].nunique() == 101
    assert (rows["label"].min(), rows["label"].max()) == (0, 100)


def test_ucf101_early_recognition_split(lists):
    """8,056 / 1,582 / 3,682 by groups 1–15, 16–18, 19–25 (early-recognition paper)."""
    rows = manifest_for("ucf101", lists / "ucf101", protocol="early")
    assert counts(rows) == {"train": 8056, "val": 1582, "test": 3682}
    assert set(rows.loc[rows["split"] == "val", "group"]) == {"g16", "g17", "g18"}
    assert rows.groupby("group")["split"].nunique().max() == 1


def test_ucf101_finds_the_class_that_is_spelt_in_two_ways(lists, tmp_path):
    copy_tree(lists / "ucf101", tmp_path / "ucfTrainTestlist")
    touch(tmp_path, "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi", "UCF-101/HandstandPushups/v_x.avi")
    rows = manifest_for("ucf101", tmp_path).set_index("clip_id")
    row = rows.loc["v_HandStandPushups_g01_c01"]
    assert (row["class"], row["label"], row["split"]) == ("HandstandPushups", 36, "test")
    report = rows.attrs["report"]
    assert (report.found, len(report.missing), report.extra) == (1, 13319, ("UCF-101/HandstandPushups/v_x.avi",))
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").unlink()
    with pytest.raises(ManifestError, match=r"testlist01.txt: .*official lists"):
        manifest_for("ucf101", tmp_path)


def test_hmdb51(lists, tmp_path):
    copy_tree(lists / "hmdb51", tmp_path / "testTrainMulti_7030_splits")
    touch(tmp_path, "hmdb51_org/wave/21_wave_u_nm_np1_fr_goo_5.avi")
    rows = manifest_for("hmdb51", tmp_path)
    assert counts(rows) == {"train": 51 * 70, "test": 51 * 30}
    assert rows["label"].nunique() == 51
    row = rows.set_index("clip_id").loc["wave/21_wave_u_nm_np1_fr_goo_5"]
    assert (row["source"], row["label"], row["split"]) == ("hmdb51_org/wave/21_wave_u_nm_np1_fr_goo_5.avi", 50, "train")
    assert any("split 1 does not use 1666 clips" in line for line in rows.attrs["report"].lines())


def test_hmdb51_lists_of_another_form_are_named_by_line(tmp_path):
    write(tmp_path, {"brush_hair_test_split1.txt": "a.avi 1\nb.avi 7\n"})
    with pytest.raises(ManifestError, match=r"line 2: 'b.avi 7'"):
        manifest_for("hmdb51", tmp_path)


def jhmdb(root, frames):
    """A tree of pictures of JHMDB: two classes, as many frames as asked for."""
    names = {"brush_hair": "train_clip 1\n", "catch": "test_clip 2\n"}
    for (label, line), n in zip(names.items(), frames, strict=True):
        clip = line.split()[0]
        write(root, {f"splits/{label}_test_split1.txt": f"{clip}.avi {line.split()[1]} \n"})
        (root / "Rename_Images" / label / clip).mkdir(parents=True)
        touch(root, f"Rename_Images/{label}/.AppleDouble/x", f"Rename_Images/{label}/{clip}/.DS_Store")
        for i in range(n):
            cv2.imwrite(str(root / "Rename_Images" / label / clip / f"{i + 1:05d}.png"), np.zeros((8, 8, 3), np.uint8))


def test_jhmdb_first_fifth_is_observed_and_the_whole_recognised(tmp_path):
    jhmdb(tmp_path, (16, 40))
    rows = manifest_for("jhmdb", tmp_path).set_index("clip_id")
    observed = rows.loc["brush_hair/train_clip-observed"]
    assert observed["source"] == "Rename_Images/brush_hair/train_clip"
    assert (observed["fps"], observed["split"], observed["label"]) == ("30", "train", 0)
    assert observed["stop_s"] == pytest.approx(math.ceil(0.2 * 16) / 30)
    assert rows.loc["catch/test_clip-observed", "stop_s"] == pytest.approx(8 / 30)
    assert rows.loc[rows["role"] == "action", ["start_s", "stop_s"]].isna().all(axis=None)
    rest = manifest_for("jhmdb", tmp_path, action="rest").set_index("clip_id")
    assert rest.loc["catch/test_clip-action", "start_s"] == rest.loc["catch/test_clip-observed", "stop_s"]
    whole = manifest_for("jhmdb", tmp_path, observe=0)
    assert whole["clip_id"].tolist() == ["brush_hair/train_clip", "catch/test_clip"]


def test_jhmdb_clips_that_make_no_pair_are_named(tmp_path):
    jhmdb(tmp_path, (1, 20))
    rows = manifest_for("jhmdb", tmp_path)
    assert set(rows["pair"]) == {"catch/test_clip"}
    assert rows.attrs["report"].dropped == {
        "a single frame cannot be both observed and anticipated": ("brush_hair/train_clip",)
    }
    shutil.rmtree(tmp_path / "Rename_Images" / "brush_hair")
    report = manifest_for("jhmdb", tmp_path).attrs["report"]
    assert report.missing == ("Rename_Images/brush_hair/train_clip",)
    assert list(report.dropped.values()) == [("brush_hair/train_clip",)]


def test_thumos14_instances(lists):
    """3,007 in the validation videos, 3,358 in the test videos, 20 classes, 412 videos."""
    table = read_instances(lists / "thumos14")
    assert counts(table) == {"train": 3007, "test": 3358}
    assert (table["label"].nunique(), table["video"].nunique()) == (20, 412)


def test_thumos14_pairs(lists):
    rows = manifest_for("thumos14", lists / "thumos14")
    dropped = rows.attrs["report"].dropped
    assert len(dropped["the labels of their video are wrong"]) == 29
    assert len(dropped["they are listed as CliffDiving too"]) == 360
    beyond = dropped["the action starts after the end of its video"]
    assert sum(name.startswith("video_validation_0000364") for name in beyond) == 2
    assert len(rows) / 2 + sum(map(len, dropped.values())) == 6365
    observed, action = (rows[rows["role"] == r].set_index("pair") for r in ("observed", "action"))
    assert np.allclose(observed["stop_s"] - observed["start_s"], 1.0)
    assert np.allclose(action["start_s"] - observed["stop_s"], 1.0)
    assert set(rows["split"]) == {"train", "test"}
    assert "video_test_0000270" not in set(rows["group"])
    table = read_instances(lists / "thumos14")
    same = observed.merge(table, left_on=["group", "class"], right_on=["video", "class"], suffixes=("", "_of"))
    assert not ((same["start_s_of"] < same["stop_s"]) & (same["stop_s_of"] > same["start_s"])).any()
    kept = manifest_for("thumos14", lists / "thumos14", overlap="keep", early="clamp")
    assert len(kept) > len(rows)


@pytest.mark.parametrize(("protocol", "train", "test"), [("subject", 40091, 16487), ("view", 37646, 18932)])
def test_ntu_splits(lists, protocol, train, test):
    rows = manifest_for("ntu", lists / "ntu", protocol=protocol)
    assert counts(rows) == {"train": train, "test": test}
    assert rows["label"].nunique() == 60
    assert rows["subject"].nunique() == 40


def test_ntu_from_the_files_on_disk(tmp_path):
    names = ["S001C001P001R001A001", "S001C002P003R001A060", "S018C001P041R001A061", "S001C002P005R002A008"]
    touch(tmp_path, *(f"nturgb+d_skeletons/{n}.skeleton" for n in names), f"nturgb+d_rgb/{names[1]}_rgb.avi")
    write(tmp_path, {"NTU_RGBD_samples_with_missing_skeletons.txt": names[3] + "\n"})
    rows = manifest_for("ntu", tmp_path).set_index("clip_id")
    assert rows["split"].to_dict() == {names[0]: "train", names[1]: "test"}
    assert rows["label"].tolist() == [0, 59]
    assert rows.loc[names[0], "source"] == f"nturgb+d_skeletons/{names[0]}.skeleton"
    assert rows.attrs["report"].dropped == {
        "their skeletons are missing or damaged": (names[3],),
        "they belong to NTU RGB+D 120": (names[2],),
    }
    view = manifest_for("ntu", tmp_path, protocol="view").set_index("clip_id")
    assert view["split"].to_dict() == {names[0]: "test", names[1]: "train"}
    for table in (rows, view):
        assert table["split_subject"].equals(rows["split"].rename("split_subject"))
        assert table["split_view"].equals(view["split"].rename("split_view"))
    assert manifest_for("ntu", tmp_path, modality="rgb")["source"].tolist() == [f"nturgb+d_rgb/{names[1]}_rgb.avi"]


def test_msraction3d_used_files_and_split(shared):
    rows = manifest_for("msraction3d", shared / "data")
    assert len(rows) == 557
    assert rows["label"].nunique() == 20
    assert set(rows.loc[rows["split"] == "train", "subject"]) == {"s01", "s03", "s05", "s07", "s09"}
    assert rows["subject"].nunique() == 10
    report = rows.attrs["report"]
    assert (report.found, report.missing, report.extra) == (557, (), ())
    assert "a13_s09_e02" in report.dropped["they are not among the files used"]
    assert len(manifest_for("msraction3d", shared / "data" / "skeletons", files="all")) == 567


def test_msraction3d_validation_subjects(shared):
    rows = manifest_for("msraction3d", shared / "data", validation="s09")
    assert counts(rows) == {"train": 227, "validation": 57, "test": 273}
    assert set(rows.loc[rows["split"] == "validation", "subject"]) == {"s09"}
    two = manifest_for("msraction3d", shared / "data", validation="7,9")
    assert set(two.loc[two["split"] == "validation", "subject"]) == {"s07", "s09"}
    for wrong in ("2", "nine", "1,3,5,7,9"):
        with pytest.raises(OptionError, match=f"validation is {wrong}: name some, not all, of the training subjects"):
            manifest_for("msraction3d", shared / "data", validation=wrong)


@pytest.mark.parametrize("split", [1, 2])
def test_jhmdb_joints_spans_are_the_clips(shared, split):
    rows = manifest_for("jhmdb-joints", shared / "data", split=split)
    assert counts(rows) == {"train": 433, "test": 176}
    assert rows["source"].unique().tolist() == [f"skeletons/jhmdb/jhmdb_joints_split{split}.npz"]
    assert rows["clip_id"].tolist()[432:434] == [f"split{split}_train_432", f"split{split}_test_000"]
    with np.load(shared / "data" / rows["source"][0]) as file:
        lengths = np.concatenate([file["train_length"], file["test_length"]])
        names = np.concatenate([file["train_label"], file["test_label"]])
    np.testing.assert_array_equal(np.rint((rows["stop_s"] - rows["start_s"]) * 30), lengths)
    np.testing.assert_array_equal(np.rint(rows["stop_s"] * 30), np.cumsum(lengths))
    assert rows["class"].tolist() == names.tolist()
    assert rows["label"].tolist() == [sorted(set(names)).index(name) for name in names]


def test_jhmdb_joints_validation_share(shared):
    rows = manifest_for("jhmdb-joints", shared / "data", validation=0.2)
    before = manifest_for("jhmdb-joints", shared / "data")
    drawn = rows["split"] == "validation"
    assert set(before.loc[drawn, "split"]) == {"train"}
    share = drawn.groupby(rows["label"]).sum() / (before["split"] == "train").groupby(rows["label"]).sum()
    assert share.between(0.17, 0.23).all()
    assert manifest_for("jhmdb-joints", shared / "data", validation=0.2)["split"].equals(rows["split"])
    assert not manifest_for("jhmdb-joints", shared / "data", validation=0.2, seed=1)["split"].equals(rows["split"])
    with pytest.raises(OptionError, match="validation is 1"):
        manifest_for("jhmdb-joints", shared / "data", validation=1)


def test_egtea_splits_and_classes_from_zero(tmp_path):
    clip = "P07-R01-PastaSalad-91700-93600-F002751-F002808"
    other = "OP03-R02-TurkeySandwich-1-2-F000001-F000002"
    write(
        tmp_path,
        {
            "action_annotation/train_split1.txt": f"{clip} 3 3 3 \n",
            "action_annotation/test_split1.txt": f"{other} 106 19 51 7\n\n",
            f"cropped_clips/P07-R01-PastaSalad/{clip}.mp4": "",
        },
    )
    rows = manifest_for("egtea", tmp_path).set_index("clip_id")
    assert rows.loc[clip, ["label", "verb", "noun", "subject", "group", "split"]].tolist() == [
        *(2, 2, 2),
        *("P07", "P07-R01-PastaSalad", "train"),
    ]
    assert rows.loc[other, ["label", "verb", "noun", "subject", "split"]].tolist() == [105, 18, 50, "OP03", "test"]
    assert rows.attrs["report"].missing == (f"cropped_clips/OP03-R02-TurkeySandwich/{other}.mp4",)
    assert manifest_for("egtea", tmp_path, target="verb")["label"].tolist() == [2, 18]
    write(tmp_path, {"action_annotation/train_split1.txt": "", "action_annotation/test_split1.txt": "\n"})
    with pytest.raises(ManifestError, match="lists of split 1 are empty"):
        manifest_for("egtea", tmp_path)
    write(tmp_path, {"action_annotation/test_split1.txt": f"{other} 0 19 51\n"})
    with pytest.raises(ManifestError, match=r"line 1: .* is not '<clip> <action>"):
        manifest_for("egtea", tmp_path)


GTEA_LABELS = {
    "labels/S1_Cheese_C1.txt": "<take><bread> (90-134) [1]\n<shake> (140-150) [1]\n\n<put><tea> (1-15) [1]\n",
    "labels/S2_Tea_C1.txt": "<stir><cup> (16-30) [1]\n<stir><spoon,cup> (31-45) [1]\n<pour><water,cup> (46-60) [1]\n",
    "labels/S3_Tea_C1.txt": "<put><tea> (1-30) [1]\n",
}


def test_gtea_from_label_files(tmp_path):
    write(tmp_path, GTEA_LABELS)
    touch(tmp_path, "videos/S1_Cheese_C1.mp4", "videos/S2_Tea_C1.mp4", "videos/S2_Coffee_C1.mp4")
    rows = manifest_for("gtea", tmp_path).set_index("clip_id")
    assert rows["class"].to_dict() == {
        "S1_Cheese_C1-1": "take_bread",
        "S2_Tea_C1-1": "stir_spoon,cup",
        "S2_Tea_C1-2": "stir_spoon,cup",
        "S2_Tea_C1-3": "pour_water,cup",
        "S3_Tea_C1-1": "put_tea",
    }
    assert rows.loc["S1_Cheese_C1-1", ["start_s", "stop_s", "split"]].tolist() == [89 / 15, 134 / 15, "train"]
    assert set(rows.loc[rows["split"] == "test", "subject"]) == {"S2"}
    report = rows.attrs["report"]
    assert report.missing == ("videos/S3_Tea_C1.mp4",)
    assert report.extra == ("videos/S2_Coffee_C1.mp4",)
    assert report.dropped == {
        "they name no object": ("S1_Cheese_C1.txt:2",),
        "they are not among the 61 classes": ("S1_Cheese_C1.txt:4",),
    }
    assert any("4 classes were found, not 61" in line for line in report.lines())
    wide = manifest_for("gtea", tmp_path, classes=71, held_out="S3")
    assert wide["class"].tolist() == ["take_bread", "stir_spoon,cup", "pour_water,cup"]


def test_gtea_leaves_each_subject_out(tmp_path):
    write(tmp_path, GTEA_LABELS)
    rows = manifest_for("gtea", tmp_path, held_out="all")
    assert [c for c in rows if c.startswith("split")] == ["split", "split_S1", "split_S2", "split_S3"]  # none of S4
    for subject in ("S1", "S2", "S3"):
        alone = manifest_for("gtea", tmp_path, held_out=subject)
        assert rows[f"split_{subject}"].tolist() == alone["split"].tolist()
        assert set(rows["subject"][rows[f"split_{subject}"] == "test"]) == {subject}
    pd.testing.assert_frame_equal(rows.iloc[:, : len(alone.columns)], manifest_for("gtea", tmp_path))


def test_gtea_label_files_without_actions(tmp_path):
    write(tmp_path, {"labels/S1_Cheese_C1.txt": "<shake> (1-2) [1]\n"})
    with pytest.raises(ManifestError, match="no label file holds an action"):
        manifest_for("gtea", tmp_path)
    write(tmp_path, {"labels/S1_Cheese_C1.txt": "<take><bread> (9-2) [1]\n"})
    with pytest.raises(ManifestError, match="line 1: frames 9-2 run backwards"):
        manifest_for("gtea", tmp_path)


def test_gtea_classes():
    assert class_name("stir", "cup", "S1", 61) == "stir_spoon,cup"
    assert class_name("stir", "cup", "S1", 71) is None
    assert [class_name("put", "tea", s, 61) for s in ("S1", "S2", "S3", "S4")] == [None, None, "put_tea", "put_tea"]
    assert class_name("pour", "milk, cup", "S1", 71) == "pour_milk,cup"


def test_gtea_from_pictures_numbers_the_union_of_all_subjects_folders(tmp_path):
    for clip, n in (("S1/take_bread/1", 5), ("S2/open_tea/1", 7), ("S2/open_tea/2", 4)):
        touch(tmp_path, *(f"frames/{clip}/image_{i:05d}.jpg" for i in range(n)))
    (tmp_path / "frames" / "S1" / "pour_milk").mkdir()
    touch(tmp_path, "frames/S1/.DS_Store")
    rows = manifest_for("gtea", tmp_path)
    assert rows["clip_id"].tolist() == ["S1/take_bread/1", "S2/open_tea/1"]
    assert rows["label"].tolist() == [2, 0]
    assert set(rows["fps"]) == {"15"}
    assert rows.attrs["report"].dropped == {"they have fewer than 5 frames": ("S2/open_tea/2",)}


def sysu(root):
    lines = ["clip_id,subject,label,rgb_path,skel_path"]
    lines += [f"c{s}-{a},s{s:02d},{a},rgb/{s}/{a}.avi,skel/{s}/{a}.txt" for s in range(40) for a in range(12)]
    write(root, {"clips.csv": "\n".join(lines) + "\n"})


def test_sysu_halves(tmp_path):
    sysu(tmp_path)
    rows = manifest_for("sysu", tmp_path)
    assert counts(rows) == {"train": 240, "test": 240}
    assert rows.groupby("subject")["split"].nunique().max() == 1
    assert rows["source"].iloc[0] == "skel/0/0.txt"
    assert set(rows.loc[rows["split"] == "train", "subject"]) == {f"s{i:02d}" for i in range(20)}
    by_class = manifest_for("sysu", tmp_path, setting=1, modality="rgb")
    assert (by_class.groupby("label")["split"].value_counts() == 20).all()
    assert (by_class.groupby("label")["split_30"].value_counts() == 20).all()
    assert by_class["source"].iloc[0] == "rgb/0/0.avi"
    both = manifest_for("sysu", tmp_path, modality="both")
    assert (both["source"].iloc[0], both["skeleton"].iloc[0]) == ("rgb/0/0.avi", "skel/0/0.txt")
    assert len(both.attrs["report"].missing) == 960
    write(tmp_path, {"clips.csv": "clip_id,subject,label,skel_path\na,s1,drink,a.txt\n"})
    with pytest.raises(ManifestError, match="line 2: label 'drink'"):
        manifest_for("sysu", tmp_path)
    with pytest.raises(ManifestError, match="lacks the column rgb_path"):
        manifest_for("sysu", tmp_path, modality="rgb")


def test_sysu_thirty_random_halves(tmp_path):
    sysu(tmp_path)
    rows = manifest_for("sysu", tmp_path)
    columns = [f"split_{i:02d}" for i in range(1, 31)]
    assert [c for c in rows if c.startswith("split")] == ["split", *columns]
    for column in columns:
        assert rows[column].value_counts().to_dict() == {"train": 240, "test": 240}
        assert rows.groupby("subject")[column].nunique().max() == 1
    assert len({tuple(rows[c]) for c in columns}) == 30
    assert ((rows[columns] == "train").mean(axis=1).between(0.1, 0.9)).all()
    names = sorted(set(rows["subject"]))
    first = sorted(names, key=lambda s: hashlib.sha256(f"0/1/{s}".encode()).hexdigest())[:20]
    assert set(rows.loc[rows["split_01"] == "train", "subject"]) == set(first)
    shuffled = manifest_for("sysu", tmp_path, seed=1)
    assert shuffled["split"].equals(rows["split"])
    assert not shuffled["split_01"].equals(rows["split_01"])


def test_sysu_halves_from_a_file(tmp_path):
    sysu(tmp_path)
    write(tmp_path, {"halves.txt": "s00 s39\n\ns01 s02 s03\n"})
    rows = manifest_for("sysu", tmp_path, halves=tmp_path / "halves.txt")
    assert [c for c in rows if c.startswith("split")] == ["split", "split_1", "split_2"]
    assert set(rows.loc[rows["split_1"] == "train", "subject"]) == {"s00", "s39"}
    assert (rows["split_2"] == "train").sum() == 36
    write(tmp_path, {"halves.txt": "s00 s40\n" + " ".join(f"s{i:02d}" for i in range(40))})
    with pytest.raises(ManifestError, match=r"(?s)line 1: 's40' is not in the index.*line 2: names all there are"):
        manifest_for("sysu", tmp_path, halves=tmp_path / "halves.txt")
    with pytest.raises(ManifestError, match="no such file"):
        manifest_for("sysu", tmp_path, halves=tmp_path / "none.txt")


def test_sysu_subjects_are_in_the_order_of_their_numbers(tmp_path):
    lines = [f"c{s},subject {s},0,a.avi,a.txt" for s in range(1, 41)]
    write(tmp_path, {"clips.csv": "clip_id,subject,label,rgb_path,skel_path\n" + "\n".join(lines)})
    rows = manifest_for("sysu", tmp_path)
    assert set(rows.loc[rows["split"] == "train", "subject"]) == {f"subject {s}" for s in range(1, 21)}


def test_all_official_splits_at_once_are_those_of_each(lists, tmp_path):
    every = manifest_for("ucf101", lists / "ucf101", split="all").set_index("clip_id")
    assert len(every) == 13320
    for k in (1, 2, 3):
        one = manifest_for("ucf101", lists / "ucf101", split=k).set_index("clip_id")
        assert every[f"split_{k}"].reindex(one.index).equals(one["split"].rename(f"split_{k}"))
        assert every["label"].reindex(one.index).equals(one["label"])
    assert every["split"].equals(every["split_1"].rename("split"))
    early = manifest_for("ucf101", lists / "ucf101", split="all", protocol="early")
    assert counts(early) == {"train": 8056, "val": 1582, "test": 3682}
    assert early["split_2"].value_counts().to_dict() == {"train": 9586, "test": 3734}
    with pytest.raises(OptionError, match=r"split is '4': give 1 \| 2 \| 3 \| all"):
        manifest_for("ucf101", lists / "ucf101", split="4")


def test_all_splits_hold_the_clips_that_any_of_them_uses(tmp_path):
    parts = {1: "a.avi 1 \nb.avi 2\nc.avi 0\nd.avi 0\n", 2: "a.avi 0\nb.avi 1\nc.avi 2\nd.avi 0\n"}
    write(tmp_path, {f"brush_hair_test_split{k}.txt": text for k, text in parts.items()})
    with pytest.raises(ManifestError, match=r"no lists \*_test_split3.txt"):
        manifest_for("hmdb51", tmp_path, split="all")
    write(tmp_path, {"brush_hair_test_split3.txt": "a.avi 2\nb.avi 0\nc.avi 1\nd.avi 0\n"})
    rows = manifest_for("hmdb51", tmp_path, split="all").set_index("clip_id")
    columns = ["split", "split_1", "split_2", "split_3"]
    assert rows.loc["brush_hair/a", columns].tolist() == ["train", "train", "", "test"]
    assert rows.loc["brush_hair/c", columns].tolist() == ["", "", "test", "train"]
    assert len(rows) == 3
    assert "the 3 splits do not use 1 clips of their lists" in rows.attrs["report"].lines()
    assert len(manifest_for("hmdb51", tmp_path, split="2")) == 2
    write(tmp_path, {"brush_hair_test_split3.txt": "a.avi 2\na.avi 1\n"})
    with pytest.raises(ManifestError, match="split 3: names 'brush_hair/a' twice"):
        manifest_for("hmdb51", tmp_path, split="all")


def test_jhmdb_and_egtea_have_all_splits_too(tmp_path):
    jhmdb(tmp_path, (16, 40))
    for k, (one, two) in {2: (2, 1), 3: (1, 1)}.items():
        write(
            tmp_path,
            {
                f"splits/brush_hair_test_split{k}.txt": f"train_clip.avi {one}\n",
                f"splits/catch_test_split{k}.txt": f"test_clip.avi {two}\n",
            },
        )
    rows = manifest_for("jhmdb", tmp_path, split="all")
    sides = rows.drop_duplicates("pair").set_index("pair")[["split", "split_1", "split_2", "split_3"]]
    assert sides.loc["brush_hair/train_clip"].tolist() == ["train", "train", "test", "train"]
    assert rows.groupby("pair")["split_2"].nunique().eq(1).all()
    clip = "P07-R01-PastaSalad-91700-93600-F002751-F002808"
    other = "OP03-R02-TurkeySandwich-1-2-F000001-F000002"
    for k, (train, test) in {1: (clip, other), 2: (other, clip), 3: (clip, other)}.items():
        write(tmp_path, {f"annotations/train_split{k}.txt": f"{train} 3 3 3\n"})
        write(tmp_path, {f"annotations/test_split{k}.txt": f"{test} 3 3 3\n"})
    rows = manifest_for("egtea", tmp_path, split="all").set_index("clip_id")
    assert rows.loc[clip, ["split", "split_1", "split_2", "split_3"]].tolist() == ["train", "train", "test", "train"]


def test_kinetics(lists, tmp_path):
    head = "label,youtube_id,time_start,time_end,split\n"
    write(
        tmp_path,
        {
            "train.csv": head + "air drumming,abcdefghijk,5,15,train\nabseiling,-bcdefghijk,95,105,train\n",
            "validate.csv": head + "zumba,vbcdefghijk,0,10,validate\n",
            "test.csv": "youtube_id,time_start,time_end,split\ntbcdefghijk,1,11,test\n",
        },
    )
    touch(tmp_path, "train/air_drumming/abcdefghijk_000005_000015.mp4", "train/abseiling/-bcdefghijk_000095_000105.mp4")
    rows = manifest_for("kinetics", tmp_path)
    assert rows["label"].tolist() == [1, 0, 2, pd.NA]
    assert rows["source"].tolist()[:2] == [
        "train/air_drumming/abcdefghijk_000005_000015.mp4",
        "train/abseiling/-bcdefghijk_000095_000105.mp4",
    ]
    assert counts(rows) == {"train": 2, "val": 1, "test": 1}
    shutil.copy(lists / "kinetics400_label_map.txt", tmp_path)
    assert manifest_for("kinetics", tmp_path)["label"].tolist() == [1, 0, 399, pd.NA]
    write(tmp_path, {"train.csv": head + "knitting a cat,abcdefghijk,5,15,train\n"})
    with pytest.raises(ManifestError, match="no class 'knitting a cat'"):
        manifest_for("kinetics", tmp_path)


SSV1 = {
    "train.csv": "100218;Something falling like a feather or paper\n24413;Unfolding something\n\n",
    "validation.csv": "7;Putting something, something and something on the table\r\n",
    "test.csv": "9\n",
    "labels.csv": "Unfolding something\nSomething falling like a feather or paper\n"
    "Putting something, something and something on the table\nHolding something\n",
}


def ssv1(root, **changed):
    """The lists of Something-Something v1, small; ``labels`` is the text of the labels file and so on."""
    files = SSV1 | {f"{name}.csv": text for name, text in changed.items()}
    write(root, {f"something-something-v1-{name}": text for name, text in files.items() if text is not None})


def test_ssv1(tmp_path):
    ssv1(tmp_path)
    touch(tmp_path, *(f"20bn-something-something-v1/{clip}/00001.jpg" for clip in (100218, 7, 9, 12)))
    rows = manifest_for("ssv1", tmp_path)
    assert rows["clip_id"].tolist() == ["100218", "24413", "7"]
    assert rows["source"].tolist() == [f"20bn-something-something-v1/{clip}" for clip in (100218, 24413, 7)]
    assert rows["split"].tolist() == ["train", "train", "test"]
    assert rows["label"].tolist() == [1, 0, 2]
    assert rows["class"][2] == "Putting something, something and something on the table"
    assert set(rows["fps"]) == {"12"}
    assert rows[["start_s", "stop_s"]].isna().all(axis=None)
    report = rows.attrs["report"]
    assert report.missing == ("20bn-something-something-v1/24413",)
    assert report.extra == ("20bn-something-something-v1/12",)  # 9 is of the test list
    assert report.notes == ("4 classes were found, not 174",)
    assert manifest_for("ssv1", tmp_path, missing="drop")["clip_id"].tolist() == ["100218", "7"]
    assert manifest_for("ssv1", tmp_path, order="sorted")["label"].tolist() == [2, 3, 1]
    (tmp_path / "something-something-v1-labels.csv").unlink()
    assert manifest_for("ssv1", tmp_path)["label"].tolist() == [1, 2, 0]


def test_ssv1_reported_clips_never_select(tmp_path):
    ssv1(tmp_path)
    (tmp_path / "something-something-v1-test.csv").rename(tmp_path / "aside.csv")
    assert len(manifest_for("ssv1", tmp_path)) == 3
    with pytest.raises(ManifestError, match=r"v1-test.csv: no such file"):
        manifest_for("ssv1", tmp_path, test=True)
    (tmp_path / "aside.csv").rename(tmp_path / "something-something-v1-test.csv")
    reported = manifest_for("ssv1", tmp_path, test=True)
    assert reported["split"].tolist() == ["train", "train", "test", ""]
    assert reported["label"].tolist() == [1, 0, 2, pd.NA]
    assert reported["class"][3] == ""
    official = manifest_for("ssv1", tmp_path, test=True, protocol="official")
    assert official["split"].tolist() == ["train", "train", "val", ""]


def test_ssv1_class_names_with_brackets_quotes_and_semicolons(tmp_path):
    ssv1(
        tmp_path,
        train='1;Holding [something]\n2; "Holding; then dropping something" \n3;Holding; then dropping something\n',
        validation='"4";"Putting [something], then [something]"\n',
        labels='\ufeffHolding; then dropping something\n"Putting something, then something"\nHolding something\n',
    )
    rows = manifest_for("ssv1", tmp_path)
    assert rows["label"].tolist() == [2, 0, 0, 1]
    assert rows["class"].tolist() == [
        "Holding something",
        *["Holding; then dropping something"] * 2,
        "Putting something, then something",
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"train": "1;Holding something\n\nx;Holding something\n"},
            r"train.csv: line 3: 'x;Holding something' is not '<id>;",
        ),
        ({"train": "1;Holding something\n2;\n"}, r"train.csv: line 2: '2;' is not '<id>;<class>'"),
        ({"train": "1,Holding something\n"}, r"train.csv: line 1: '1,Holding something' is not"),
        ({"validation": "24413;Holding something\n"}, r"validation.csv: line 1: clip 24413 is listed twice"),
        (
            {"validation": "8;Knitting\n"},
            r"validation.csv: line 1: class 'Knitting' is not in something-something-v1-l",
        ),
        ({"validation": "\n"}, r"validation.csv: is empty"),
        ({"validation": None}, r"validation.csv: no such file"),
        ({"test": "9\n10;Holding something\n"}, r"test.csv: line 2: '10;Holding something' is not '<id>'"),
        ({"labels": "Holding something\nHolding [something]\n"}, r"labels.csv: line 2: class .* is listed twice"),
    ],
)
def test_ssv1_lists_of_another_form_are_named_by_line(tmp_path, changed, words):
    ssv1(tmp_path, **changed)
    with pytest.raises(ManifestError, match=words):
        manifest_for("ssv1", tmp_path, test=True)


def test_ssv1_frames_are_extracted(tmp_path):
    ssv1(tmp_path)
    shown = pictures(18, width=176, height=100)
    for clip, count in ((100218, 18), (7, 6)):
        fill(tmp_path / "20bn-something-something-v1" / str(clip), shown[:count])
    (tmp_path / "20bn-something-something-v1" / "24413").mkdir()
    rows = manifest_for("ssv1", tmp_path)
    report = kdcache.extract(rows, tmp_path, tmp_path / "out", ["rgb"], short_side=100, bar=False)
    assert report.extracted == 2
    assert [failure.clip_id for failure in report.failures] == ["24413"]
    cache = kdcache.Cache(tmp_path / "out")
    long, short = cache.read("rgb", ["100218", "7"])
    assert (long.shape, short.shape) == ((18, 100, 176, 3), (6, 100, 176, 3))
    assert [number(picture) for picture in long] == list(range(18))


def test_manifests_survive_the_file_and_status_sums_them_up(lists, tmp_path):
    rows = manifest_for("ucf101", lists / "ucf101")
    write_manifest(rows, tmp_path / "clips.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "clips.csv"), rows)
    assert status("ucf101", lists / "ucf101") == "13320 clips; 0 sources found, 13320 missing, 0 extra"


def test_annotations_elsewhere_and_nowhere(lists, tmp_path):
    assert len(manifest_for("ucf101", tmp_path, annotations=lists / "ucf101")) == 13320
    for name in (
        "ucf101",
        "hmdb51",
        "jhmdb",
        "thumos14",
        "ntu",
        "egtea",
        "sysu",
        "kinetics",
        "ssv1",
        "gtea",
        "msraction3d",
        "jhmdb-joints",
    ):
        with pytest.raises(OptionError, match=f"^{name}: no "):
            manifest_for(name, tmp_path)


_55 = "uid,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
_55 += "0,P01,P01_01,{},00:00:03.37,2,{}\n"
_KINETICS = "label,youtube_id,time_start,time_end\nabseiling,abcdefghijk,{},15\n"
_RULSTM = {"training.csv": "00330, P01_02, 152, 205, 0, 4, 194\n", "validation.csv": "0, {}, 4, 101, 2, 8, {}\n"}


@pytest.mark.parametrize(
    ("dataset", "files", "words"),
    [
        ("ucf101", {"classInd.txt": "1 Diving\n2\n"}, r"classInd.txt: line 2: '2' is not '<number> <class>'"),
        ("ucf101", {"classInd.txt": b"1 Div\xff\n"}, "byte 5 is not UTF-8"),
        ("hmdb51", {"brush_hair_test_split1.txt": "a.avi 1\n".encode("utf-16")}, "byte 0 is not UTF-8"),
        ("ntu", {"samples_with_missing_skeletons.txt": b"\xff"}, "byte 0 is not UTF-8"),
        ("ntu", {"samples_with_missing_skeletons.txt": "", "skes_available_name.txt": "a" * 9000}, "^.{,700}$"),
        ("kinetics", {"train.csv": _KINETICS.format("1e400")}, "line 2: time_start '1e400' is not a number"),
        ("kinetics", {"train.csv": _KINETICS.format("٣")}, "line 2: time_start '٣' is not a number"),
        ("kinetics", {"train.csv": _KINETICS.format("5,5")}, "has 5 cells in row 1, and 4 columns"),
        ("epic55", {"EPIC_train_action_labels.csv": _55.format("1 day", 2)}, "start_timestamp '1 day' is not HH:MM"),
        ("epic55", {"EPIC_train_action_labels.csv": _55.format("00:00:01", "x")}, "noun_class 'x' is not a number"),
        ("epic55", {"EPIC_train_action_labels.csv": "uid,video_id\n0,P01_01\n"}, "has no column 'participant_id'"),
        (
            "rulstm",
            _RULSTM | {"validation.csv": _RULSTM["validation.csv"].format("P01_01", "x")},
            "validation.csv: is no",
        ),
        (
            "rulstm",
            _RULSTM | {"training.csv": _RULSTM["training.csv"] + "1,v,1,2,3,4,5\n"},
            "row 2: '1,v,1,2,3,4,5' is not",
        ),
        ("rulstm", _RULSTM | {"training.csv": _RULSTM["training.csv"] + "1,v,1\n"}, "row 2 has 3 cells, the first 7"),
        ("sysu", {"clips.csv": ""}, "is empty"),
        ("sysu", {"clips.csv": "clip_id,subject,label,skel_path\n"}, "has no rows"),
        (
            "thumos14",
            {
                f"TH14_Temporal_annotations_{part}/annotation/a_{k}.txt": "video_test_1 1.2.3 4\n"
                for part, k in (("validation", "val"), ("test", "test"))
            },
            "line 1: 'video_test_1 1.2.3 4' is not",
        ),
    ],
)
def test_damaged_lists_are_named_with_the_line(tmp_path, dataset, files, words):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError, match=words) as found:
        manifest_for(dataset, tmp_path)
    assert str(tmp_path) in found.value.path


def test_a_list_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "classInd.txt").mkdir()
    with pytest.raises(ManifestError, match=r"classInd.txt: is no plain file"):
        manifest_for("ucf101", tmp_path)

"""EPIC-KITCHENS and RULSTM adapters on the distributed annotation files: counts, times, class numbers, no mixing."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from kdcache.datasets import manifest_for
from kdcache.datasets.epic import action_list, read_official
from kdcache.datasets.pairs import ONE_FRAME_S
from kdcache.errors import ManifestError, OptionError
from kdcache.manifest import read_manifest, write_manifest

PAPER_UNLABELLED = 26391


@pytest.fixture(scope="module")
def lists(shared):
    return shared / "data" / "annotations"


@pytest.fixture(scope="module")
def epic55(lists):
    return manifest_for("epic", lists / "epic55")


def test_the_papers_counts(epic55):
    """23,191 labelled and 26,391 unlabelled training pairs, 5,281 for validation (anticipation paper, §3.3)."""
    labelled = epic55[epic55["uid"] != ""]
    for role in ("observed", "action"):
        rows = labelled[labelled["role"] == role]
        assert len(rows) == 28472
        assert rows["split"].value_counts().to_dict() == {"train": 23191, "val": 5281}
        assert rows["label"].notna().all()
    assert set(labelled.loc[labelled["split"] == "val", "subject"]) == {f"P{i}" for i in range(26, 32)}
    assert labelled["source"].nunique() == 272
    assert (labelled["verb"].nunique(), labelled["noun"].nunique()) == (119, 321)
    assert (labelled["verb"].max(), labelled["noun"].max()) == (124, 351)  # of 125 and 352 classes
    assert (labelled["label"] == labelled["verb"]).all()
    free = epic55[epic55["uid"] == ""]
    assert free["role"].value_counts().to_dict() == {"observed": PAPER_UNLABELLED, "action": PAPER_UNLABELLED}
    assert free["label"].isna().all()
    assert (free["split"] == "train").all()
    assert free["clip_id"].is_unique


def test_the_first_row_of_the_file(epic55):
    observed, action = epic55.iloc[0], epic55.iloc[1]
    assert (observed["clip_id"], action["clip_id"]) == ("ek55-0@1-observed", "ek55-0@1-action")
    assert (action["start_s"], action["verb"], action["noun"]) == (0.14, 2, 8)
    assert (observed["start_s"], observed["stop_s"], observed["clamped"]) == (0.0, ONE_FRAME_S, "1")
    second = epic55[epic55["pair"] == "ek55-1@1"]
    assert second["start_s"].tolist() == [4.37 - 1 - 32 / 30, 4.37]
    assert second["clamped"].tolist() == ["0", "0"]
    # 70 actions start within the first second, one more at exactly 1 s
    assert (epic55["clamped"] == "1").sum() == 2 * 71


def test_unlabelled_pairs_of_real_gaps(epic55, lists):
    """Inside gaps (invalid labels count as annotated), tau apart, inside the video, training participants only."""
    spans = pd.concat(
        [read_official(lists / "epic55" / f"EPIC_train_{n}_labels.csv", "epic55") for n in ("action", "invalid")]
    )
    length = pd.read_csv(lists / "epic55" / "EPIC_video_info.csv").set_index("video")["duration"]
    free = epic55[epic55["uid"] == ""]
    assert (free["subject"].str[1:].astype(int) <= 25).all()
    for video, rows in free.groupby("group"):
        taken = spans[spans["video_id"] == video]
        starts, stops = (rows[c].to_numpy()[:, None] for c in ("start_s", "stop_s"))
        meets = (starts < taken["stop_s"].to_numpy() - 1e-9) & (taken["start_s"].to_numpy() < stops - 1e-9)
        assert not meets.any()
        assert rows["stop_s"].max() <= length[video] + 1e-9
    observed, action = (free[free["role"] == r].set_index("pair") for r in ("observed", "action"))
    assert np.allclose(action["start_s"] - observed["stop_s"], 1.0, atol=1e-9)


def test_the_draw_repeats_with_its_seed_and_leaves_labelled_pairs_alone(epic55, lists):
    again = manifest_for("epic55", lists / "epic55")
    pd.testing.assert_frame_equal(again, epic55)
    other = manifest_for("epic55", lists / "epic55", seed=1)
    labelled = epic55["uid"] != ""
    pd.testing.assert_frame_equal(other[labelled], epic55[labelled])
    assert not other.loc[~labelled, "start_s"].equals(epic55.loc[~labelled, "start_s"])
    assert epic55.columns[:4].tolist() == ["clip_id", "source", "start_s", "stop_s"]


def test_another_tau_leaves_action_clips_as_they_are(epic55, lists):
    other = manifest_for("epic55", lists / "epic55", tau="0.5", unlabelled=0)
    action = epic55[(epic55["role"] == "action") & (epic55["uid"] != "")]
    spans = ["source", "start_s", "stop_s"]
    pd.testing.assert_frame_equal(
        other.loc[other["role"] == "action", spans].reset_index(drop=True), action[spans].reset_index(drop=True)
    )
    assert set(other["tau"]) == {"0.5"}
    assert set(other["clip_id"]).isdisjoint(epic55["clip_id"])


def test_manifests_survive_the_file(epic55, tmp_path):
    some = pd.concat([epic55.head(2000), epic55.tail(2000)], ignore_index=True)
    write_manifest(some, tmp_path / "epic.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "epic.csv"), some)


def test_test_sets_have_no_labels(lists):
    rows = manifest_for("epic55", lists / "epic55", unlabelled=0, test=True)
    assert rows["split"].value_counts().to_dict() == {
        "train": 2 * 23191,
        "val": 2 * 5281,
        "test_s1": 2 * 8047,
        "test_s2": 2 * 2929,
    }
    assert rows.loc[rows["split"].str.startswith("test"), "label"].isna().all()


def test_rulstm_splits_with_official_times_number_actions_as_rulstm_does(lists):
    """Split by RULSTM, times from the official file; action numbers made here equal those in RULSTM's lists."""
    official = manifest_for(
        "epic55", lists / "epic55", split="rulstm", rulstm=lists / "rulstm" / "ek55", target="action", unlabelled=0
    )
    assert official["split"].value_counts().to_dict() == {"train": 2 * 23493, "val": 2 * 4979}
    thirty = manifest_for("rulstm", lists / "rulstm" / "ek55")
    both = official.assign(uid=official["uid"].astype(int)).merge(
        thirty.assign(uid=thirty["uid"].astype(int)), on=["uid", "role"]
    )
    assert len(both) == 2 * 28472
    for column in ("label", "verb", "noun", "split", "group"):
        assert (both[f"{column}_x"] == both[f"{column}_y"]).all()
    assert both["label_x"].nunique() == 2513
    acts = both[both["role"] == "action"]
    assert (acts["start_s_x"] - acts["start_s_y"]).abs().max() < 1.01 / 30


def test_action_numbers_equal_rulstms_action_files(lists):
    official = read_official(lists / "epic55" / "EPIC_train_action_labels.csv", "epic55")
    for folder, table in (("ek55", official), ("ek100", None)):
        actions = pd.read_csv(lists / "rulstm" / folder / "actions.csv")
        theirs = list(zip(actions["verb"], actions["noun"], strict=True))
        if table is None:
            table = pd.DataFrame(theirs[::-1], columns=["verb_class", "noun_class"]).astype(str)
        assert action_list([table]) == theirs


def test_epic100_validation(lists):
    rows = manifest_for("epic100", lists / "epic100")
    assert rows["role"].value_counts().to_dict() == {"observed": 9668, "action": 9668}
    assert set(rows["split"]) == {"val"}
    assert any("EPIC_100_train.csv" in line for line in rows.attrs["report"].lines())
    first = rows[rows["uid"] == "P01_11_0"]
    assert first["start_s"].tolist() == [0.0, 0.0]
    assert first["verb"].tolist() == [0, 0]
    with pytest.raises(OptionError, match="lacks EPIC_100_train"):
        manifest_for("epic100", lists / "epic100", target="action")
    with_test = manifest_for("epic100", lists / "epic100", test=True)
    assert (with_test["split"] == "test").sum() == 2 * 13092


def test_epic100_with_both_files_numbers_actions_over_both(lists, tmp_path):
    official = (lists / "epic100" / "EPIC_100_validation.csv").read_text().splitlines(keepends=True)
    (tmp_path / "EPIC_100_train.csv").write_text("".join(official[:1] + official[5000:]))
    (tmp_path / "EPIC_100_validation.csv").write_text("".join(official[:5000]))
    rows = manifest_for("epic100", tmp_path, target="action")
    assert rows["split"].value_counts().to_dict() == {"train": 2 * 4669, "val": 2 * 4999}
    pairs = set(zip(rows["verb"], rows["noun"], strict=True))
    assert rows["label"].max() + 1 == len(pairs) == rows["label"].nunique()
    assert len(rows.groupby("label")[["verb", "noun"]].value_counts()) == len(pairs)


@pytest.mark.parametrize(
    ("folder", "split", "counts"),
    [
        ("ek55", 1, (23493, 4979)),
        ("ek100", 1, (67217, 9668)),
        ("egtea", 1, (8299, 2022)),
        ("egtea", 2, (8299, 2022)),
        ("egtea", 3, (8300, 2021)),
    ],
)
def test_rulstm_lists(lists, folder, split, counts):
    rows = manifest_for("rulstm", lists / "rulstm" / folder, split=split)
    action = rows[rows["role"] == "action"]
    assert tuple(action["split"].value_counts()[["train", "val"]]) == counts
    first = pd.read_csv(
        lists / "rulstm" / folder / f"training{split if folder == 'egtea' else ''}.csv", header=None, nrows=1
    )
    assert action["start_s"].iloc[0] == first[2][0] / 30
    assert action["label"].iloc[0] == first[6][0]
    if folder == "egtea":
        assert action["label"].nunique() == 106
        assert action["group"].nunique() == 86


def test_epic100_validation_agrees_between_official_and_rulstm(lists):
    official = manifest_for("epic100", lists / "epic100")
    thirty = manifest_for("rulstm", lists / "rulstm" / "ek100")
    both = official.merge(thirty, on=["uid", "role"])
    assert len(both) == 2 * 9668
    assert (both["verb_x"] == both["verb_y"]).all()
    assert (both["noun_x"] == both["noun_y"]).all()


@pytest.mark.parametrize(
    ("dataset", "folder", "advice"),
    [
        ("epic55", "rulstm/ek55", "use the dataset rulstm"),
        ("epic55", "epic100", "use the dataset epic100"),
        ("epic100", "epic55", "use the dataset epic55"),
        ("epic100", "rulstm/ek100", "use the dataset rulstm"),
        ("rulstm", "epic55", "use the dataset epic55"),
        ("rulstm", "epic100", "use the dataset epic100"),
    ],
)
def test_annotations_of_another_kind_are_refused(lists, dataset, folder, advice):
    with pytest.raises(ManifestError, match=advice):
        manifest_for(dataset, lists / folder)


@pytest.mark.parametrize(
    ("dataset", "name", "source", "advice"),
    [
        ("epic55", "EPIC_train_action_labels.csv", "rulstm/ek55/training.csv", "30 a second"),
        ("epic55", "EPIC_train_action_labels.csv", "epic100/EPIC_100_validation.csv", "class numbers differ"),
        ("epic100", "EPIC_100_train.csv", "epic55/EPIC_train_action_labels.csv", "use the dataset epic55"),
        ("rulstm", "training.csv", "epic55/EPIC_train_action_labels.csv", "use the dataset epic55"),
    ],
)
def test_renamed_files_do_not_pass_for_another_kind(lists, tmp_path, dataset, name, source, advice):
    shutil.copy(lists / source, tmp_path / name)
    with pytest.raises(ManifestError, match=advice):
        manifest_for(dataset, tmp_path)


def test_rulstm_lists_of_two_sets_do_not_mix(lists, tmp_path):
    shutil.copy(lists / "rulstm" / "ek55" / "training.csv", tmp_path)
    with pytest.raises(ManifestError, match=r"validation.csv: .*come in pairs"):
        manifest_for("rulstm", tmp_path)
    shutil.copy(lists / "rulstm" / "ek100" / "validation.csv", tmp_path)
    with pytest.raises(ManifestError, match="a RULSTM list of EPIC-KITCHENS-100"):
        manifest_for("rulstm", tmp_path)


def test_rulstm_ids_unknown_to_the_official_file_are_named(lists, tmp_path):
    text = (lists / "rulstm" / "ek55" / "training.csv").read_text()
    (tmp_path / "training.csv").write_text(text.replace("00330, P01_02", "99330, P01_02", 1))
    shutil.copy(lists / "rulstm" / "ek55" / "validation.csv", tmp_path)
    with pytest.raises(ManifestError, match="id 99330 is in no official annotation"):
        manifest_for("epic55", lists / "epic55", split="rulstm", rulstm=tmp_path)
    (tmp_path / "training.csv").write_text(text.partition("\n")[2])
    rows = manifest_for("epic55", lists / "epic55", split="rulstm", rulstm=tmp_path, unlabelled=0)
    assert rows.attrs["report"].dropped == {"not in the RULSTM lists": ("ek55-330",)}


def test_bad_timestamps_are_named_by_line(lists, tmp_path):
    text = (lists / "epic55" / "EPIC_train_action_labels.csv").read_text().replace("00:00:04.37", "4m37", 1)
    (tmp_path / "EPIC_train_action_labels.csv").write_text(text)
    with pytest.raises(ManifestError, match="line 3: start_timestamp '4m37'"):
        manifest_for("epic55", tmp_path)


def test_unlabelled_pairs_need_durations(lists, tmp_path):
    shutil.copy(lists / "epic55" / "EPIC_train_action_labels.csv", tmp_path)
    with pytest.raises(OptionError, match=r"EPIC_video_info.csv lacks P01_01, .* set unlabelled=0"):
        manifest_for("epic55", tmp_path)
    assert len(manifest_for("epic55", tmp_path, unlabelled=0)) == 2 * 28472


def test_pictures_carry_their_frame_rate_and_layouts_do_not_mix(lists, tmp_path):
    """Distributed pictures of EPIC-55 are numbered at 60 a second, those of the extension at 50."""
    for path in ("frames_rgb_flow/rgb/train/P01/P01_01.tar", "frames_rgb_flow/rgb/train/P01/P01_02.tar", "P01_03.MP4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    rows = manifest_for("epic55", tmp_path, annotations=lists / "epic55", unlabelled=10)
    assert set(rows["fps"]) == {"60"}
    assert set(rows.loc[rows["group"] == "P01_01", "source"]) == {"frames_rgb_flow/rgb/train/P01/P01_01.tar"}
    assert rows["source"].str.endswith(".tar").all()
    videos = manifest_for("epic55", tmp_path, annotations=lists / "epic55", unlabelled=10, layout="videos")
    assert "fps" not in videos
    assert set(videos.loc[videos["group"] == "P01_03", "source"]) == {"P01_03.MP4"}


def test_pictures_of_the_extension_are_numbered_at_another_rate(lists, tmp_path):
    official = (lists / "epic100" / "EPIC_100_validation.csv").read_text()
    shutil.copy(lists / "epic100" / "EPIC_100_validation.csv", tmp_path)
    (tmp_path / "EPIC_100_train.csv").write_text(
        official.replace("P01_11", "P01_109")[:5000].rpartition("\n")[0] + "\n"
    )
    for name in ("P01_11", "P01_109"):
        (tmp_path / "EPIC-KITCHENS" / "P01" / "rgb_frames" / name).mkdir(parents=True)
    rows = manifest_for("epic100", tmp_path)
    rate = rows.drop_duplicates("group").set_index("group")
    assert rate.loc["P01_11", ["fps", "source"]].tolist() == ["60", "EPIC-KITCHENS/P01/rgb_frames/P01_11"]
    assert rate.loc["P01_109", ["fps", "source"]].tolist() == ["50", "EPIC-KITCHENS/P01/rgb_frames/P01_109"]
    assert any("P01_109 are wrong" in line for line in rows.attrs["report"].lines())

"""The adapters' option ``history``: one clip an action that ends where the action starts, on the distributed lists."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from kdcache.datasets import manifest_for
from kdcache.datasets.pairs import past_clips
from kdcache.errors import ManifestError, OptionError


@pytest.fixture(scope="module")
def lists(shared):
    return shared / "data" / "annotations"


def actions(starts: list[float], duration: float = 100.0) -> pd.DataFrame:
    names = [f"v-{i}" for i in range(len(starts))]
    columns = {"name": names, "source": "v.mp4", "start_s": np.array(starts), "duration_s": duration, "label": 3}
    return pd.DataFrame(columns)


def test_spans_end_where_the_action_starts():
    rows, left_out = past_clips(actions([0.0, 0.14, 3.5, 60.25, 100.0]), 3.5)
    assert rows["clip_id"].tolist() == ["v-1@3.5-past", "v-2@3.5-past", "v-3@3.5-past"]
    assert rows["start_s"].tolist() == [0.0, 0.0, 56.75]
    assert rows["stop_s"].tolist() == [0.14, 3.5, 60.25]
    assert rows["label"].tolist() == [3, 3, 3]
    assert left_out == {
        "the action starts after the end of its video": ("v-4",),
        "nothing lies before the action's start": ("v-0",),
    }
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(OptionError, match="give the length of a clip"):
            past_clips(actions([1.0]), bad)


def test_epic55_has_one_clip_an_action_and_none_of_gaps(lists):
    rows = manifest_for("epic55", lists / "epic55", history=3.5, target="action", test=True)
    # of 28,472 labelled and 10,976 test actions those that start at 0 are left out
    assert "role" not in rows
    first = rows.iloc[0]
    assert first["clip_id"] == "ek55-0@3.5-past"
    assert (first["start_s"], first["stop_s"], first["verb"], first["noun"]) == (0.0, 0.14, 2, 8)
    dropped = rows.attrs["report"].dropped["nothing lies before the action's start"]
    assert len(rows) + len(dropped) == 28472 + 8047 + 2929
    files = ("EPIC_train_action_labels.csv", "EPIC_test_s1_timestamps.csv", "EPIC_test_s2_timestamps.csv")
    official = pd.concat([pd.read_csv(lists / "epic55" / file, dtype=str) for file in files])
    assert len(dropped) == (official["start_timestamp"] == "00:00:00.00").sum()
    assert set(rows["split"]) == {"train", "val", "test_s1", "test_s2"}
    start = pd.to_timedelta(official.set_index("uid")["start_timestamp"]).dt.total_seconds()
    assert (rows.set_index("uid")["stop_s"] == start[rows["uid"]]).all()


def test_epic100_with_its_test_set(lists):
    rows = manifest_for("epic100", lists / "epic100", history="3.5", test=True)
    dropped = rows.attrs["report"].dropped["nothing lies before the action's start"]
    assert len(rows) + len(dropped) == 9668 + 13092
    assert rows.loc[rows["split"] == "test", "label"].isna().all()
    assert ((rows["stop_s"] - rows["start_s"]) <= 3.5 + 1e-9).all()


def test_rulstm_clips_end_at_its_start_frames(lists):
    rows = manifest_for("rulstm", lists / "rulstm" / "ek55", history=3.5)
    assert rows["split"].value_counts().to_dict() == {"train": 23493, "val": 4979}
    assert rows["clip_id"].iloc[0] == "ek55-00330@3.5-past"
    assert (rows["stop_s"].iloc[0], rows["label"].iloc[0]) == (152 / 30, 194)


@pytest.mark.parametrize(("option", "value"), [("tau", 0.5), ("window", 2.0), ("early", "drop")])
def test_options_of_pairs_are_refused(lists, option, value):
    with pytest.raises(OptionError, match=f"{option}=.* means nothing with history"):
        manifest_for("rulstm", lists / "rulstm" / "egtea", history=3.5, **{option: value})


def test_rulstm_test_lists(lists, tmp_path):
    """The lists of the test sets as RULSTM has them: four columns, here made of the official times."""
    for name in ("training.csv", "validation.csv"):
        shutil.copy(lists / "rulstm" / "ek55" / name, tmp_path)
    for number, name in (("1", "test_seen.csv"), ("2", "test_unseen.csv")):
        official = pd.read_csv(lists / "epic55" / f"EPIC_test_s{number}_timestamps.csv", dtype=str)
        start = (pd.to_timedelta(official["start_timestamp"]).dt.total_seconds() * 30).astype(int).clip(lower=1)
        lines = [
            f"{int(u):05d}, {v}, {s:010d}, {s + 30:010d}"
            for u, v, s in zip(official["uid"], official["video_id"], start, strict=True)
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    rows = manifest_for("rulstm", tmp_path, history=3.5, test=True)
    assert rows["split"].value_counts()[["test_s1", "test_s2"]].tolist() == [8047, 2929]
    test = rows[rows["split"] == "test_s2"]
    assert test["label"].isna().all()
    assert test["uid"].iloc[0] == "15582"
    assert test["stop_s"].iloc[0] == 59 / 30
    shutil.copy(tmp_path / "test_seen.csv", tmp_path / "training.csv")
    with pytest.raises(ManifestError, match=r"training.csv: has 4 columns, not 7: id, video"):
        manifest_for("rulstm", tmp_path)


def test_egtea_has_no_test_list(lists):
    with pytest.raises(OptionError, match="no test list"):
        manifest_for("rulstm", lists / "rulstm" / "egtea", test=True)

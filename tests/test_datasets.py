"""The registry of datasets, their typed options, and finding files with nothing dropped unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from kdcache import datasets
from kdcache.datasets import registry
from kdcache.datasets.listing import DatasetReport, Folders, locate
from kdcache.datasets.options import coerce, options
from kdcache.datasets.pairs import assert_no_leak
from kdcache.errors import ManifestError, OptionError
from kdcache.manifest import read_manifest, write_manifest

PAGES = Path(__file__).parents[1] / "manifests"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.mark.parametrize("name", datasets.names())
def test_every_dataset_explains_itself(name):
    text = datasets.explain(name)
    assert datasets.layout(name) in text
    assert datasets.describe(name) in text
    assert datasets.describe(name).endswith(".")
    assert all(option in text for option in options(registry.dataset_module(name).manifest))


@pytest.mark.parametrize("name", datasets.names())
def test_every_dataset_has_a_page_that_shows_its_layout_and_options(name):
    page = (PAGES / f"{registry.MODULES[name]}.md").read_text()
    assert datasets.layout(name) in page
    for option in options(registry.dataset_module(name).manifest):
        assert f"`{option}`" in page


@pytest.mark.parametrize("path", sorted((PAGES / "examples").glob("*.csv")), ids=lambda p: p.stem)
def test_example_manifests_keep_the_contract(path):
    assert_no_leak(read_manifest(path))


def test_importing_the_registry_is_cheap():
    heavy = "import sys, kdcache.datasets; print(sorted({'pandas', 'numpy', 'torch', 'cv2', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_misspelt_names_get_the_nearest(tmp_path):
    with pytest.raises(OptionError, match="did you mean 'epic'"):
        datasets.manifest_for("epik", tmp_path)
    with pytest.raises(OptionError, match=r"option of folder 'observed': did you mean 'observe'"):
        datasets.manifest_for("folder", tmp_path, observed=0.4)
    with pytest.raises(OptionError, match="choose keep or drop"):
        datasets.manifest_for("folder", tmp_path, missing="ignore")


def test_an_absent_root_or_dataset_shows_the_layout(tmp_path):
    with pytest.raises(OptionError, match=r"no such folder.*\n.*EPIC_train_action_labels"):
        datasets.manifest_for("epic", tmp_path / "none")
    with pytest.raises(OptionError, match=r"no EPIC_train_action_labels.csv in .*option annotations"):
        datasets.manifest_for("epic", tmp_path)
    assert "no EPIC_train_action_labels.csv" in datasets.status("epic", tmp_path)


def typed(
    root: Path,
    *,
    tau: float = 1.0,
    count: int = 3,
    flag: bool = False,
    names: tuple[str, ...] = (),
    split: Literal[1, 2] = 1,
    where: Path | None = None,
) -> None:
    """A signature with an option of every kind."""


def test_options_read_text_and_keep_types():
    text = {"tau": "2", "count": "7", "flag": "true", "names": "a, b,", "split": "2", "where": "x/y"}
    plain = {"tau": 2.0, "count": 7, "flag": True, "names": ("a", "b"), "split": 2, "where": Path("x/y")}
    assert coerce(typed, text, "d") == plain
    assert coerce(typed, plain, "d") == plain
    assert coerce(typed, {"tau": 2, "names": ["a"], "where": None}, "d") == {"tau": 2.0, "names": ("a",), "where": None}
    assert coerce(typed, {"where": "none", "flag": "no"}, "d") == {"where": None, "flag": False}


@pytest.mark.parametrize(
    ("name", "value"), [("tau", "fast"), ("count", "1.5"), ("count", 1.5), ("count", True), ("flag", 2), ("split", 3)]
)
def test_options_of_another_type_are_refused(name, value):
    with pytest.raises(OptionError, match=f"^{name} is {value!r}: give "):
        coerce(typed, {name: value}, "d")


def test_files_are_found_whatever_their_case_and_hidden_ones_are_not_seen(tmp_path):
    touch(tmp_path, "UCF-101/HandStand/v_Handstand_g01.AVI", ".hidden/x.avi", "UCF-101/HandStand/.DS_Store")
    folders = Folders(tmp_path)
    assert folders.find("ucf-101/handstand/v_handstand_g01.avi") == "UCF-101/HandStand/v_Handstand_g01.AVI"
    assert folders.find("UCF-101/HandStand/other.avi") is None
    assert folders.find(".hidden/x.avi") is None
    assert folders.beside(["UCF-101/HandStand/v_Handstand_g01.AVI"]) == []


def test_one_layout_is_used_for_all_and_missing_and_extra_files_are_named(tmp_path):
    layouts = {"videos": ["v/{n}.mp4", "{n}.mp4"], "tars": ["t/{n}.tar"]}
    clips = {n: {"n": n} for n in "abc"}
    touch(tmp_path, "v/a.mp4", "b.mp4", "v/x.mp4", "v/notes.txt", "v/known.mp4", "t/a.tar", "stray.mp4")
    located = locate(tmp_path, layouts, clips, others={"known"})
    assert located.layout == "videos"
    assert located.paths == {"a": "v/a.mp4", "b": "b.mp4", "c": "v/c.mp4"}
    assert located.report.missing == ("v/c.mp4",)
    assert located.report.extra == ("stray.mp4", "v/x.mp4")
    assert any("1 of 3 sources missing: v/c.mp4" in line for line in located.report.lines())
    touch(tmp_path, "t/b.tar", "t/c.tar")
    assert locate(tmp_path, layouts, clips).layout == "tars"
    assert locate(tmp_path, layouts, clips, "videos").layout == "videos"
    with pytest.raises(OptionError, match="did you mean 'tars'"):
        locate(tmp_path, layouts, clips, "tar")


def test_report_names_a_few_and_counts_the_rest():
    report = DatasetReport(missing=tuple(f"{i}.mp4" for i in range(20))).dropping({"too short": ["a", "b"], "none": []})
    assert report.lines() == [
        "20 of 20 sources missing: " + ", ".join(f"{i}.mp4" for i in range(8)) + ", … and 12 more",
        "2 left out, too short: a, b",
    ]


def test_missing_sources_are_kept_for_the_extraction_to_list_or_dropped_by_name(tmp_path, shared):
    """Of the EPIC-55 videos only one is there: nothing is lost without a word."""
    annotations = shared / "data" / "annotations" / "epic55"
    touch(tmp_path, "videos/train/P01/P01_01.MP4", "videos/train/P01/P01_10.MP4", "videos/train/P01/P99_01.MP4")
    kept = datasets.manifest_for("epic", tmp_path, annotations=annotations, unlabelled=0)
    report = kept.attrs["report"]
    assert (report.found, len(report.missing)) == (2, 270)
    assert report.extra == ("videos/train/P01/P99_01.MP4",)
    assert len(kept) == 2 * 28472
    dropped = datasets.manifest_for("epic", tmp_path, annotations=annotations, unlabelled=0, missing="drop")
    assert set(dropped["source"]) == {"videos/train/P01/P01_01.MP4", "videos/train/P01/P01_10.MP4"}
    named = dropped.attrs["report"].dropped["the file is missing"]
    assert len(named) + len(dropped) == len(kept)
    pd.testing.assert_frame_equal(dropped, kept[kept["clip_id"].isin(dropped["clip_id"])].reset_index(drop=True))


def test_dataset_manifests_survive_the_file(tmp_path):
    touch(tmp_path, "a/1.avi", "b/2.mp4")
    rows = datasets.manifest_for("folder", tmp_path)
    write_manifest(rows, tmp_path / "clips.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "clips.csv", tmp_path), rows)


def test_an_empty_result_is_an_error(tmp_path):
    (tmp_path / "walk").mkdir()
    with pytest.raises(ManifestError, match="holds no videos in class folders"):
        datasets.manifest_for("folder", tmp_path)

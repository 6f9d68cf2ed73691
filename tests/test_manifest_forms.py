"""Short manifests: ids made of sources, class names numbered, columns that seem to be meant, several roots."""

from __future__ import annotations

import logging
import math
import os

import pandas as pd
import pytest
from make_videos import pictures, write

import kdcache
from kdcache.errors import ManifestError, OptionError, SourceError
from kdcache.manifest import NUMBERED, read_manifest, validate, write_manifest
from kdcache.roots import Roots
from kdcache.runs.config import load_config
from kdcache.sources import find, open_source

CALL = {"streams": ["rgb"], "bar": False, "device": "cpu"}


def save(folder, text, name="clips.csv"):
    path = folder / name
    path.write_text(text)
    return path


def problems(path, **options):
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    return caught.value.problems


def test_source_and_label_are_enough(tmp_path, caplog):
    text = "label,source\nwave,b/2.avi\nbend,b/1.avi\n,a.tar.gz\nwave,c/v1.0\n"
    with caplog.at_level(logging.INFO, "kdcache"):
        rows = read_manifest(save(tmp_path, text))
    assert list(rows) == ["clip_id", "source", "start_s", "stop_s", "label", "class"]
    assert rows["clip_id"].tolist() == ["b/2", "b/1", "a", "c/v1.0"]
    assert rows["start_s"].isna().all()
    assert rows["label"].tolist() == [1, 0, pd.NA, 1]
    assert rows["class"].tolist() == ["wave", "bend", "", "wave"]
    assert rows.attrs[NUMBERED]
    assert "2 class names are numbered in sorted order (0 bend, 1 wave)" in caplog.text
    write_manifest(rows, tmp_path / "out.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "out.csv"), rows)
    made = validate(pd.DataFrame({"source": ["b/2.avi", "b/1.avi"], "label": ["wave", "bend"]}))
    assert made[["clip_id", "label"]].to_numpy().tolist() == [["b/2", 1], ["b/1", 0]]


def test_spans_of_one_source_have_ids_that_do_not_depend_on_other_rows(tmp_path):
    head = "source,start_s,stop_s\n"
    lines = ["a.mp4,,\n", "a.mp4,11.0,12.07\n", "a.mp4,,3\n", "a.mp4,13.50,\n", "a.mp4,1234567.25,1234568\n"]
    ids = ["a", "a@11-12.07", "a@-3", "a@13.5-", "a@1234567.25-1234568"]
    assert read_manifest(save(tmp_path, head + "".join(lines)))["clip_id"].tolist() == ids
    assert read_manifest(save(tmp_path, head + "".join(lines[::-1])))["clip_id"].tolist() == ids[::-1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("source\na.avi\na.mp4\n", "line 3: would be clip 'a' as line 2; add a column clip_id"),
        ("source,start_s\na.avi,1\na.avi,1.0\n", "line 3: would be clip 'a@1-' as line 2"),
        ("clip_id,label\na,0\n", "line 1: required column 'source' is missing"),
        ("source,start\na.avi,1\n", "line 1: column 'start_s' is missing (is it 'start'?); rename that one; times are"),
        ("source,start_s,end_s\na.avi,1,2\n", "line 1: column 'stop_s' is missing (is it 'end_s'?)"),
        ("source,start_frame\na.avi,1\n", "line 1: column 'start_s' is missing (is it 'start_frame'?)"),
        ("ClipID,source\nx,a.avi\n", "line 1: column 'clip_id' is missing (is it 'ClipID'?)"),
        ("source,label\na.avi,run\nb.avi,3\n", "line 2: label 'run' is not a whole number"),
        ("source,label,class\na.avi,run,walk\n", "line 1: label holds class names, and so does the column class"),
        ("source\nhttps://example.com/a.mp4\n", "is an address; give that of its folder as --root"),
        ("source\n/data/a.mp4\n", "is absolute; give it relative to the data root, or allow absolute paths with"),
        ('source\n""\n', "line 2: source is empty"),
    ],
)
def test_what_is_refused(tmp_path, text, found):
    each = problems(save(tmp_path, text))
    assert len(each) == 1
    assert found in each[0]


def test_columns_that_only_sound_alike_are_left_alone(tmp_path):
    text = "source,class_id,stopped,started_by,toe,name\na.avi,1,yes,me,3,x\n"
    assert len(read_manifest(save(tmp_path, text))) == 1


def test_a_complete_manifest_is_asked_for_in_a_cache(tmp_path):
    assert "required column 'clip_id' is missing" in problems(save(tmp_path, "source\na.avi\n"), complete=True)[0]


@pytest.fixture
def roots(tmp_path):
    """A: a.mp4, same.mp4, other.mp4; B: b.mp4, same.mp4, and an other.mp4 of its own."""
    a, b = tmp_path / "A", tmp_path / "B"
    for folder in (a, b):
        folder.mkdir()
        write(folder / "same.mp4", pictures(3, 64, 48, seed=7))
    write(a / "a.mp4", pictures(3, 64, 48, seed=1))
    write(b / "b.mp4", pictures(4, 64, 48, seed=2))
    write(a / "other.mp4", pictures(3, 64, 48, seed=3))
    write(b / "other.mp4", pictures(3, 64, 48, seed=4))
    return a, b


def test_sources_are_looked_for_in_each_root(roots, tmp_path):
    names = ["a.mp4", "b.mp4", "same.mp4", "other.mp4", "none.mp4"]
    rows = validate(pd.DataFrame({"source": names}))
    report = kdcache.extract(rows, list(roots), tmp_path / "out", **CALL)
    reasons = {f.clip_id: f.reason for f in report.failures}
    assert reasons.keys() == {"other", "none"}, reasons
    assert report.extracted == 3
    assert f"{roots[0] / 'other.mp4'} and {roots[1] / 'other.mp4'} differ" in reasons["other"]
    assert reasons["none"].startswith(f"none.mp4: not below {roots[0]} or {roots[1]}")
    alone = kdcache.extract(rows.iloc[:1], roots[0], tmp_path / "out", **CALL)  # keys know nothing of roots
    assert alone.cached == 1


def test_nothing_leaves_any_of_the_roots(roots, tmp_path):
    a, b = roots
    os.symlink(b / "b.mp4", a / "link.mp4")
    found = problems(save(tmp_path, "source\nlink.mp4\n"), root=roots)
    assert "leaves the data root through a symbolic link" in found[0]
    with pytest.raises(SourceError, match="leads out of the root"):
        find(Roots.of(roots), "link.mp4")
    with pytest.raises(SourceError, match="leads out of the root"):
        find(Roots.of(roots), "../B/b.mp4")


def test_absolute_sources_are_taken_when_they_are_allowed(roots, tmp_path):
    a, b = roots
    path = save(tmp_path, f"source,label\n{b / 'b.mp4'},bend\na.mp4,run\n")
    assert "is absolute" in problems(path)[0]
    report = kdcache.extract(path, a, tmp_path / "out", allow_absolute=True, **CALL)
    assert report.extracted == 2
    assert kdcache.Cache(tmp_path / "out").clips["source"].tolist() == [str(b / "b.mp4"), "a.mp4"]
    relative = save(tmp_path, "clip_id,source\nb,b.mp4\n", "other.csv")
    assert kdcache.extract(relative, b, tmp_path / "out", **CALL).cached == 1
    lost = kdcache.extract(path, None, tmp_path / "lost", allow_absolute=True, **CALL)
    assert [f.reason for f in lost.failures] == [
        "a.mp4: a relative path, and no root was given; pass --root with its folder."
    ]
    with pytest.raises(OptionError, match="No data root was given"):
        kdcache.extract(relative, None, tmp_path / "out", **CALL)
    with pytest.raises(OptionError, match="the data root is not a folder"):
        kdcache.extract(relative, [b, tmp_path / "C"], tmp_path / "out", **CALL)
    assert problems(save(tmp_path, "source\nC:\\a.mp4\n"), allow_absolute=True)[0].endswith("is no path of this system")


def test_an_address_is_no_source(tmp_path):
    for source in ("https://example.com/a.mp4", "s3:/bucket/a.mp4"):
        with pytest.raises(SourceError, match="an address, and only files are opened"):
            open_source(source)


def test_class_numbers_of_two_manifests_are_not_mixed_in_one_cache(roots, tmp_path):
    a, _ = roots
    out = tmp_path / "out"
    kdcache.extract(save(tmp_path, "source,label\na.mp4,run\nsame.mp4,walk\n"), a, out, **CALL)
    with pytest.raises(OptionError, match=r"label 0 is class 'run', and in this manifest.*it is 'jump'"):
        kdcache.extract(save(tmp_path, "source,label\nother.mp4,jump\nsame.mp4,walk\n", "b.csv"), a, out, **CALL)
    kdcache.extract(save(tmp_path, "source,label\nother.mp4,run\nsame.mp4,walk\n", "b.csv"), a, out, **CALL)
    every = "source,label\na.mp4,run\nsame.mp4,walk\nother.mp4,jump\n"
    assert kdcache.extract(save(tmp_path, every), a, out, **CALL).cached == 3
    clips = kdcache.Cache(out).clips.set_index("clip_id")
    assert clips["label"].to_dict() == {"a": 1, "same": 2, "other": 0}


def test_a_fit_keeps_its_roots(roots, tmp_path):
    """Its configuration names all of them, and repeats the fit."""
    a, b = roots
    text = f"source,label,split\na.mp4,run,train\nb.mp4,walk,train\n{a / 'other.mp4'},run,test\nsame.mp4,walk,test\n"
    options = {
        "epochs": 1,
        "batch_size": 2,
        "frames": 2,
        "size": 32,
        "validation": 0.0,
        "device": "cpu",
        "init": "random:0",
    }
    fit = kdcache.fit("resnet34", save(tmp_path, text), [a, b], tmp_path / "fit", allow_absolute=True, **options)
    assert not fit.failures
    from kdcache.runs.fit import load_config as load_fit

    assert load_fit(fit.path / "config.toml")["root"] == [str(a), str(b)]
    assert load_config(fit.path / "config.toml")["allow_absolute"] is True
    again = kdcache.fit(**load_fit(fit.path / "config.toml"), out=tmp_path / "fit")
    assert again.metrics == fit.metrics
    assert not math.isnan(next(iter(kdcache.predict(fit.path, b / "b.mp4"))).seconds)

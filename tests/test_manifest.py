"""The manifest contract: what is accepted, what is refused and how, and that writing loses nothing."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import ManifestError
from kdcache.manifest import read_manifest, skeletons_of, validate, write_manifest

HEADER = "clip_id,source,start_s,stop_s,label\n"


def save(folder, text, name="clips.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path, root=None):
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, root)
    assert str(path) in str(caught.value)
    return caught.value.problems


def test_types_and_missing_values(tmp_path):
    path = save(tmp_path, HEADER.strip() + ",verb,fps,split\na,v/a.mp4,,,,3,60,\nb,v/b.mp4,0.1,2.5e0,7,,nan,test\n")
    df = read_manifest(path, tmp_path)
    assert df.dtypes["start_s"] == df.dtypes["stop_s"] == np.float64
    assert df.dtypes["label"] == df.dtypes["verb"] == pd.Int64Dtype()
    assert math.isnan(df.start_s[0])
    assert math.isnan(df.stop_s[0])
    assert (df.start_s[1], df.stop_s[1]) == (0.1, 2.5)
    assert df.label[0] is pd.NA
    assert df.label[1] == 7
    assert df.verb.tolist() == [3, pd.NA]
    assert df.fps.tolist() == ["60", "nan"]  # an unknown column stays as it is written
    assert df.split.tolist() == ["", "test"]


def test_byte_order_mark_crlf_quotes_and_blank_lines(tmp_path):
    head = "\ufeffclip_id,source,start_s,stop_s,note\r\n\r\n"
    text = head + '"a, 1",v.mp4,0,1,"say ""hi"",\r\ntwice"\r\n\r\nb,v.mp4,1,2,\r\n'
    df = read_manifest(save(tmp_path, text))
    assert df.clip_id.tolist() == ["a, 1", "b"]
    assert df.note.tolist() == ['say "hi",\r\ntwice', ""]


def test_every_bad_row_is_named_with_its_line_in_one_error(tmp_path):
    rows = [
        "ok,v.mp4,0,1,0",
        "ok,v.mp4,0,1,0",
        ",v.mp4,0,1,0",
        "c,,0,1,0",
        "d,v.mp4,zero,1,0",
        "e,v.mp4,nan,1,0",
        "f,v.mp4,0,inf,0",
        "g,v.mp4,-1,1,0",
        "h,v.mp4,2,2,0",
        "i,v.mp4,3,2,0",
        "j,v.mp4,,0,0",
        "k,v.mp4,0,1,1.5",
        "l,v.mp4,0,1,-1",
        "m,v.mp4,0,1,nan",
        "n,/etc/v.mp4,0,1,0",
        "o,a/../../v.mp4,0,1,0",
        "p,C:\\v.mp4,0,1,0",
        "q,v.mp4,0,1",
        "r,v.mp4,0,1,0,9",
        "s,v.mp4,1_0,20,0",
        "t,..\\v.mp4,0,1,0",
        "u,v.mp4,0,1,99999999999999999999",
        "fine,a/../v.mp4,0,1,0",
    ]
    found = problems(save(tmp_path, HEADER + "\n".join(rows) + "\n"))
    assert [p.split(":")[0] for p in found] == [f"line {i}" for i in range(3, 24)]
    expected = {
        3: "'ok' is already on line 2",
        4: "clip_id is empty",
        5: "source is empty",
        6: "start_s 'zero' is not a number",
        7: "start_s 'nan' is not a finite",
        8: "stop_s 'inf' is not a finite",
        9: "start_s '-1' is negative",
        10: "not after start_s 2.0",
        11: "not after start_s 3.0",
        12: "not after the source's start",
        13: "label '1.5' is not a whole number",
        14: "label '-1' is negative",
        15: "label 'nan' is not a whole number",
        16: "is absolute",
        17: "leaves the data root",
        18: "is absolute",
        19: "has 4 fields where the header has 5",
        20: "has 6 fields",
        21: "start_s '1_0' is not a number",
        22: "leaves the data root",
        23: "not a whole number",
    }
    for problem, (line, text) in zip(found, expected.items(), strict=True):
        assert problem.startswith(f"line {line}: ")
        assert text in problem


def test_line_numbers_count_lines_not_rows(tmp_path):
    text = 'clip_id,source,start_s,stop_s,note\na,v.mp4,0,1,"two\nlines"\n\nb,v.mp4,5,1,\n'
    assert problems(save(tmp_path, text)) == ["line 5: stop_s 1.0 is not after start_s 5.0"]


def test_missing_columns_are_reported_beside_bad_rows(tmp_path):
    found = problems(save(tmp_path, "clip_id,sources,start\na,v.mp4,0\na,v.mp4,1\n"))
    assert any("'source' is missing (is it 'sources'?)" in p for p in found)
    assert any("'start_s' is missing (is it 'start'?)" in p for p in found)
    assert any("line 3" in p and "already on line 2" in p for p in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip_id;source;start_s;stop_s\na;v.mp4;0;1\n", "separated by semicolons"),
        ("clip_id\tsource\tstart_s\tstop_s\na\tv.mp4\t0\t1\n", "separated by tabs"),
        ("", "is empty"),
        (b"clip_id,source,start_s,stop_s\n\xff,v.mp4,0,1\n", "not UTF-8"),
        ('clip_id,source,start_s,stop_s\n"a,v.mp4,0,1\n', "not valid CSV"),
        ("clip_id,source,start_s,stop_s,stop_s\na,v.mp4,0,1,2\n", "'stop_s' appears twice"),
        ("clip_id,source,start_s,stop_s\na\x07,v.mp4,0,1\n", "control character"),
        ("clip_id,source,start_s,stop_s\na,v\0.mp4,0,1\n", "NUL"),
    ],
)
def test_unusable_files_say_why(tmp_path, text, expected):
    found = problems(save(tmp_path, text))
    assert len(found) == 1
    assert expected in found[0]


def test_missing_file(tmp_path):
    assert "No such file" in problems(tmp_path / "absent.csv")[0]


def test_header_alone_is_an_empty_manifest(tmp_path):
    df = read_manifest(save(tmp_path, HEADER))
    assert len(df) == 0
    assert df.dtypes["start_s"] == np.float64
    assert df.dtypes["label"] == pd.Int64Dtype()


def test_symbolic_links_may_not_lead_out_of_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "in").mkdir(parents=True)
    outside.mkdir()
    (outside / "v.mp4").touch()
    (root / "in" / "v.mp4").touch()
    os.symlink(outside, root / "out")
    os.symlink(outside / "v.mp4", root / "in" / "far.mp4")
    os.symlink(root / "in" / "v.mp4", root / "in" / "near.mp4")
    os.symlink(root, tmp_path / "alias")
    good = save(tmp_path, HEADER + "a,in/near.mp4,0,1,\nb,in/v.mp4,0,1,\nc,in/absent.mp4,0,1,\n")
    assert len(read_manifest(good, tmp_path / "alias")) == 3
    bad = save(tmp_path, HEADER + "a,out/v.mp4,0,1,\nb,in/far.mp4,0,1,\nc,in/v.mp4,0,1,\nd,out/../v.mp4,0,1,\n")
    assert [p[:7] for p in problems(bad, root)] == ["line 2:", "line 3:", "line 5:"]
    assert len(read_manifest(bad)) == 4  # without a root only the letters of the path are judged


def test_printed_list_is_capped_but_nothing_is_lost(tmp_path):
    path = save(tmp_path, HEADER + "".join(f"c{i},v.mp4,2,1,\n" for i in range(1000)))
    with pytest.raises(ManifestError, match=r"… and 950 more") as caught:
        read_manifest(path)
    assert len(caught.value.problems) == 1000
    assert len(str(caught.value).splitlines()) < 60


def frame(**columns):
    rows = len(next(iter(columns.values())))
    base = {"clip_id": [f"c{i}" for i in range(rows)], "source": ["v.mp4"] * rows, "start_s": [0.0] * rows}
    return pd.DataFrame({**base, "stop_s": [1.0] * rows, **columns})


def test_validate_accepts_what_notebooks_make():
    df = validate(
        frame(
            label=[1.0, np.nan],
            verb=pd.array([2, None], dtype="Int64"),
            stop_s=[None, 3],
            fps=[25, 30],
            split=["a", None],
        )
    )
    assert df.label.tolist() == [1, pd.NA]
    assert df.verb.tolist() == [2, pd.NA]
    assert math.isnan(df.stop_s[0])
    assert df.fps.tolist() == ["25", "30"]
    assert df.split.tolist() == ["a", ""]


def test_validate_names_rows_by_position():
    with pytest.raises(ManifestError, match=r"^mine: 3 problems; ") as caught:
        validate(frame(label=[0, 0.5, 1], stop_s=[np.inf, 1, 0.0]), "mine")
    assert [p[:6] for p in caught.value.problems] == ["row 0:", "row 1:", "row 2:"]


def test_a_bad_frame_is_not_written(tmp_path):
    path = save(tmp_path, "old")
    with pytest.raises(ManifestError):
        write_manifest(frame(clip_id=["same", "same"]), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["clips.csv"]


def test_names_of_another_encoding_are_refused():
    with pytest.raises(ManifestError, match=r"row 1: source .* not valid Unicode"):
        validate(frame(source=["ok.mp4", "caf\udce9.mp4"]))


@pytest.mark.parametrize("cell", ["x", '"x"'])  # without quotes the columns are not parsed cell by cell
def test_a_file_of_too_many_columns_is_one_sentence(tmp_path, cell):
    wide = [f"c{i}" for i in range(4095)]
    lines = f"source,{','.join(wide)}\na.mp4,{','.join([cell] * 4095)}\n"
    assert len(read_manifest(save(tmp_path, lines)).columns) == 4096 + 3
    header, row = lines.splitlines()
    (problem,) = problems(save(tmp_path, f"{header},one\n{row},more\n"))
    assert problem.startswith("has 4,097 columns, more than the 4,096")


times = st.floats(0, 1e7, allow_nan=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=8).filter(str.strip)


@st.composite
def manifests(draw):
    ids = draw(st.lists(names.filter(str.isprintable), max_size=8, unique=True))
    rows = []
    for clip in ids:
        start = draw(st.none() | times)
        stop = draw(st.none() | times.map(lambda t, s=start: (s or 0) + t).filter(lambda t, s=start: t > (s or 0)))
        source = draw(st.sampled_from(["a.mp4", "b/c d.mp4", 'q"uote,.avi', "é/ü.mov", "x/../y"]))
        label = draw(st.none() | st.integers(0, 10**17))
        rows.append((clip, source, start, stop, label, draw(words), draw(words)))
    df = pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "label", "split", "any,thing"])
    df["label"] = pd.array([r[4] for r in rows], dtype="Int64")
    return df


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_written_manifests_read_back_equal(tmp_path_factory, df):
    path = tmp_path_factory.mktemp("m") / "clips.csv"
    expected = validate(df)
    write_manifest(df, path)
    again = read_manifest(path)
    pd.testing.assert_frame_equal(again, expected, check_exact=True)
    first = path.read_bytes()
    write_manifest(again, path)
    assert path.read_bytes() == first
    read = pd.read_csv(path, keep_default_na=False)
    assert len(read) == len(df)


def test_skeleton_files_are_judged_as_sources_are(tmp_path):
    table = pd.DataFrame({"clip_id": ["a", "b"], "source": ["a.mp4", "b.mp4"], "start_s": "", "stop_s": ""})
    rows = validate(table.assign(skeleton=["joints/a.txt", ""]), root=tmp_path)
    assert skeletons_of(rows).tolist() == ["joints/a.txt", "b.mp4"]
    assert skeletons_of(rows.drop(columns="skeleton")).tolist() == ["a.mp4", "b.mp4"]
    with pytest.raises(ManifestError, match=r"'\.\./b\.txt' leaves the data root"):
        validate(table.assign(skeleton=["", "../b.txt"]), root=tmp_path)

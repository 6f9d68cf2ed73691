"""Many sources at once, as where every clip has one of its own: the answers and refusals of asking for each alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache import roots
from kdcache.csv_text import read_columns, read_table, table_text
from kdcache.errors import SourceError
from kdcache.extraction import source_memory
from kdcache.extraction.source_memory import DIGEST, FILE, Look, load_memory, remember_looks
from kdcache.roots import Roots, wrong_paths
from kdcache.sources import Finder, find, signature


@pytest.fixture
def root(tmp_path):
    """Files and links in two folders, of which one lies elsewhere."""
    base, other = tmp_path / "videos", tmp_path / "other"
    for folder in (base / "a", other):
        folder.mkdir(parents=True)
    for i in range(10):
        (base / "a" / f"{i}.mp4").touch()
        (other / f"{i}.mp4").touch()
    (base / "a" / "out.mp4").symlink_to(other / "1.mp4")
    (base / "a" / "in.mp4").symlink_to(base / "a" / "1.mp4")
    (base / "b").symlink_to(other)
    return base


NAMES = [f"a/{i}.mp4" for i in range(12)] + [
    "a/out.mp4",
    "a/in.mp4",
    "a/..",
    "a/.",
    "b/1.mp4",
    "c/1.mp4",
    "1.mp4",
    "/x",
]


@pytest.mark.parametrize("sparse", [0, 4])
def test_links_are_found_in_a_folder_that_is_listed(root, monkeypatch, sparse):
    expected = wrong_paths(NAMES, Roots.of(root))
    assert set(expected) == {"a/out.mp4", "b/1.mp4", "/x"}
    monkeypatch.setattr(roots, "_MANY", 1)
    monkeypatch.setattr(roots, "_SPARSE", sparse)  # 0: a folder has too many entries
    assert wrong_paths(NAMES, Roots.of(root)) == expected
    plain = [name for name in NAMES if name not in ("a/..", "a/.", "/x")]
    assert wrong_paths(plain, Roots.of(root)) == {name: expected[name] for name in plain if name in expected}
    assert not wrong_paths([name for name in plain if name[0] != "b" and "out" not in name], Roots.of(root))


NAME = st.text(st.sampled_from("a/.\\: -é\0\n"), max_size=6) | st.sampled_from(["http:/a", "s3://a/b", "a/..b", "C:/a"])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(NAME, max_size=3))
def test_plain_names_are_told_at_once(texts):
    found = wrong_paths(texts, Roots.of("/nowhere"))
    with pytest.MonkeyPatch.context() as patch:
        for short_cut in ("_PLAIN", "_ALL_PLAIN"):
            patch.setattr(roots, short_cut, re.compile("(?!)"))
        assert wrong_paths(texts, Roots.of("/nowhere")) == found


def test_a_memory_as_it_was_written_is_not_checked_row_by_row(tmp_path, monkeypatch):
    looks = [Look(f"/v/{i}.mp4", i, 10 + i, f"{i:032x}", f"{i:032x}" if i % 2 else "") for i in range(4)]
    expected = {look.place: look for look in looks}
    path, digest = tmp_path / FILE, tmp_path / DIGEST
    remember_looks(path, expected)
    with monkeypatch.context() as patch:
        patch.setattr(source_memory, "check_of", None)
        assert load_memory(path) == expected
    path.write_text(path.read_text().replace(f"{2:032x}", f"{5:032x}"))
    assert load_memory(path) == {look.place: look for look in looks if look.size != 2}
    remember_looks(path, expected)
    assert load_memory(path) == expected
    for content in (None, "", "0" * 64 + "\n"):
        digest.unlink(missing_ok=True)
        if content is not None:
            digest.write_text(content)
        assert load_memory(path) == expected
    digest.unlink()
    digest.mkdir()
    assert load_memory(path) == expected


@pytest.fixture
def tree(tmp_path):
    """A root with links inside it, out of it and to themselves."""
    root, outside = tmp_path / "videos", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    for path in (root / "one.mp4", root / "a" / "two.mp4", outside / "three.mp4"):
        path.write_bytes(b"x")
    (root / "link.mp4").symlink_to("a/two.mp4")
    (root / "b").symlink_to("a")
    (root / "out").symlink_to(outside)
    (root / "out.mp4").symlink_to(outside / "three.mp4")
    (root / "loop").symlink_to("loop")
    (tmp_path / "also").symlink_to(root)
    return tmp_path


SOURCES = [
    "one.mp4",
    "a/two.mp4",
    "b/two.mp4",
    "link.mp4",
    "a/missing.mp4",
    "missing/two.mp4",
    "./one.mp4",
    "a//two.mp4",
]
SOURCES += [
    "a/../one.mp4",
    "../videos/one.mp4",
    "../outside/three.mp4",
    "out/three.mp4",
    "out.mp4",
    "loop",
    "loop/one.mp4",
]
SOURCES += [
    "",
    ".",
    "..",
    "a/",
    "a/.",
    "a/..",
    "x" * 300,
    "x" * 300 + "/one.mp4",
    "a\0b",
    "/etc/passwd",
    "one.mp4/two.mp4",
]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("names", [("videos",), ("also",), ("videos", "outside"), ()])
def test_many_are_found_as_each_alone(tree, names, absolute):
    roots = Roots.of([tree / name for name in names], absolute)
    finder = Finder(roots)

    def answer(ask):
        try:
            return str(ask())
        except SourceError as error:
            return error

    for source in [*SOURCES, *SOURCES]:  # also once folders are known
        one, other = answer(lambda: find(roots, source)), answer(lambda: finder.find(source)[0])  # noqa: B023
        assert (type(one), str(one)) == (type(other), str(other)), source


def test_a_file_comes_with_what_the_system_says_of_it(tree):
    finder = Finder(Roots.of(tree / "videos"))
    for source, known in (("one.mp4", True), ("b/two.mp4", True), ("a", False), ("link.mp4", False), ("no.mp4", False)):
        path, state = finder.find(source)
        assert (state is not None) == known
        assert state is None or (state.st_size, state.st_mtime_ns) == signature(path)


@pytest.mark.parametrize("path", ["a.mp4", "=a.mp4", "'=a", "a,b.mp4", 'a"b', "é\n.mp4"])
def test_columns_are_those_of_the_rows(tmp_path, path):
    rows = [(path, "1"), ("b.mp4", ""), ("-3", "'")]
    (tmp_path / "t.csv").write_text(table_text(["path", "size"], rows), encoding="utf-8", newline="")
    found = read_columns(tmp_path / "t.csv", ["path"])
    assert list(zip(found["path"], found["size"], strict=True)) == rows
    assert [tuple(row.values()) for row in read_table(tmp_path / "t.csv", ["path"])] == rows

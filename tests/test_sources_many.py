"""Paths of many sources: the answers and refusals of asking for each alone."""

from __future__ import annotations

import pytest

from kdcache.csv_text import read_columns, read_table, table_text
from kdcache.errors import SourceError
from kdcache.roots import Roots
from kdcache.sources import Finder, find, signature


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

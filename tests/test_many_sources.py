"""Short cuts for manifests in which every clip has a source of its own: they answer as looking at each source does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache import roots
from kdcache.errors import SourceError
from kdcache.extraction import source_memory
from kdcache.extraction.source_memory import DIGEST, FILE, Look, load_memory, remember_looks
from kdcache.roots import Roots, wrong_paths
from kdcache.sources.paths import Finder, find


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


def test_a_finder_finds_what_find_finds(root):
    finder, where = Finder(Roots.of(root)), Roots.of(root)
    for name in [*NAMES, *NAMES]:
        try:
            expected = str(find(where, name))
        except SourceError as error:
            with pytest.raises(SourceError, match=re.escape(str(error))):
                finder.find(name)
        else:
            assert finder.find(name)[0] == expected


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

"""Submissions from elsewhere: what is no archive or JSON, or far too much of it, is one sentence with its name."""

from __future__ import annotations

import os
import zipfile
from types import SimpleNamespace

import pytest

from kdcache.errors import KdcacheError, SourceError
from kdcache.runs.challenge_file import Problems, read_file


def _packed(path, changes):
    """A zip of ``test.json`` in which bytes are changed: (signature, offset from it, bytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test.json", b"{}" * 50)
    data = bytearray(path.read_bytes())
    for mark, at, new in changes:
        start = data.index(mark) + at
        data[start : start + len(new)] = new
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(b"PK\1\2", 8, b"\1\0"), (b"PK\3\4", 6, b"\1\0")], "encrypted"),
        ([(b"PK\1\2", 10, b"\x63\0"), (b"PK\3\4", 8, b"\x63\0")], "compression"),
        ([(b"PK\3\4", 39, b"\xff\xff")], "zip"),
        ([(b"PK\1\2", 24, b"\0\0\0\x7f")], "more than 512 MiB"),
    ],
)
def test_archives_of_strangers_are_refused_by_name(tmp_path, changes, words):
    path, challenge = tmp_path / "a.zip", SimpleNamespace(tests={"test.json": ""}, edition="epic100")
    _packed(path, changes)
    with pytest.raises(SourceError, match=rf"a\.zip.*{words}"):
        read_file(path, challenge)


def test_json_of_strangers_is_refused_by_name(tmp_path):
    challenge, path = SimpleNamespace(tests={}, edition="epic100"), tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(SourceError, match=r"a\.json: cannot be read as JSON"):
        read_file(path, challenge)
    path.write_text("{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"199999":0}')  # none is looked for in each
    with pytest.raises(SourceError, match=r"key '199999' occurs twice"):
        read_file(path, challenge)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(KdcacheError, match="no plain file"):
        read_file(tmp_path / "pipe.json", challenge)


def test_a_score_of_four_hundred_digits_is_named():
    problems = Problems(SimpleNamespace(verbs=1, nouns=1), "a.json")
    problems._finite("uid", "verb", {"0": 10**400})
    assert "must be a finite number" in problems.sentences()[0]

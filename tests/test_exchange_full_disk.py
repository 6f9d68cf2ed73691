"""Exports onto a disk that is full, and into an LMDB that is damaged: one sentence, and the same call goes on."""

from __future__ import annotations

from pathlib import Path

import clips_cache
import pytest
from full_disk import files_of

from kdcache import exchange
from kdcache.errors import StoreError, WriteError

STREAM = clips_cache.STREAM


def export(how: str, cache: Path, out: Path) -> exchange.ExportReport:
    named = {"streams": [STREAM]} if how == "webdataset" else {"stream": STREAM}
    return getattr(exchange, f"export_{how}")(cache, out, progress=False, **named)


def wide_cache(folder: Path) -> Path:
    """Vectors that take some 4 kB a clip, more than the marker and the manifest of an export."""
    table = clips_cache.rows(train=4, test=0)
    return clips_cache.write(folder, table, {STREAM: clips_cache.arrays(table, width=400)})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".mdb"}


@pytest.mark.parametrize("how", ["npy", "lmdb", "webdataset"])
def test_an_export_onto_a_full_disk_is_one_sentence_and_goes_on(tmp_path, how):
    cache = wide_cache(tmp_path / "cache")
    export(how, cache, tmp_path / "whole")
    most = max(path.stat().st_size for path in (tmp_path / "whole").glob("*[0-9].*" if how != "lmdb" else "*.mdb"))
    stop = tmp_path / "stopped"
    for room in (most - 1, most // 2, 1200):
        with (
            files_of(room),
            pytest.raises(WriteError, match=r"/stopped/\S+ cannot be written \(.+\): .*goes on") as full,
        ):
            export(how, cache, stop)
        assert "\n" not in str(full.value)
        assert not [path for path in stop.iterdir() if path.name.endswith(".partial")]
    export(how, cache, stop)
    assert content(stop) == content(tmp_path / "whole")
    assert export(how, cache, stop).written == 0  # whatever was written before is whole


@pytest.mark.parametrize("damage", [lambda data: b"x" * 100, lambda data: data[:-4096]], ids=["another", "cut"])
def test_an_lmdb_that_cannot_be_added_to_is_named(tmp_path, damage):
    cache = wide_cache(tmp_path / "cache")
    export("lmdb", cache, tmp_path / "out")
    path = tmp_path / "out" / "data.mdb"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"out/data\.mdb: .*; delete .*/out and export again"):
        export("lmdb", cache, tmp_path / "out")

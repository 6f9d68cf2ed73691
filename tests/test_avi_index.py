"""AVI files whose chunks were lost: what decoders go on without is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_videos import pictures, write

from kdcache.errors import SourceError
from kdcache.sources import check, open_source


@pytest.fixture(scope="module")
def avi(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("avi") / "v.avi", pictures(30), codec="mpeg4")


def changed(avi: Path, tmp_path: Path, data: bytes) -> Path:
    assert data != avi.read_bytes()
    (tmp_path / "v.avi").write_bytes(data)
    return tmp_path / "v.avi"


def test_a_whole_file_is_read(avi):
    with open_source(avi) as source:
        assert len(source.times) == 30


def test_an_entry_of_the_index_that_points_elsewhere(avi, tmp_path):
    data = bytearray(avi.read_bytes())
    at = data.rindex(b"idx1") + 8 + 5 * 16
    data[at + 8] ^= 4
    with pytest.raises(SourceError, match=r"chunk 5 of 30 is not where its index says"):
        open_source(changed(avi, tmp_path, data))


def test_an_index_that_ends_early(avi, tmp_path):
    data = bytearray(avi.read_bytes())
    at = data.rindex(b"idx1")
    data[at + 4 : at + 8] = (28 * 16).to_bytes(4, "little")
    with pytest.raises(SourceError, match=r"damaged: .*28"):
        check(changed(avi, tmp_path, data))


def test_a_frame_that_is_lost_with_the_way_to_the_index(avi, tmp_path):
    """Zeros over the head of the list of frames and the first frame: a decoder begins with the second."""
    data = bytearray(avi.read_bytes())
    at = data.index(b"movi") - 8
    first = int.from_bytes(data[at + 16 : at + 20], "little")
    data[at : at + 20 + first] = bytes(20 + first)
    with pytest.raises(SourceError, match="damaged"):
        check(changed(avi, tmp_path, data))


def test_every_real_avi_is_left_alone(shared):
    for path in [*shared.glob("data/weizmann/bend/*.avi"), *shared.glob("data/videos/*.avi")]:
        open_source(path).close()

"""Bytes that change anywhere in a cache: what is read is what was written, or a sentence says what is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import FEATURE, FLOW, RAW, RGB, add, name, payload, record

from kdcache.errors import KdcacheError
from kdcache.store import Cache, load_index, verify
from kdcache.store.jpeg import decode_jpeg

CLIPS = range(3)
STREAMS = (FEATURE, FLOW, RGB, RAW)
FAST = settings(
    max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=[None, "zstd"])
def whole(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    add(folder, CLIPS, STREAMS, codec=request.param)
    return folder


@pytest.fixture(scope="module")
def expected(whole) -> dict[str, list[Any]]:
    wanted = {s: [payload(s, i) for i in CLIPS] for s in (FEATURE, FLOW, RAW)}
    return wanted | {RGB: [decode_jpeg(payload(RGB, i), whole) for i in CLIPS]}


def read_or_refuse(folder: Path, expected: dict[str, list[Any]]) -> int:
    """Read everything, clip by clip; counts what was refused. Whatever is read is right."""
    refused = 0
    try:
        cache = Cache(folder)
    except KdcacheError:
        return 1
    assert set(cache.streams) == set(STREAMS)
    assert cache.clips["clip_id"].tolist() == [name(i) for i in CLIPS]
    assert cache.clips["label"].tolist() == [0, 1, 2]
    for stream in STREAMS:
        for i in CLIPS:
            try:
                (found,) = cache.read(stream, [name(i)])
                frames = cache.frames(stream, [name(i)])[0]
                origin = cache.origin([name(i)])[0]
            except KdcacheError:
                refused += 1
                continue
            np.testing.assert_array_equal(found, expected[stream][i])
            np.testing.assert_array_equal(frames, record(i, STREAMS).frames[stream])
            assert origin == record(i).origin
    return refused


@FAST
@given(st.sampled_from(["shard-00000.h5", "manifest.csv", "manifest.csv.sha256"]), st.data())
def test_no_flip_gives_a_wrong_array(whole, expected, tmp_path_factory, file, draw):
    """Some bits of some bytes in a row; and verify calls whole only what is read without a refusal."""
    folder = tmp_path_factory.mktemp("flipped")
    for path in whole.iterdir():
        shutil.copy(path, folder)
    content = bytearray((folder / file).read_bytes())
    at = draw.draw(st.integers(0, len(content) - 1))
    for offset, bits in enumerate(draw.draw(st.binary(min_size=1, max_size=8))):
        if at + offset < len(content):
            content[at + offset] ^= bits
    (folder / file).write_bytes(content)
    refused = read_or_refuse(folder, expected)
    assert not (verify(folder, progress=False).ok and refused)
    shutil.rmtree(folder)


@FAST
@given(st.sampled_from(["shard-00000.h5", "manifest.csv"]), st.floats(0, 1), st.booleans())
def test_no_cut_gives_a_wrong_array(whole, expected, tmp_path_factory, file, share, zeros):
    """A file cut off, or filled up with zeros behind the cut."""
    folder = tmp_path_factory.mktemp("cut")
    for path in whole.iterdir():
        shutil.copy(path, folder)
    content = (folder / file).read_bytes()
    kept = content[: int(share * len(content))]
    (folder / file).write_bytes(kept + b"\0" * (len(content) - len(kept)) * zeros)
    refused = read_or_refuse(folder, expected)
    assert refused or (folder / file).read_bytes() == content
    shutil.rmtree(folder)


def test_the_whole_cache_is_read(whole, expected):
    assert read_or_refuse(whole, expected) == 0
    assert verify(whole).ok
    assert len(load_index(whole)) == len(CLIPS)

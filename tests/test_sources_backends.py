"""decord and PyAV give the same pixels; which real files decord reads as well, or why a file is refused."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from pathlib import Path

import make_videos as make
import numpy as np
import pytest

from kdcache.errors import SourceError
from kdcache.sources import Source, check, open_source

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord has no wheel here")

# How each file in videos/awkward is dealt with, and what it is: decord as well for plain H.264 and HEVC; PyAV alone for
# what decord cannot read (AV1), reads to other pixels (MPEG-1, WMV, Sorenson leave rounding open; 4:1:0; rotation), or
# might.
AWKWARD = {
    "av1_video.mkv": ("pyav", "av1", 125),
    "big_buck_bunny.mpg": ("pyav", "mpeg1video", 125),  # its clock starts at 0.5 s
    "big_buck_bunny.wmv": ("pyav", "msmpeg4v3", 125),
    "bt709_full_range.mp4": ("pyav", "h264", 30),  # full range
    "corrupted.mp4": ("frame 28 of 50 cannot be decoded", "h264", 50),
    "h265_video.mp4": ("decord", "hevc", 10),
    "sample_sorenson.mov": ("pyav", "svq1", 60),
    "unordered.mov": ("decord", "h264", 4),  # packets out of display order, as B-frames are
    "video_0.mov": ("decord", "h264", 3),
    "video_90.mov": ("pyav", "h264", 3),
    "video_180.mov": ("pyav", "h264", 3),
    "video_270.mov": ("pyav", "h264", 3),
}
PLAIN = {
    "S001C001P001R001A001_rgb.avi": ("decord", 103),  # NTU: B-frames in AVI, so no time stamps to go by
    "flipping_a_pancake.mkv": ("decord", 310),
    "v_GGSY1Qvo990.mp4": ("decord", 355),
    "person01_handclapping_d1_uncomp.avi": ("pyav", 378),  # MPEG-4 Part 2: 1 or 2 grey levels apart in some frames
    "v_SoccerJuggling_g23_c01.avi": ("pyav", 240),
}


def by_decord(path: Path, expected: list[np.ndarray], reads: bool) -> None:
    """decord gives the pixels that PyAV gave, or says that it does not read the file."""
    if reads:
        with open_source(path, decoder="decord") as source:
            assert source.info.backend == "decord"
            assert same(source, expected)
        return
    with pytest.raises(SourceError, match="decord does not read this file right"):
        open_source(path, decoder="decord")


def same(source: Source, expected: list[np.ndarray]) -> bool:
    frames = source.read(range(len(source.times)))
    return all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


@needs_decord
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files_are_read_right_or_refused(shared, name):
    path = shared / "data/videos/awkward" / name
    backend, codec, count = AWKWARD[name]
    if backend not in ("decord", "pyav"):
        with pytest.raises(SourceError, match=rf"{name}: .*{backend}"):
            check(path)
        return
    expected = make.decode_all(path)
    with open_source(path) as source:
        assert (source.info.backend, source.info.codec, len(source.times)) == ("pyav", codec, count)
        assert source.times[0] == 0
        assert same(source, expected)
    by_decord(path, expected, backend == "decord")


def test_real_rotated_files_stand_upright(shared):
    """The four files show one scene; turned as their metadata says they agree but for compression."""
    seen = {}
    for turn in (0, 90, 180, 270):
        with open_source(shared / f"data/videos/awkward/video_{turn}.mov") as source:
            (frame,) = source.read([0])
            assert frame.shape == (source.info.height, source.info.width, 3)
            assert source.info.rotation == turn
            seen[turn] = frame.shape[:2]
    assert seen == {0: (320, 568), 90: (568, 320), 180: (320, 568), 270: (568, 320)}


@needs_decord
@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_by_both(shared, name):
    path = shared / "data/videos" / name
    backend, count = PLAIN[name]
    expected = make.decode_all(path)
    with open_source(path) as source:
        assert (source.info.backend, len(source.times)) == ("pyav", count)
        some = [0, count // 2, count - 1]
        assert all(np.array_equal(g, expected[i]) for g, i in zip(source.read(some), some, strict=True))
    by_decord(path, expected, backend == "decord")


@pytest.mark.parametrize("folder", ["weizmann/walk", "fight/noFight"])
def test_real_sets(shared, folder):
    for path in sorted((shared / "data" / folder).iterdir())[:2]:
        with open_source(path) as source:
            assert same(source, make.decode_all(path)), path


def test_odd_height_egocentric_video(shared):
    path = shared / "data/gtea_s2/S2_Cheese_C1.mp4"
    with open_source(path) as source:
        info = source.info
        assert (info.width, info.height, info.backend, len(source.times)) == (720, 405, "pyav", 634)
        assert info.fps == pytest.approx(15)
        assert sum(1 for _ in source.read([0, 300, 633])) == 3


@pytest.fixture
def plain(tmp_path) -> Path:
    return make.write(tmp_path / "plain.mp4", make.pictures(60))


@needs_decord
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.avi", {}),
        ("open.mp4", {"options": {"x264-params": "open-gop=1:scenecut=0:log-level=none"}}),
        ("tagged.mp4", {"colorspace": 1}),
        ("hevc.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3:keyint=10"}}),
        ("hevc.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
    ],
)
def test_identical_pixels(tmp_path, name, how):
    path = make.write(tmp_path / name, make.pictures(30, 100, 70), **how)
    with open_source(path, decoder="decord") as one, open_source(path, decoder="pyav") as other:
        assert (one.info.backend, other.info.backend) == ("decord", "pyav")
        assert np.array_equal(one.times, other.times)
        assert same(one, list(other.read(range(30))))


@needs_decord
@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("a.avi", {"codec": "mpeg4"}, "mpeg4 in avi"),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}, "vp9 in matroska"),
        ("a.ts", {}, "h264 in mpegts"),
        ("ten.mp4", {"pix_fmt": "yuv420p10le"}, "yuv420p10le"),
        ("full.mp4", {"color_range": 2}, "range 2"),
        ("turned.mp4", {"rotation": 90}, "rotation"),
        ("fields.mp4", {"options": {"x264-params": "tff=1:log-level=none"}}, "interlaced"),
        ("cut.mp4", {"ticks": list(range(-3, 9))}, "not shown"),
    ],
)
def test_files_that_pyav_alone_reads(tmp_path, name, how, why):
    path = make.write(tmp_path / name, make.pictures(12), **how)
    with open_source(path) as source:
        assert same(source, make.decode_all(path))
    with pytest.raises(SourceError, match=rf"{name}: decord does not read this file right \(.*{why}"):
        open_source(path, decoder="decord")


@needs_decord
@pytest.mark.parametrize("width", [16, 22, 24, 32, 48, 56, 64, 72, 80, 96])
def test_narrow_videos_have_three_channels(tmp_path, width):
    path = make.write(tmp_path / "v.mp4", make.pictures(4, width=width))
    expected = make.decode_all(path)
    assert {frame.shape for frame in expected} == {(64, width, 3)}
    by_decord(path, expected, width not in (16, 24, 48, 72))


def test_decord_can_be_missing(plain, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with open_source(plain) as source:
        assert same(source, make.decode_all(plain))
    with pytest.raises(SourceError, match="decord is not installed"):
        open_source(plain, decoder="decord")


@needs_decord
def test_decord_stops_at_an_error(plain, monkeypatch):
    import decord

    following = decord.VideoReader.next
    given: list[int] = []

    def fails(self):
        given.append(len(given))
        if len(given) > 20:
            raise decord.DECORDError("made up")
        return following(self)

    monkeypatch.setattr(decord.VideoReader, "next", fails)
    with open_source(plain, decoder="decord") as source:
        frames = source.read(range(60))
        whole = make.decode_all(plain)
        assert all(np.array_equal(next(frames), whole[i]) for i in range(20))
        with pytest.raises(SourceError, match=r"decord stops before frame 20 \(made up\); use decoder=auto"):
            next(frames)


@needs_decord
def test_patched_up_frames_are_not_passed_on(tmp_path):
    """decord returns frames whose missing parts its decoder made up; what that decoder says is listened to."""
    import decord

    path = make.write(tmp_path / "a.mp4", make.pictures(60), options={"bf": "0", "g": "60"})
    whole = make.decode_all(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 6 // 10
    data[at : at + 25] = bytes(25)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    alone = [f.asnumpy() for f in decord.VideoReader(str(bad), num_threads=1)]
    assert len(alone) == 60  # left to itself, it finds nothing wrong,
    assert not all(np.array_equal(a, b) for a, b in zip(alone, whole, strict=True))  # and is
    for decoder, message in (("auto", r"the file is damaged: frame \d+ of 60"), ("decord", "decord stops before")):
        seen: list[np.ndarray] = []
        with open_source(bad, decoder) as source, pytest.raises(SourceError, match=rf"bad\.mp4: {message}"):
            seen.extend(source.read(range(60)))
        assert all(np.array_equal(a, b) for a, b in zip(seen, whole, strict=False))


def _read_in_child(source: Source, indices: list[int], answer: object) -> None:
    answer.put([int(f.sum()) for f in source.read(indices)])  # type: ignore[attr-defined]
    source.close()
    answer.close()  # type: ignore[attr-defined]
    answer.join_thread()  # type: ignore[attr-defined]
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("decoder", [pytest.param("decord", marks=needs_decord), "pyav"])
def test_a_source_opened_before_a_fork_works_after_it(plain, decoder):
    """A decord reader used across a fork hangs for ever; the child opens its own."""
    context = multiprocessing.get_context("fork")
    with open_source(plain, decoder=decoder) as source:
        frames = source.read(range(60))
        first = [int(next(frames).sum()) for _ in range(10)]
        answer = context.Queue()
        child = context.Process(target=_read_in_child, args=(source, list(range(5, 30)), answer))
        child.start()
        got = answer.get(timeout=20)
        child.join(20)
        assert child.exitcode == 0
        rest = [int(f.sum()) for f in frames]  # the parent's reader goes on where it was
    assert got == (first + rest)[5:30]
    assert len(first + rest) == 60


def test_check_decodes_to_the_end(plain, tmp_path):
    assert check(plain).duration_s == pytest.approx(60 / 25)

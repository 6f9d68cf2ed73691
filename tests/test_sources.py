"""Videos: the time axis, every frame in its place, damage named; see test_sources_backends.py for decord and PyAV."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import make_videos as make
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import OptionError, SourceError
from kdcache.sources import check, open_source

FRAMES = 40
UNEVEN = np.cumsum([0, *([20, 55, 90, 35] * 10)][:FRAMES]).tolist()  # milliseconds

# name → how it is written; every kind is read whole, and its frames are compared with PyAV's plainest loop
KINDS: dict[str, dict[str, object]] = {
    "b-frames.mp4": {},
    "b-frames.mkv": {},
    "b-frames.avi": {},  # AVI with reordered frames: its packets carry no presentation time
    "b-frames.ts": {},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1:scenecut=0:log-level=none", "bf": "3"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "edit-list.mp4": {"ticks": list(range(-5, FRAMES - 5))},  # the first five frames are decoded and not shown
    "starts-late.mp4": {"ticks": list(range(8, FRAMES + 8))},
    "starts-after-sound.mp4": {"ticks": list(range(8, FRAMES + 8)), "audio_s": 2.0},
    "uneven.mp4": {"ticks": UNEVEN, "time_base": Fraction(1, 1000)},
    "uneven.mkv": {"ticks": UNEVEN, "time_base": Fraction(1, 1000)},
    "uneven.avi": {"ticks": UNEVEN, "time_base": Fraction(1, 1000), "codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "wmv2.wmv": {"codec": "wmv2"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "ffv1.mkv": {"codec": "ffv1"},
    "interlaced.mp4": {"options": {"x264-params": "tff=1:scenecut=0:log-level=none"}},
    "turned.mp4": {"rotation": 90},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: make.write(folder / name, make.pictures(FRAMES), **how) for name, how in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_read_in_its_place(made, name):
    expected = make.decode_all(made[name])
    with open_source(made[name]) as source:
        got = list(source.read(range(len(source.times))))
        assert len(source.times) == len(expected) == FRAMES - (5 if name == "edit-list.mp4" else 0)
        assert (np.diff(source.times) > 0).all()
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
        assert got[0].dtype == np.uint8
        assert got[0].shape == (source.info.height, source.info.width, 3)
        if name != "turned.mp4":
            first = 5 if name == "edit-list.mp4" else 0
            assert [make.number(g) for g in got] == list(range(first, FRAMES))


@pytest.mark.parametrize(
    ("name", "times"),
    [
        *(
            (n, np.arange(FRAMES) / 25)
            for n in ("b-frames.mp4", "b-frames.mkv", "b-frames.avi", "b-frames.ts", "mpeg2.mpg")
        ),
        *((n, np.array(UNEVEN) / 1000) for n in ("uneven.mp4", "uneven.mkv", "uneven.avi")),
        ("edit-list.mp4", np.arange(FRAMES - 5) / 25),
        ("starts-late.mp4", np.arange(FRAMES) / 25),  # no other stream: players start with the first frame
        ("starts-after-sound.mp4", np.arange(8, FRAMES + 8) / 25),
    ],
)
def test_times_are_those_that_players_show(made, name, times):
    with open_source(made[name]) as source:
        np.testing.assert_allclose(source.times, times, atol=1e-9)
        assert source.info.fps == pytest.approx((len(times) - 1) / (times[-1] - times[0]))
        assert source.info.duration_s > times[-1]


@settings(max_examples=15, deadline=None)
@given(wanted=st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=12))
@pytest.mark.parametrize("name", ["b-frames.mp4", "uneven.mkv", "mpeg4-b-frames.avi"])
def test_a_subset_equals_the_same_frames_of_the_whole(made, name, wanted):
    whole = make.decode_all(made[name])
    with open_source(made[name]) as source:
        for _ in range(2):  # a second read starts over
            got = list(source.read(sorted(wanted)))
            assert all(np.array_equal(g, whole[i]) for g, i in zip(got, sorted(wanted), strict=True))


@pytest.mark.parametrize(
    ("indices", "words"), [([3, 2], "ascend"), ([1, 1], "ascend"), ([0, 40], "0 to 39"), ([-1], "0 to")]
)
def test_indices_must_ascend_within_the_source(made, indices, words):
    with open_source(made["b-frames.mp4"]) as source, pytest.raises(ValueError, match=words):
        source.read(indices)


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
@pytest.mark.parametrize("gop", ["0", "1"])
def test_gaps_are_crossed_by_seeking_and_the_frames_are_right(tmp_path, name, gop, monkeypatch):
    from kdcache.sources import _pyav

    options = {"x264-params": f"open-gop={gop}:scenecut=0:log-level=none", "bf": "3"}
    path = make.write(tmp_path / name, make.pictures(250), options=options)
    whole = make.decode_all(path)
    decoded: list[int] = []
    check_frame = _pyav.PyAVDecoder._check
    monkeypatch.setattr(_pyav.PyAVDecoder, "_check", lambda self, f: (decoded.append(1), check_frame(self, f))[1])
    wanted = [2, 3, 100, 101, 160, 244, 249]
    with open_source(path, decoder="pyav") as source:
        for i, got in zip(wanted, source.read(wanted), strict=True):
            assert np.array_equal(got, whole[i])
    assert len(decoded) < 80  # of 250


def test_a_seek_that_lands_elsewhere_is_noticed(tmp_path, monkeypatch):
    from kdcache.sources import _pyav

    path = make.write(tmp_path / "a.mp4", make.pictures(120))
    whole = make.decode_all(path)
    start = _pyav.PyAVDecoder._seek

    def astray(self, key):  # the file's index points a key frame too far
        later = self._keys[self._keys.index(key) + 1] if key is not self._keys[-1] else key
        start(self, key)
        self._container.seek(later.seek, stream=self._container.streams.video[0])

    monkeypatch.setattr(_pyav.PyAVDecoder, "_seek", astray)
    with open_source(path, decoder="pyav") as source:
        assert all(np.array_equal(g, whole[i]) for i, g in zip([0, 70, 75], source.read([0, 70, 75]), strict=True))


def test_red_is_the_first_channel(tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    for codec, name in (("libx264", "a.mp4"), ("mpeg4", "a.avi")):
        with open_source(make.write(tmp_path / name, [red] * 3, codec)) as source:
            for frame in source.read([0, 2]):
                assert frame[..., 0].min() > 240
                assert frame[..., 1:].max() < 15


def test_rotation_is_applied_as_players_do(tmp_path):
    # set_display_rotation counts anticlockwise, as FFmpeg does: what is stored upright is shown lying on its left side
    path = make.write(tmp_path / "a.mp4", make.pictures(3, 96, 64), rotation=90)
    with open_source(path) as source:
        assert (source.info.width, source.info.height, source.info.rotation) == (64, 96, 270)
        (shown,) = source.read([1])
    upright = make.write(tmp_path / "b.mp4", make.pictures(3, 96, 64))
    with open_source(upright) as source:
        (stored,) = source.read([1])
    assert np.array_equal(np.rot90(stored), shown)


def test_a_mirrored_picture_is_refused(tmp_path):
    path = make.write(tmp_path / "a.mp4", make.pictures(3), rotation=180)
    data = bytearray(path.read_bytes())
    matrix = np.array([-1, 0, 0, 0, -1], ">i4") * 65536
    at = data.index(matrix[:1].tobytes() + bytes(12) + matrix[:1].tobytes())
    data[at + 16 : at + 20] = np.array([65536], ">i4").tobytes()
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.mp4: its display matrix mirrors"):
        open_source(path)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mp4"), ("mpeg4", "a.avi"), ("libx264", "a.mkv")])
def test_one_frame(tmp_path, codec, name):
    with open_source(make.write(tmp_path / name, make.pictures(1), codec)) as source:
        assert source.times.tolist() == [0.0]
        assert len(list(source.read([0]))) == 1
        assert source.info.fps == pytest.approx(25)
        assert source.info.duration_s == pytest.approx(0.04, abs=0.001)


@pytest.mark.parametrize(("width", "height"), [(95, 64), (96, 63), (227, 41)])
def test_odd_sizes(tmp_path, width, height):
    path = make.write(tmp_path / "a.avi", make.pictures(5, width, height), "mpeg4")
    with open_source(path) as source:
        got = list(source.read(range(5)))
    assert got[0].shape == (height, width, 3)
    assert all(np.array_equal(a, b) for a, b in zip(got, make.decode_all(path), strict=True))


def test_frames_that_are_never_shown_are_not_counted(tmp_path):
    """VP8 keeps reference pictures that only other frames see; their packets look like any other."""
    source = make.write(
        tmp_path / "a.webm", make.pictures(12), "libvpx", options={"cpu-used": "8", "lag-in-frames": "0"}
    )
    hidden = tmp_path / "b.webm"
    with av.open(str(source)) as old, av.open(str(hidden), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(p for p in old.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            if i == 5:
                data[0] &= 0xEF  # RFC 6386 §9.1: show_frame
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
            copy.is_keyframe = packet.is_keyframe
            new.mux(copy)
    expected = make.decode_all(hidden)
    with open_source(hidden) as opened:
        assert len(opened.times) == len(expected) == 11
        got = list(opened.read(range(11)))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_packed_b_frames(tmp_path):
    """DivX and Xvid in AVI, as in HMDB51: two pictures in one packet, none in the next."""
    plain = make.write(tmp_path / "a.avi", make.pictures(21), "mpeg4", options={"bf": "1", "b_strategy": "0"})
    packed = make.pack_b_frames(plain, tmp_path / "b.avi")
    with open_source(packed) as source:
        assert np.allclose(source.times, np.arange(21) / 25)
        got = list(source.read(range(21)))
    assert all(np.array_equal(a, b) for a, b in zip(got, make.decode_all(plain), strict=True))


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "b-frames.mp4",
        "fragments.mp4",
        "b-frames.mkv",
        "b-frames.avi",
        "mpeg4.avi",
        "b-frames.ts",
        "mpeg2.mpg",
        "wmv2.wmv",
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.97])
def test_a_file_cut_short_is_refused(made, tmp_path, name, kept):
    if name == "mpeg2.mpg" and kept == 0.97:
        pytest.skip("a program stream declares no size: a cut that leaves its last picture decodable cannot be seen")
    data = made[name].read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(SourceError, match=rf"{name}: "):
        check(cut)


def test_a_long_header_over_a_short_file_is_refused(tmp_path):
    """A file put together again so that its boxes fit, but not its duration."""
    path = make.write(tmp_path / "a.mkv", make.pictures(100))
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Info/Duration, a float64 in milliseconds
    data[at : at + 8] = np.array([12_000.0], ">f8").tobytes()
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"its header says 12\.00 s and its frames end at 4\.00 s"):
        open_source(path)


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "mpeg4.avi", "mpeg2.mpg"])
def test_flipped_bytes_are_refused_or_harmless(made, tmp_path, name):
    """Whatever is yielded before the error is right; 40 bytes garbled in the middle never pass."""
    data = bytearray(made[name].read_bytes())
    rng = np.random.default_rng(0)
    for at in len(data) // 2 + 7 * np.arange(40):
        data[at] ^= int(rng.integers(1, 256))
    bad = tmp_path / name
    bad.write_bytes(data)
    whole = make.decode_all(made[name])

    def read() -> None:
        with open_source(bad) as source:
            for frame, expected in zip(source.read(range(len(source.times))), whole, strict=True):
                assert np.array_equal(frame, expected)

    with pytest.raises(SourceError, match=rf"{name}: the file is damaged: "):
        read()


def test_a_lost_frame_is_noticed_by_its_time(tmp_path, monkeypatch):
    """The axis says that a frame is there; the decoder leaves it out without an error."""
    path = make.write(tmp_path / "a.mp4", make.pictures(20))
    with open_source(path, decoder="pyav") as source:
        decoder = source._decoder
        decoder._start()
        decoder._decoded = (f for i, f in enumerate(decoder._decoded) if i != 7)
        seen = []
        with pytest.raises(SourceError, match="frame 7 of 20 has time stamp"):
            seen.extend(make.number(f) for f in source.read(range(20)))
        assert seen == list(range(7))


def test_size_that_changes_midway_is_refused(tmp_path):
    small, large = (
        make.write(tmp_path / "a.ts", make.pictures(10)),
        make.write(tmp_path / "b.ts", make.pictures(10, 128, 96)),
    )
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(SourceError, match=r"both\.ts: "):
        check(both)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "the file is empty"),
        ("notes.mp4", b"These are notes, not a video.\n" * 50, "not a video that can be opened"),
        (
            "list.mp4",
            b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
            "not a video",
        ),
        ("concat.mp4", b"ffconcat version 1.0\nfile b-frames.mp4\n", "not a video"),
    ],
)
def test_what_is_no_video_is_refused_by_name(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name}: {words}"):
        open_source(tmp_path / name)


def test_sound_without_pictures_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"a\.mp4: holds no video, only audio"):
        open_source(make.sound_only(tmp_path / "a.mp4"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(made, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(made["b-frames.mp4"].read_bytes())
    path.chmod(0)
    with pytest.raises(SourceError, match=r"a\.mp4: may not be read"):
        open_source(path)


def test_an_unknown_decoder_is_refused(made):
    with pytest.raises(OptionError, match="did you mean 'decord'"):
        open_source(made["b-frames.mp4"], decoder="decrod")


def test_odd_names_are_files(tmp_path, monkeypatch):
    """Names that FFmpeg would take for protocols or patterns."""
    monkeypatch.chdir(tmp_path)
    for name in ("concat:x.mp4", "frame%03d.mp4", "it's a clip.mp4", "día.mp4"):
        make.write(tmp_path / "plain.mp4", make.pictures(2)).rename(tmp_path / name)
        with open_source(name) as source:
            assert len(list(source.read([0, 1]))) == 2

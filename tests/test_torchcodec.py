"""torchcodec as a decoder: within its bound of PyAV's pixels, which reads what it does not, or reads wrong.

A stand-in gives PyAV's frames, or others, wherever torchcodec is; the real one decodes on the CPU, in a process that
finds the FFmpeg libraries of PyAV, and on a GPU where there is one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import make_videos as make
import numpy as np
import pytest
import torch

import kdcache
from kdcache.errors import DeviceError, OptionError, SourceError
from kdcache.sources import _torchcodec, open_source
from kdcache.store import load_index

COUNT = 20


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return make.write(tmp_path_factory.mktemp("film") / "film.mp4", make.pictures(COUNT, 96, 64))


@pytest.fixture
def stand_in(monkeypatch) -> type:
    """torchcodec, whose frames are PyAV's changed by ``change(index, picture)``."""

    class VideoDecoder:
        change = staticmethod(lambda index, picture: picture)
        late = 0.0
        extra = 0
        devices: list[str] = []  # noqa: RUF012
        asked: list[list[int]] = []  # noqa: RUF012

        def __init__(self, path: str, *, stream_index: int, dimension_order: str, device: str) -> None:
            assert (stream_index, dimension_order) == (0, "NHWC")
            with open_source(path) as source:
                self.pictures, self.times = list(source.read(range(len(source.times)))), source.times
            self.devices.append(device)

        def __len__(self) -> int:
            return len(self.times) + self.extra

        def get_frames_at(self, indices: list[int]) -> Any:
            self.asked.append(indices)
            pictures = np.stack([self.change(i, self.pictures[i].astype(np.int16)) for i in indices])
            times = np.array([self.times[i] + (i > 0) * self.late + 0.5 for i in indices])
            return types.SimpleNamespace(
                data=torch.from_numpy(pictures.clip(0, 255).astype(np.uint8)), pts_seconds=torch.from_numpy(times)
            )

    package, decoders = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.decoders")
    package.__version__, package.decoders, decoders.VideoDecoder = "0.0", decoders, VideoDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return VideoDecoder


def read(path: Path, decoder: str = "torchcodec", indices: range = range(COUNT)) -> tuple[str, np.ndarray]:
    with open_source(path, decoder, device="cuda:1") as source:
        return source.info.backend, np.stack(list(source.read(indices)))


def apart(levels: int) -> Any:
    return lambda index, picture: np.where(picture < 128, picture + levels, picture - levels)


def test_it_decodes_on_the_device_a_few_frames_at_a_time(film, stand_in, monkeypatch):
    stand_in.change = staticmethod(apart(_torchcodec.MOST_APART))
    monkeypatch.setattr(_torchcodec, "TOGETHER", 7 * 96 * 64 * 3)
    backend, found = read(film, indices=range(1, COUNT))
    assert backend == "torchcodec"
    assert (stand_in.devices, stand_in.asked) == (
        ["cuda:1"],
        [[0], [0], [*range(1, 8)], [*range(8, 15)], [*range(15, 20)]],
    )
    apart_by = np.abs(found.astype(np.int16) - read(film, "pyav", range(1, COUNT))[1])
    assert apart_by.min() == apart_by.max() == _torchcodec.MOST_APART
    assert all(frame.base is None for frame in open_source(film, "torchcodec").read([3]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("change", staticmethod(apart(_torchcodec.MOST_APART + 1))),
        ("change", staticmethod(lambda index, picture: picture[:-2])),
        ("extra", 1),
    ],
)
def test_what_it_reads_otherwise_is_read_by_pyav(film, stand_in, name, value):
    setattr(stand_in, name, value)
    backend, found = read(film)
    assert backend == "pyav"
    assert np.array_equal(found, read(film, "pyav")[1])


@pytest.mark.parametrize("how", [{}, {"rotation": 90}, {"color_range": 2}])
@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_files_with_quirks_or_without_time_stamps_are_read_by_pyav(tmp_path, stand_in, name, how):
    path = make.write(tmp_path / name, make.pictures(COUNT), **how)
    plain = not how and name == "a.mkv"
    backend, found = read(path)
    assert backend == ("torchcodec" if plain else "pyav")
    assert np.array_equal(found, read(path, "pyav")[1])


def test_pyav_goes_on_where_it_stops(film, stand_in, monkeypatch, caplog):
    expected = read(film, "pyav")[1]
    monkeypatch.setattr(_torchcodec, "TOGETHER", 7 * 96 * 64 * 3)

    def stops(index: int, picture: np.ndarray) -> np.ndarray:
        if index == 9:
            raise RuntimeError("decode_av_frame, /src/Decoder.cpp:12, Could not push packet")
        return picture

    stand_in.change = staticmethod(stops)
    with caplog.at_level("INFO", "kdcache"):
        assert np.array_equal(read(film)[1], expected)
    assert "torchcodec stops in frames 7 to 13 (Could not push packet); PyAV goes on there." in caplog.text
    assert stand_in.asked[-1] == [*range(7, 14)]
    stand_in.late = 0.04
    caplog.clear()
    stand_in.change = staticmethod(lambda index, picture: picture if index == 0 else 255 - picture)
    with caplog.at_level("INFO", "kdcache"):
        assert np.array_equal(read(film)[1], expected)  # frames that belong elsewhere are not taken
    assert "a frame is 0.0400 s from where it belongs" in caplog.text


def test_a_gpu_without_memory_ends_the_run_and_is_no_damage(film, stand_in):
    def full(index: int, picture: np.ndarray) -> np.ndarray:
        if index == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return picture

    stand_in.change = staticmethod(full)
    with pytest.raises(DeviceError, match=r"film\.mp4: a decoder does not fit into the memory of cuda:1.*fewer --wor"):
        read(film)


def test_damage_is_what_pyav_says_of_it(tmp_path, film, stand_in):
    data = bytearray(film.read_bytes())
    at = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 6 // 10
    data[at : at + 25] = bytes(25)
    (tmp_path / "bad.mp4").write_bytes(data)

    def stops(self, path: str, **how: object) -> None:
        raise RuntimeError("invalid data")

    stand_in.__init__ = stops
    with pytest.raises(SourceError, match=r"bad\.mp4: the file is damaged: frame \d+"):
        read(tmp_path / "bad.mp4")


def extract(root: Path, out: Path, **how: object) -> tuple[int, int]:
    report = kdcache.extract(root / "clips.csv", root, out, ["rgb"], device="cpu", short_side=32, bar=False, **how)
    assert not report.failures
    return report.cached, report.extracted


def test_its_clips_have_keys_of_their_own(film, stand_in, tmp_path):
    (film.parent / "clips.csv").write_text("source\nfilm.mp4\n")
    out = tmp_path / "out"
    assert extract(film.parent, out, decoder="torchcodec") == (0, 1)
    (key,) = load_index(out)["rgb:key"]
    assert extract(film.parent, out, decoder="torchcodec") == (1, 0)
    assert extract(film.parent, out) == (0, 1)
    assert load_index(out)["rgb:key"].tolist() != [key]
    assert set(stand_in.devices) == {"cpu"}


def test_it_can_be_missing(film, tmp_path, monkeypatch):
    (film.parent / "clips.csv").write_text("source\nfilm.mp4\n")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(OptionError, match=r"cannot be loaded \(.*\): pip install 'kdcache\[torchcodec\]'"):
        extract(film.parent, tmp_path / "out", decoder="torchcodec")
    assert not (tmp_path / "out").exists()


REAL = """
import sys
from pathlib import Path
import numpy as np
from kdcache.errors import OptionError
from kdcache.sources import check_decoder, open_source
try:
    check_decoder("torchcodec")
except OptionError as error:
    print("SKIP", error)
    sys.exit()
for path in map(Path, sys.argv[1:]):
    with open_source(path, "torchcodec") as one, open_source(path) as other:
        n = len(other.times)
        for indices in (range(n), range(1, n, 7), [n - 1]):
            pairs = zip(one.read(indices), other.read(indices), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs), path
        print(path.name, one.info.backend)
"""


def test_the_real_one_on_the_cpu(tmp_path):
    """To the bit, for it is the same FFmpeg."""
    pytest.importorskip("torchcodec", reason="torchcodec is not installed", exc_type=ImportError)
    import av

    there = {path.name: path for path in Path(av.__file__).parents[1].glob("av.libs/*")}
    for name, path in there.items():  # under the names by which torchcodec looks for them
        if found := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+\.so\.(\d+)[\d.]*", name):
            (tmp_path / f"{found[1]}.so.{found[2]}").symlink_to(path)
    if not any(tmp_path.iterdir()):
        pytest.skip("PyAV brings no FFmpeg libraries here")
    films = [
        make.write(tmp_path / "h264.mp4", make.pictures(COUNT)),
        make.write(tmp_path / "h264.mkv", make.pictures(COUNT)),
        make.write(tmp_path / "turned.mp4", make.pictures(COUNT), rotation=90),
        make.write(
            tmp_path / "hevc.mp4", make.pictures(COUNT), codec="libx265", options={"x265-params": "log-level=none"}
        ),
    ]
    libraries = os.pathsep.join([str(tmp_path), *{str(path.parent) for path in there.values()}])
    ended = subprocess.run(
        [sys.executable, "-c", REAL, *map(str, films)],
        env=os.environ | {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    if ended.stdout.startswith("SKIP"):
        pytest.skip(ended.stdout[5:].strip())
    assert ended.stdout.split() == [
        "h264.mp4", "torchcodec", "h264.mkv", "torchcodec", "turned.mp4", "pyav", "hevc.mp4", "torchcodec",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "how"),
    [("h264.mp4", {}), ("hevc.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none"}})],
)
def test_a_gpu_decodes_to_within_the_bound(tmp_path, name, how):
    path = make.write(tmp_path / name, make.pictures(COUNT, 320, 240), **how)
    try:
        with open_source(path, "torchcodec", device="cuda:0") as source:
            found, about = np.stack(list(source.read(range(COUNT)))), source.info
    except OptionError as error:
        pytest.skip(str(error))
    assert (about.backend, about.backend_version.rpartition(" ")[2]) == ("torchcodec", "cuda")
    assert np.abs(found.astype(np.int16) - read(path, "pyav")[1]).max() <= _torchcodec.MOST_APART

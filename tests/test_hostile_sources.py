"""Sources and manifests from strangers: each is refused by name, before it is waited for or allocated."""

from __future__ import annotations

import os
import struct
import tarfile
import zlib

import cv2
import numpy as np
import pytest
from make_videos import pictures, write

from kdcache.errors import ClipError, KdcacheError, ManifestError, SourceError
from kdcache.exchange.hdf5_files import open_hdf5
from kdcache.exchange.lmdb_vectors import open_vectors
from kdcache.extraction.run import extract
from kdcache.manifest import read_manifest
from kdcache.picture_size import picture_size
from kdcache.roots import Roots
from kdcache.skeletons import open_skeleton
from kdcache.skeletons.arrays import JointLayout
from kdcache.sources import find, fingerprint, open_source


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, of which its first 64 rows are there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((width // 8 + 1) * min(height, 64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header says another size than its data has."""
    data = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("name", ["pipe.h5", "pipe.mdb", "folder/data.mdb"])
def test_pipes_are_no_features_to_import(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    path = tmp_path / name.split("/")[0]
    with pytest.raises(KdcacheError, match="no plain file"), (open_hdf5 if name[-1] == "5" else open_vectors)(path):
        pass


def test_headers_say_the_size_of_pictures(tmp_path):
    assert picture_size(png(320, 64)) == (64, 320)
    assert picture_size(jpeg(700, 30000)) == (30000, 700)
    picture = np.zeros((48, 31, 3), np.uint8)
    for options in ([cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1], []):
        assert picture_size(cv2.imencode(".jpg", picture, options)[1].tobytes()) == (48, 31)
    for data in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xff\xff"):
        assert picture_size(data) is None


@pytest.mark.parametrize(("scale", "rate"), [(2**32 - 1, 1), (1, 2**31 - 1)])
def test_a_header_with_an_absurd_frame_rate_is_refused(tmp_path, scale, rate):
    path = write(tmp_path / "v.avi", pictures(3), "mpeg4")
    data = path.read_bytes()
    at = data.index(b"strh") + 28
    path.write_bytes(data[:at] + struct.pack("<II", scale, rate) + data[at + 8 :])
    with pytest.raises(SourceError, match="is no frame rate"):
        open_source(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("make", [png, jpeg])
def test_a_picture_that_would_inflate_is_refused_by_its_header(tmp_path, make, packed):
    name = "1.png" if make is png else "1.jpg"
    (tmp_path / name).write_bytes(make(30000, 30000))
    path = tmp_path
    if packed:
        path = tmp_path / "frames.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(tmp_path / name, name)
    with pytest.raises(SourceError, match=r"30000×30000 pixels"):
        open_source(path, fps=25)


def test_headers_of_a_tar_that_would_inflate(tmp_path):
    (tmp_path / "1.png").write_bytes(png(64, 64))
    with tarfile.open(tmp_path / "f.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 2**21}) as tar:
        tar.add(tmp_path / "1.png", "1.png")
    with pytest.raises(SourceError, match="a header of"):
        open_source(tmp_path / "f.tar", fps=25)


@pytest.mark.parametrize("suffix", [".mp4", ".npy", ".txt", ".skeleton", ".npz"])
def test_pipes_are_not_waited_for(tmp_path, suffix):
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        fingerprint(path)
    layout = JointLayout(0, 25.0) if suffix == ".npy" else None
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        open_source(path) if suffix == ".mp4" else open_skeleton(path, layout)


def test_links_to_themselves_and_names_that_are_too_long(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for roots in (Roots.of(tmp_path), Roots.of(tmp_path, allow_absolute=True)):
        for name in ("loop", "x" * 300):
            with pytest.raises(SourceError, match="no path that can be followed"):
                find(roots, name if not roots.allow_absolute else str(tmp_path / name))


def npy(shape: tuple[int, ...]) -> bytes:
    header = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_arrays_larger_than_their_file(tmp_path):
    layout = JointLayout(0, 25.0)
    for shape in ((10**9, 25, 3), (2**40, 2**40, 3), (3, 4, 3)):
        (tmp_path / "a.npy").write_bytes(npy(shape))
        with pytest.raises(SourceError, match="its header says"):
            open_skeleton(tmp_path / "a.npy", layout)
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros((6_000_000, 2, 3)))
    with pytest.raises(SourceError, match="joints take no more"):
        open_skeleton(tmp_path / "b.npz", layout)


def test_an_lmdb_that_is_cut_off(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "db"), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for i in range(200):
            transaction.put(b"a_frame_%010d.jpg" % i, np.full(512, i, "<f4").tobytes())
    with open_vectors(tmp_path / "db") as vectors:
        assert vectors.read([b"a_frame_0000000003.jpg"])[0, 0] == 3
        assert vectors.last(b"a_frame_", b".jpg") == 199
    data = tmp_path / "db" / "data.mdb"
    whole = data.read_bytes()
    for share in (0.3, 0.6, 0.95):
        data.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SourceError, match=r"data\.mdb: the file is cut off"):
            open_vectors(tmp_path / "db").__enter__()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,v.mp4,0,1e308,", "beyond 1e"),
        ("a,v.mp4,٠,١,", "not a number of seconds"),
        ("a,v.mp4,0,1,abc", "not a frame rate"),
        ("a,v.mp4,0,1,inf", "not a frame rate"),
        ("a,v.mp4,0,1,1e-300", "not a frame rate"),
        ("a,v.mp4,0,1,٢٥", "not a frame rate"),
        ("x" * 2000 + ",v.mp4,0,1,", "2,000 characters"),
        ("a," + "y" * 5000 + ",0,1,", "5,000 characters"),
    ],
)
def test_cells_beyond_all_measure(tmp_path, row, problem):
    path = tmp_path / "clips.csv"
    path.write_text(f"clip_id,source,start_s,stop_s,fps\n-x8Vq,u.mp4,,,25\n{row}\n")
    with pytest.raises(ManifestError, match=rf"line 3: .*{problem}"):
        read_manifest(path, tmp_path)


def test_a_rate_that_nothing_reads_is_text_and_else_a_failure_of_its_clip(tmp_path):
    (tmp_path / "clips.csv").write_text("source,fps\na.mp4,abc\nb.mp4,25\n")
    rows = read_manifest(tmp_path / "clips.csv")
    assert rows["fps"].tolist() == ["abc", "25"]
    for seed, name in enumerate("ab"):
        write(tmp_path / f"{name}.mp4", pictures(4, seed=seed))
    rows["source"] = [str(tmp_path / name) for name in rows["source"]]
    report = extract(rows, out=tmp_path / "out", streams=["rgb"], allow_absolute=True, bar=False)
    assert report.extracted == 1
    assert [(f.clip_id, "not a frame rate" in f.reason) for f in report.failures] == [("a", True)]


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("resize failed")])
def test_what_a_clip_has_no_memory_for_fails_alone(tmp_path, monkeypatch, error):
    from kdcache.streams import video

    for seed, name in enumerate("ab"):
        write(tmp_path / f"{name}.mp4", pictures(4, seed=seed))
    (tmp_path / "clips.csv").write_text("source\na.mp4\nb.mp4\n")
    real, calls = video.resize_short_side, []

    def resize(frame, side):
        calls.append(side)
        if len(calls) == 2:
            raise error
        return real(frame, side)

    monkeypatch.setattr(video, "resize_short_side", resize)
    report = extract(tmp_path / "clips.csv", tmp_path, tmp_path / "out", ["rgb"], bar=False)
    assert report.extracted == 1
    assert [(f.clip_id, f.stage, "--retry-failed" in f.reason) for f in report.failures] == [("a", "decode", True)]


def test_a_clip_error_names_the_cell():
    from kdcache.manifest import frame_rate

    assert [frame_rate(text) for text in ("29.97", "", "nan", None)] == [29.97, None, None, None]
    with pytest.raises(ClipError, match="fps '1_0' is not a frame rate"):
        frame_rate("1_0")


def test_a_video_of_more_pixels_than_a_frame_has(tmp_path, monkeypatch):
    from kdcache.sources import timeline

    path = write(tmp_path / "v.mp4", pictures(4))
    monkeypatch.setattr(timeline, "MOST_PIXELS", 96 * 64 - 1)
    with pytest.raises(SourceError, match="its header says 96×64 pixels"):
        open_source(path)

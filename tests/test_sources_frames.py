"""Folders and tars of images, paths that stay inside a root, fingerprints."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import make_videos as make
import numpy as np
import pytest

from kdcache.errors import SourceError
from kdcache.sources import check, fingerprint, inside, open_source


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()


def fill(folder: Path, names: list[str], encode=png) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = make.pictures(len(names))
    for name, picture in zip(names, pictures, strict=True):
        (folder / name).write_bytes(encode(picture))
    return pictures


def pack(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_is_read_in_natural_order(tmp_path):
    pictures = fill(tmp_path / "clip", [f"frame_{i}.png" for i in range(8, 14)])
    for noise in (".DS_Store", "._frame_8.png", "notes.txt"):
        (tmp_path / "clip" / noise).write_bytes(b"x")
    (tmp_path / "clip" / ".AppleDouble").mkdir()
    with open_source(tmp_path / "clip", fps=10) as source:
        assert np.allclose(source.times, np.arange(6) / 10)
        info = source.info
        assert (info.width, info.height, info.backend, info.container, info.codec) == (
            96,
            64,
            "frames",
            "folder",
            "png",
        )
        assert info.duration_s == pytest.approx(0.6)
        assert all(np.array_equal(a, b) for a, b in zip(source.read(range(6)), pictures, strict=True))
        assert all(np.array_equal(a, pictures[i]) for a, i in zip(source.read([1, 4]), [1, 4], strict=True))


def test_a_tar_is_read_where_it_lies(tmp_path):
    pictures = make.pictures(12)
    members: dict = {f"./P01_01/frame_{i:010d}.png": png(p) for i, p in enumerate(pictures, 1)}
    members = dict(sorted(members.items(), reverse=True)) | {"P01_01/._frame_0000000001.png": b"x"}
    path = pack(tmp_path / "P01_01.tar", members)
    with open_source(path, fps=60) as source:
        assert source.info.backend == "tar"
        assert all(np.array_equal(a, b) for a, b in zip(source.read(range(12)), pictures, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["P01_01.tar"]


def test_check_needs_no_rate(tmp_path):
    fill(tmp_path / "clip", ["1.png", "2.png"])
    assert check(tmp_path / "clip").width == 96


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no images"),
        (["img_1.png", "img_2.png", "flow_x_1.png"], r"several series of images \(flow_x_…, img_…\)"),
        (["img_1.png", "img_2.png", "img_4.png", "img_5.png"], "between numbers 2 and 4"),
        (["img_1.png", "img_01.png", "img_2.png"], "missing or doubled"),
    ],
)
def test_folders_that_are_no_single_series(tmp_path, names, words):
    fill(tmp_path / "clip", names)
    with pytest.raises(SourceError, match=rf"clip: .*{words}"):
        open_source(tmp_path / "clip", fps=25)


def test_every_fifth_frame_is_a_series(tmp_path):
    fill(tmp_path / "clip", ["000005.png", "000010.png", "000015.png"])
    with open_source(tmp_path / "clip", fps=6) as source:
        assert len(source.times) == 3


@pytest.mark.parametrize(
    ("fps", "words"),
    [(None, "fps column"), (0, "no frame rate"), (float("nan"), "no frame rate"), (1e-320, "no frame rate")],
)
def test_images_need_a_rate(tmp_path, fps, words):
    fill(tmp_path / "clip", ["1.png"])
    with pytest.raises(SourceError, match=rf"clip: .*{words}"):
        open_source(tmp_path / "clip", fps=fps)


@pytest.mark.parametrize(
    ("encode", "spoil"),
    [
        (png, lambda d: d[: len(d) // 2]),
        (jpeg, lambda d: d[: len(d) // 2]),  # OpenCV fills the rest with grey and says nothing
        (jpeg, lambda d: b""),
        (jpeg, lambda d: b"GIF89a" + d),
        (png, lambda d: d[:60] + bytes(40) + d[100:]),
    ],
)
def test_damaged_images_are_named(tmp_path, encode, spoil):
    fill(tmp_path / "clip", ["1.jpg", "2.jpg", "3.jpg"], encode)
    bad = tmp_path / "clip" / "2.jpg"
    bad.write_bytes(spoil(bad.read_bytes()))
    with (
        open_source(tmp_path / "clip", fps=25) as source,
        pytest.raises(SourceError, match=r"clip/2\.jpg: the image is"),
    ):
        list(source.read(range(3)))


def test_images_of_another_size_are_named(tmp_path):
    fill(tmp_path / "clip", ["1.png", "2.png"])
    (tmp_path / "clip" / "2.png").write_bytes(png(make.pictures(1, 100, 64)[0]))
    with (
        open_source(tmp_path / "clip", fps=25) as source,
        pytest.raises(SourceError, match=r"2\.png: the image is 100×64"),
    ):
        list(source.read([1]))


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("../1.png", None, "leaves the tar"),
        ("a/../../1.png", None, "leaves the tar"),
        ("/etc/1.png", None, "leaves the tar"),
        ("2.png", tarfile.SYMTYPE, "is a link"),
        ("2.png", tarfile.LNKTYPE, "is a link"),
        ("2.png", tarfile.FIFOTYPE, "is a link or no plain file"),
    ],
)
def test_unsafe_tars_are_refused(tmp_path, name, kind, words):
    picture = png(make.pictures(1)[0])
    content = picture if kind is None else _special(name, kind, "/etc/passwd")
    path = pack(tmp_path / "a.tar", {"1.png": picture, name: content})
    with pytest.raises(SourceError, match=rf"a\.tar: member .*{words}"):
        open_source(path, fps=25)


def test_damaged_and_compressed_tars_are_refused(tmp_path):
    whole = pack(tmp_path / "a.tar", {f"{i}.png": png(p) for i, p in enumerate(make.pictures(5))})
    data = whole.read_bytes()
    end = data.index(b"3.png") + 700
    (tmp_path / "cut.tar").write_bytes(data[:end])
    (tmp_path / "none.tar").write_bytes(b"")
    pack(tmp_path / "a.tar.gz", {"1.png": png(make.pictures(1)[0])}, "w:gz")
    for name in ("cut.tar", "none.tar", "a.tar.gz"):
        with pytest.raises(SourceError, match=rf"{name}: "):
            open_source(tmp_path / name, fps=25)


def test_inside_keeps_to_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "in.mp4").write_bytes(b"")
    (root / "link.mp4").symlink_to(root / "a" / "in.mp4")
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "root2").mkdir()
    assert inside(root, "a/in.mp4") == (root / "a/in.mp4").resolve()
    assert inside(root, "link.mp4") == (root / "a/in.mp4").resolve()
    assert inside(root, "a/../a/in.mp4") == (root / "a/in.mp4").resolve()
    assert inside(root, "not/there.mp4") == root.resolve() / "not/there.mp4"
    for bad in ("../secret.mp4", "/etc/passwd", "a/../../root2/x", "out.mp4", "", "a\0b"):
        with pytest.raises(SourceError):
            inside(root, bad)


def test_fingerprints_follow_content_and_not_names(tmp_path):
    rng = np.random.default_rng(0)
    data = bytearray(rng.bytes(3_000_000))
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data)
    name = fingerprint(tmp_path / "a")
    assert name == fingerprint(tmp_path / "b")
    assert len(name) == 32
    changed = {name}
    for at in (0, 65_535, 1_499_000 // 2 * 2, 2_999_999):
        block = at if at in (0, 65_535, 2_999_999) else (3_000_000 - 4096) * 7 // 15
        spoiled = bytearray(data)
        spoiled[block] ^= 1
        (tmp_path / "c").write_bytes(spoiled)
        changed.add(fingerprint(tmp_path / "c"))
    (tmp_path / "c").write_bytes(data + b"x")
    changed.add(fingerprint(tmp_path / "c"))
    assert len(changed) == 6
    (tmp_path / "small").write_bytes(b"abc")
    (tmp_path / "none").write_bytes(b"")
    assert fingerprint(tmp_path / "small") != fingerprint(tmp_path / "none")
    with pytest.raises(SourceError, match="gone"):
        fingerprint(tmp_path / "gone")


def test_fingerprints_of_folders(tmp_path):
    fill(tmp_path / "a", ["1.png", "2.png"])
    before = fingerprint(tmp_path / "a")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    assert fingerprint(tmp_path / "a") == before
    (tmp_path / "a" / "3.png").write_bytes(b"x")
    assert fingerprint(tmp_path / "a") != before

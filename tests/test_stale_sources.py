"""Sources that change under a cache: what has other bytes is extracted again, what has the same is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from make_videos import pictures, write

from kdcache import Cache
from kdcache.extraction.run import extract
from kdcache.extraction.source_memory import FILE, load_memory
from kdcache.sources import content_digest, fingerprint
from kdcache.store import load_index


@pytest.fixture
def root(tmp_path) -> Path:
    """A video larger than what a fingerprint reads, and a folder of pictures of equal sizes."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(12)]
    write(folder / "v.avi", noise, codec="rawvideo", pix_fmt="bgr24")
    assert (folder / "v.avi").stat().st_size > 600_000
    (folder / "frames").mkdir()
    for i in range(4):
        grey(folder / "frames" / f"{i}.png", 50)
    (folder / "clips.csv").write_text("source,fps\nv.avi,\nframes,25\n")
    return folder


def grey(path: Path, value: int) -> None:
    cv2.imwrite(str(path), np.full((32, 32, 3), value, np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 0])


def run(root: Path, out: Path, **options) -> tuple[int, int]:
    report = extract(root / "clips.csv", root=root, out=out, streams=["rgb"], rgb="raw", bar=False, **options)
    assert not report.failures
    return report.cached, report.extracted


def between_the_samples(path: Path) -> None:
    """Change some bytes where no block of the fingerprint lies, and the time of change."""
    before = fingerprint(path)
    data = bytearray(path.read_bytes())
    at = 64 * 1024 + 20_000
    data[at : at + 8] = bytes(255 - b for b in data[at : at + 8])
    path.write_bytes(data)
    assert fingerprint(path) == before
    later(path)


def later(path: Path) -> None:
    time = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(time, time))


def frames(out: Path, clip: str) -> np.ndarray:
    return Cache(out).read("rgb", [clip])[0]


def test_a_picture_replaced_by_one_of_equal_size(root, tmp_path):
    out = tmp_path / "out"
    assert run(root, out) == (0, 2)
    picture = root / "frames" / "0.png"
    size = picture.stat().st_size
    grey(picture, 200)
    later(picture)
    assert picture.stat().st_size == size
    assert run(root, out) == (1, 1)
    assert frames(out, "frames").max((1, 2, 3)).tolist() == [200, 50, 50, 50]
    assert run(root, out) == (2, 0)
    grey(picture, 50)  # as it was: its first array is found again
    later(picture)
    assert run(root, out) == (2, 0)
    assert (frames(out, "frames") == 50).all()


def test_bytes_between_the_samples(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    before = frames(out, "v").copy()
    between_the_samples(root / "v.avi")
    assert run(root, out) == (1, 1)
    assert (frames(out, "v") != before).any()
    assert run(root, out) == (2, 0)


def test_what_is_touched_copied_or_moved_is_found(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    later(root / "v.avi")
    later(root / "frames" / "1.png")
    assert run(root, out) == (2, 0)
    shutil.copytree(root, tmp_path / "kept", copy_function=shutil.copy2)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copy)
    assert run(tmp_path / "kept", out) == (2, 0)
    assert run(tmp_path / "copy", out) == (2, 0)


def test_keys_are_those_of_the_fingerprint(root, tmp_path):
    """With and without a memory, of this version or of 0.1."""
    out = tmp_path / "out"
    run(root, out)
    keys = load_index(out)["rgb:key"].tolist()
    looks = load_memory(out / FILE)
    assert {look.fingerprint for look in looks.values()} == {fingerprint(root / n) for n in ("v.avi", "frames")}
    assert {look.content for look in looks.values()} == {content_digest(root / n) for n in ("v.avi", "frames")}
    path = root / "v.avi"
    old = (
        f"path,size,mtime_ns,fingerprint\n{path},{path.stat().st_size},{path.stat().st_mtime_ns},{fingerprint(path)}\n"
    )
    for memory in (None, old):
        (out / FILE).unlink()
        if memory is not None:
            (out / FILE).write_text(memory)
        assert run(root, out) == (2, 0)
        assert load_index(out)["rgb:key"].tolist() == keys


def test_rehash_finds_what_kept_its_time_of_change(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    time = (root / "v.avi").stat().st_mtime_ns
    between_the_samples(root / "v.avi")
    os.utime(root / "v.avi", ns=(time, time))
    assert run(root, out) == (2, 0)  # nothing shows
    assert run(root, out, rehash=True) == (1, 1)
    assert run(root, out) == (2, 0)


def test_a_flipped_row_of_the_memory_is_not_believed(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    content = (out / FILE).read_text()
    sampled = fingerprint(root / "v.avi")
    flipped = ("0" if sampled[0] != "0" else "1") + sampled[1:]
    (out / FILE).write_text(content.replace(sampled, flipped))
    assert run(root, out) == (2, 0)


def test_two_folders_with_equal_names_and_sizes_are_two_sources(root, tmp_path):
    shutil.copytree(root / "frames", root / "other")
    for path in (root / "other").iterdir():
        grey(path, 90)
    (root / "clips.csv").write_text("source,fps\nframes,25\nother,25\n")
    out = tmp_path / "out"
    assert run(root, out) == (0, 2)
    assert [int(frames(out, clip).max()) for clip in ("frames", "other")] == [50, 90]
    assert run(root, out) == (2, 0)


def test_the_name_of_the_decoder_computes_nothing_again(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    keys = load_index(out)["rgb:key"].tolist()
    for name in ("pyav", "auto"):
        assert run(root, out, decoder=name) == (2, 0)
        assert load_index(out)["rgb:key"].tolist() == keys
    shutil.copytree(root / "frames", root / "more")
    for path in (root / "more").iterdir():
        grey(path, 7)
    (root / "clips.csv").write_text("source,fps\nv.avi,\nframes,25\nmore,25\n")
    assert run(root, out, decoder="pyav") == (2, 1)
    assert [len(clip) for clip in Cache(out).read("rgb", ["v", "frames", "more"])] == [12, 4, 4]


def replaced_when(monkeypatch, path: Path, other: bytes, *, planned: bool) -> None:
    """Let other bytes be there once an extraction is planned, or once the first clip of the source is decoded."""
    from kdcache.extraction import run as module
    from kdcache.streams.video import VideoStream

    def swap() -> None:
        path.with_name("new").write_bytes(other)
        os.replace(path.with_name("new"), path)

    if planned:
        run_units = module.run_units
        monkeypatch.setattr(module, "run_units", lambda *a, **k: (swap(), run_units(*a, **k))[1])
        return
    read = VideoStream.read

    def reading(*arguments):
        for item in read(*arguments):
            yield item
            swap()

    monkeypatch.setattr(VideoStream, "read", staticmethod(reading))


@pytest.mark.parametrize("planned", [True, False])
def test_a_source_replaced_while_the_extraction_runs_is_not_stored_as_the_one_that_was_planned(
    tmp_path, monkeypatch, planned
):
    folder = tmp_path / "data"
    folder.mkdir()
    path, other = (write(folder / f"{name}.mp4", pictures(12, seed=i)) for i, name in enumerate("ab"))
    (folder / "clips.csv").write_text("clip_id,source,start_s,stop_s\na0,a.mp4,0,0.2\na1,a.mp4,0.2,0.4\n")
    settings = {"root": folder, "streams": ["rgb"], "rgb": "raw", "bar": False}
    extract(folder / "clips.csv", out=tmp_path / "right", **settings)
    content = path.read_bytes()
    with monkeypatch.context() as patched:
        replaced_when(patched, path, other.read_bytes(), planned=planned)
        report = extract(folder / "clips.csv", out=tmp_path / "out", **settings)
    assert [failure.clip_id for failure in report.failures] == (["a0", "a1"] if planned else ["a1"])
    assert "changed while the extraction ran; run the same command again" in report.failures[0].reason
    path.write_bytes(content)
    assert not extract(folder / "clips.csv", out=tmp_path / "out", **settings).failures
    for clip in ("a0", "a1"):
        assert np.array_equal(frames(tmp_path / "out", clip), frames(tmp_path / "right", clip))

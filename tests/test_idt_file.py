"""``kdcache idt``: the text equals the table of trajectories, whatever is asked for, and bad files leave nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kdcache.cli import main
from kdcache.demo import scene
from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.motion.idt import to_columns, trajectories
from kdcache.motion.idt_file import write_trajectories
from kdcache.sources import open_source


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("idt") / "shake.mp4"
    scene._write_video(path, scene.render(5, np.random.default_rng(3)))
    return path


@pytest.fixture(scope="module")
def frames(video) -> np.ndarray:
    with open_source(video) as source:
        return np.stack(list(source.read(range(len(source.times)))))


def as_text(columns: np.ndarray) -> str:
    """What the original program's ``printf`` would make of a table."""
    lines = [
        [f"{int(row[0])}", *(f"{v:f}" for v in row[1:40]), *(f"{v:.7f}" for v in row[40:])] for row in columns.tolist()
    ]
    return "".join("".join(f"{cell}\t" for cell in line) + "\n" for line in lines)


def test_the_text_is_the_table_in_every_way_of_writing_it(video, frames, tmp_path):
    table = to_columns(trajectories(frames, descriptors=True))
    assert len(table) > 20
    assert table.shape[1] == 436
    count = write_trajectories(video, tmp_path / "all.txt")
    assert (tmp_path / "all.txt").read_text() == as_text(table)
    assert count == len(table)

    short = CliRunner().invoke(main, ["idt", str(video), "--no-descriptors"], catch_exceptions=False)
    assert (short.exit_code, short.stdout) == (0, as_text(table[:, :40]))

    packed = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for path in packed:
        result = CliRunner().invoke(main, ["idt", str(video), "--no-descriptors", "-o", str(path)])
        assert (result.exit_code, result.stdout) == (0, f"{path}: {count} trajectories\n")
    assert gzip.decompress(packed[0].read_bytes()).decode() == short.stdout
    assert packed[0].read_bytes() == packed[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_span_is_tracked_by_itself_and_keeps_the_frame_numbers_of_its_source(video, frames, tmp_path):
    part = to_columns(trajectories(frames[15:45]), descriptors=False)
    assert len(part)
    part[:, 0] += 15
    write_trajectories(video, tmp_path / "part.txt", descriptors=False, start_s=1.0, stop_s=3.0)
    assert (tmp_path / "part.txt").read_text() == as_text(part)


def test_a_clip_shorter_than_a_track_gives_an_empty_file(video, tmp_path):
    assert write_trajectories(video, tmp_path / "none.txt", stop_s=0.5) == 0
    assert (tmp_path / "none.txt").read_bytes() == b""


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_written(video, tmp_path):
    whole = video.read_bytes()
    bad = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a video", "gone": None}
    kept = tmp_path / "kept.txt"
    kept.write_text("from before")
    for name, content in bad.items():
        path = tmp_path / f"{name}.mp4"
        if content is not None:
            path.write_bytes(content)
        result = CliRunner().invoke(main, ["idt", str(path), "-o", str(kept)])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert result.stderr.startswith("Error: ")
        assert f"{name}.mp4" in result.stderr
        assert result.stderr.count("\n") == 1
        assert kept.read_text() == "from before"
        with pytest.raises(SourceError):
            write_trajectories(path, kept)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("span", "error", "words"),
    [((99.0, None), ClipError, "shake.mp4: The clip starts at 99 s"), ((2.0, 1.0), OptionError, "2 s to 1 s is empty")],
)
def test_spans_outside_the_source_are_refused(video, tmp_path, span, error, words):
    with pytest.raises(error, match=words):
        write_trajectories(video, tmp_path / "out.txt", start_s=span[0], stop_s=span[1])
    assert not (tmp_path / "out.txt").exists()

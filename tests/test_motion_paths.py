"""Flow, trajectories and motion maps of a path: the same as of the frames that the path holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import make_videos
import numpy as np
import pandas as pd
import pytest

from kdcache import motion
from kdcache.errors import ClipError, OptionError, SourceError
from kdcache.sources import open_source


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A textured square that moves over a textured ground, uint8 [20, 48, 64, 3]."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), (0, 0), 2)
    square = cv2.GaussianBlur(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8), (0, 0), 1)
    shown = []
    for t in range(20):
        frame = ground.copy()
        frame[14:34, 4 + 2 * t : 24 + 2 * t] = square
        shown.append(frame)
    return np.stack(shown)


@pytest.fixture(scope="module")
def folder(frames, tmp_path_factory) -> Path:
    """The frames as lossless images."""
    path = tmp_path_factory.mktemp("frames")
    for t, frame in enumerate(frames):
        cv2.imwrite(str(path / f"{t:03d}.png"), frame[..., ::-1])
    return path


def gray(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def test_a_folder_gives_what_its_frames_give(frames, folder):
    np.testing.assert_array_equal(motion.tvl1(folder, fps=10), motion.tvl1(gray(frames)))
    np.testing.assert_array_equal(motion.motion_maps(str(folder), fps=10), motion.motion_maps(frames))
    found = motion.trajectories(folder, fps=10)
    pd.testing.assert_frame_equal(found, motion.trajectories(frames))
    assert len(found)


def test_a_span_and_a_short_side(frames, folder):
    part = motion.tvl1(folder, fps=10, start_s=0.5, stop_s=0.8, short_side=24)
    small = [cv2.resize(frame, (32, 24), interpolation=cv2.INTER_AREA) for frame in frames[5:8]]
    np.testing.assert_array_equal(part, motion.tvl1(gray(np.stack(small))))


def test_a_video_is_taken_at_a_rate(frames, tmp_path):
    video = make_videos.write(tmp_path / "video.mp4", frames, rate=20)
    with open_source(video) as source:
        decoded = np.stack(list(source.read(range(0, len(source.times), 2))))
    np.testing.assert_array_equal(motion.tvl1(video, fps=10), motion.tvl1(gray(decoded)))


@pytest.mark.parametrize("function", [motion.tvl1, motion.trajectories, motion.motion_maps])
def test_what_is_neither_frames_nor_a_path_is_refused(function, folder, tmp_path):
    with pytest.raises(OptionError, match=r"given as list: give the path of a video, or a uint8 array of \[T, H, W"):
        function([[1, 2], [3, 4]])
    with pytest.raises(OptionError, match=r"start_s=1\.0: an array has no clock"):
        function(np.zeros((2, 32, 32), np.uint8), start_s=1.0)
    with pytest.raises(OptionError, match="from 2 s to 1 s is empty"):
        function(folder, start_s=2, stop_s=1)
    with pytest.raises(OptionError, match="short_side is 0"):
        function(folder, short_side=0)
    with pytest.raises(SourceError, match=r"absent\.mp4: no such file"):
        function(tmp_path / "absent.mp4")
    with pytest.raises(ClipError, match=f"{folder}: The clip starts at 9 s"):
        function(folder, fps=10, start_s=9)


def test_dir_shows_what_there_is():
    assert dir(motion) == ["motion_maps", "trajectories", "tvl1", "tvl1_pairs"]


def test_flow_and_maps_load_no_torch(folder):
    code = (
        "import sys, kdcache.motion as motion\n"
        "assert not {'torch', 'numpy', 'cv2'} & set(sys.modules), 'import'\n"
        f"motion.tvl1({str(folder)!r}, fps=10, stop_s=0.2), motion.motion_maps({str(folder)!r}, fps=10, stop_s=0.2)\n"
        "assert 'torch' not in sys.modules, 'use'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

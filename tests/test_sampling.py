"""Sampling: properties that every rule keeps on any time axis, and the indices the papers' rules give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import ClipError, OptionError
from kdcache.sampling import OVERRUN_S, Sampling, clip_range, sample

NAN = math.nan


@st.composite
def axes(draw: st.DrawFn) -> np.ndarray:
    """A strictly increasing time axis with irregular steps."""
    steps = draw(st.lists(st.floats(0.005, 0.5), min_size=0, max_size=60))
    return np.cumsum([draw(st.floats(0, 1)), *steps])


rules = st.builds(
    Sampling,
    frames=st.none() | st.integers(1, 40),
    fps=st.none() | st.floats(0.5, 90),
    anchor=st.sampled_from(["first", "centre", "last"]),
)


@given(axes(), rules, st.floats(0, 1), st.floats(0, 1))
def test_segments_are_monotone_inside_the_clip_and_as_long_as_asked(times, rule, a, b):
    end = times[-1]
    start, stop = sorted((a * end, b * end))
    if stop - start < 1e-3 or start >= end:
        return
    low, high = clip_range(times, start, stop)
    segment = sample(times, start, stop, rule)
    assert segment.dtype == np.int32
    assert (np.diff(segment) >= 0).all()
    assert low <= segment.min()
    assert segment.max() < high
    if rule.frames is not None:
        assert len(segment) == rule.frames
    if rule.frames is None and rule.fps is None:
        assert segment.tolist() == list(range(low, high))


@given(axes(), rules, st.floats(0.01, 1))
def test_no_frame_is_at_or_after_the_clips_end(times, rule, share):
    """The guard against leaks: an anticipation clip [start − τ − w, start − τ) shows nothing from start − τ on."""
    stop = times[0] + share * (times[-1] - times[0])
    if stop <= times[0] + 1e-3:
        return
    assert times[sample(times, NAN, stop, rule)].max() < stop


def test_moving_one_frame_past_the_end_is_noticed():
    """The property above fails for a sampler that takes one frame too many."""
    times = np.arange(30) / 30
    segment = sample(times, 0.0, 0.5, Sampling(frames=8))
    assert times[segment].max() < 0.5
    moved = segment.copy()
    moved[-1] = 15
    assert not times[moved].max() < 0.5


def test_uniform_rules_are_those_of_the_papers():
    times = np.arange(7) / 25
    # JHMDB: floor(i m / 32) stretches 7 frames to 32 (the left edge of each part).
    assert sample(times, NAN, NAN, Sampling(32, anchor="first")).tolist() == [i * 7 // 32 for i in range(32)]
    # TSM: the middle of each of 8 parts.
    times = np.arange(100) / 25
    assert sample(times, NAN, NAN, Sampling(8)).tolist() == [int(100 / 8 * i + 100 / 16) for i in range(8)]
    # as many frames as asked: each once, whatever stands for a part
    for anchor in ("first", "centre", "last"):
        assert sample(times, NAN, NAN, Sampling(100, anchor=anchor)).tolist() == list(range(100))


def test_a_fixed_rate_takes_the_frame_on_screen_at_each_instant():
    times = np.arange(120) / 60  # 60 fps
    window = 32 / 30
    segment = sample(times, 2.0 - window, 2.0, Sampling(32, fps=30, anchor="last"))
    assert segment.tolist() == list(range(56, 120, 2))
    assert sample(times, 0.0, window, Sampling(32, fps=30, anchor="first")).tolist() == list(range(0, 64, 2))


def test_a_clip_shorter_than_its_segment_repeats_the_edge_frame():
    times = np.arange(60) / 60
    last = sample(times, 0.0, 0.5, Sampling(32, fps=30, anchor="last"))
    assert last.tolist() == [0] * 17 + list(range(0, 30, 2))
    first = sample(times, 0.5, NAN, Sampling(32, fps=30, anchor="first"))
    assert first.tolist() == [*range(30, 60, 2), *[59] * 17]


def test_a_span_between_two_frames_shows_the_frame_on_screen():
    times = np.arange(10) / 10
    assert sample(times, 0.33, 0.37, Sampling(4)).tolist() == [3, 3, 3, 3]


def test_spans_outside_the_source_are_refused_by_name():
    times = np.arange(25) / 25
    with pytest.raises(ClipError, match=r"starts at 1 s but the source ends at 1\.000 s"):
        clip_range(times, 1.0, 2.0)
    with pytest.raises(ClipError, match=r"stops at 9 s but the source ends"):
        clip_range(times, 0.0, 9.0)
    assert clip_range(times, 0.0, 1.0 + OVERRUN_S) == (0, 25)
    with pytest.raises(ClipError, match="no frames"):
        clip_range(np.empty(0), NAN, NAN)


def test_a_span_of_years_at_a_rate_is_refused_before_it_is_allocated():
    times = np.array([0.0, 5e8])
    with pytest.raises(ClipError, match=r"25,000,000,000 frames at 25 a second, more than 1,000,000"):
        sample(times, NAN, NAN, Sampling(None, fps=25.0))
    assert len(sample(times, NAN, NAN, Sampling(8, fps=25.0))) == 8  # a segment has its own length


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"fps": -1.0}, {"fps": NAN}, {"fps": np.inf}, {"fps": 1e-300}, {"anchor": "middle"}]
)
def test_wrong_rules_are_refused(wrong):
    with pytest.raises(OptionError):
        Sampling(**wrong)

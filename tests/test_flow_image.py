"""Flow as bytes and as colours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kdcache.errors import OptionError
from kdcache.motion.flow_image import ZERO, colour_wheel, dequantise, legend, quantise

flows = arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=st.floats(-60, 60, width=32))
bounds = st.sampled_from([1.0, 15.0, 20.0, 25.0])


@settings(max_examples=60, deadline=None)
@given(flows, bounds)
def test_bytes_round_trip_within_half_a_step_of_the_clipped_flow(flow, bound):
    back = dequantise(quantise(flow, bound), bound)
    assert np.abs(back - np.clip(flow, -bound, bound)).max() <= bound / 254 * 1.0001


@settings(max_examples=60, deadline=None)
@given(flows, bounds)
def test_mirrored_flow_has_mirrored_bytes(flow, bound):
    there, back = quantise(flow, bound).astype(int), quantise(-flow, bound).astype(int)
    assert (there + back == 2 * ZERO).all()


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (7,), elements=st.integers(1, 255)), bounds)
def test_every_byte_comes_back(stored, bound):
    assert (quantise(dequantise(stored, bound), bound) == stored).all()


def test_the_ends_and_the_middle_of_the_byte_range():
    assert quantise(np.array([-1e9, -20, 0, 20, 1e9], np.float32)).tolist() == [1, 1, 128, 255, 255]
    assert dequantise(np.array([1, 128, 255], np.uint8)).tolist() == [-20, 0, 20]


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_no_bound_is_refused(bound):
    with pytest.raises(OptionError, match="bound"):
        quantise(np.zeros(2, np.float32), bound)


def test_flow_that_is_not_finite_is_not_stored():
    with pytest.raises(OptionError, match="not finite"):
        quantise(np.array([0, np.nan], np.float32))


def test_stored_flow_of_another_dtype_is_refused():
    with pytest.raises(OptionError, match="int16"):
        dequantise(np.zeros(2, np.int16))


def test_no_motion_is_white_and_unknown_motion_black():
    assert (colour_wheel(np.zeros((3, 4, 2), np.float32)) == 255).all()
    assert colour_wheel(np.array([[np.nan, 0], [1, 0]], np.float32))[0].tolist() == [0, 0, 0]


def test_directions_have_the_middlebury_colours():
    right, left = colour_wheel(np.array([[1, 0], [-1, 0]], np.float32))
    assert right.tolist() == [255, 0, 0]
    assert left[2] > 200 > 100 > left[0]  # blue side of the wheel


def test_saturation_grows_with_speed_and_too_fast_is_darker():
    speeds = np.stack([np.linspace(0, 1, 11), np.zeros(11)], -1).astype(np.float32)
    green = colour_wheel(speeds, 1.0)[:, 1].astype(int)
    assert (np.diff(green) < 0).all()
    assert colour_wheel(np.array([2, 0], np.float32), 1.0).tolist() == [191, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 2 * np.pi), st.floats(0.1, 1))
def test_colours_change_without_a_jump(angle, speed):
    around = angle + np.array([0, 0.01])
    flow = speed * np.stack([np.cos(around), np.sin(around)], -1).astype(np.float32)
    first, second = colour_wheel(flow, 1.0).astype(int)
    assert np.abs(first - second).max() <= 10


def test_the_legend_is_the_wheel_on_white():
    picture = legend(81)
    assert picture.shape == (81, 81, 3)
    assert picture.dtype == np.uint8
    assert (picture[0, 0] == 255).all()
    assert (picture[40, 40] >= 250).all()
    assert picture[40, 79].tolist() == colour_wheel(np.array([79.5 / 81 * 2 - 1, 0], np.float32), 1.0).tolist()


@pytest.mark.parametrize(("call", "word"), [(lambda: legend(0), "size"), (lambda: colour_wheel(np.zeros(3)), "shape")])
def test_wrong_arguments_are_named(call, word):
    with pytest.raises(OptionError, match=word):
        call()


def test_full_saturation_must_be_a_speed():
    with pytest.raises(OptionError, match="saturation"):
        colour_wheel(np.zeros(2), max=0)

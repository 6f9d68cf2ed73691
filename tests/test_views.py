"""Views: where crops lie, and that mirrored flow still points the right way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import OptionError
from kdcache.views import Views, box, cut, resize_short_side

NAMES = ("centre", "tl", "tr", "bl", "br")


@given(st.integers(33, 400), st.integers(33, 400), st.sampled_from([32, 112, 224]))
def test_resizing_gives_the_short_side_and_keeps_the_aspect(height, width, short):
    out = resize_short_side(np.zeros((height, width, 3), np.uint8), short)
    assert min(out.shape[:2]) == short
    assert max(out.shape[:2]) == pytest.approx(short * max(height, width) / min(height, width), abs=0.51)


def test_crops_touch_the_corners_they_are_named_after():
    views = Views(size=224)
    assert views.short_side == 256
    boxes = {name: box(name, 256, 341, views) for name in NAMES}
    assert boxes["centre"][:2] == (16, 58)
    assert boxes["tl"][:2] == (0, 0)
    assert boxes["br"][:2] == (256 - 224, 341 - 224)
    assert boxes["tr"][:2] == (0, 341 - 224)
    assert boxes["bl"][:2] == (256 - 224, 0)
    assert box("tl@0.5-flip", 256, 341, views) == (0, 0, 128, True)
    assert box("centre@1", 256, 341, views).side == 256


def test_a_mirrored_view_is_the_mirror_of_its_crop():
    segment = np.random.default_rng(0).integers(0, 255, (3, 128, 170, 3), np.uint8)
    out = cut(segment, Views(size=112, names=("tr", "tr-flip")))
    assert out.shape == (2, 3, 112, 112, 3)
    assert (out[0] == segment[:, :112, 170 - 112 :]).all()
    assert (out[1] == out[0][:, :, ::-1]).all()


def test_mirroring_flow_turns_its_x_and_resizing_scales_its_length():
    flow = np.full((2, 128, 128, 2), (3.0, -1.0), np.float32)
    out = cut(flow, Views(size=64, resize=128, names=("centre", "centre-flip", "centre@1")), flow=True)
    assert np.allclose(out[0], (3, -1))
    assert np.allclose(out[1], (-3, -1))
    assert np.allclose(out[2], (1.5, -0.5))


@pytest.mark.parametrize(
    "wrong",
    [{"size": 8}, {"resize": 9}, {"names": ()}, {"names": ("tl", "tl")}, {"names": ("mid",)}, {"names": ("tl@2",)}],
)
def test_wrong_views_are_refused(wrong):
    with pytest.raises(OptionError):
        Views(**wrong)

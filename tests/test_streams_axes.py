"""Axes, levels and views of a stream follow from its recipe; what an import states is kept apart."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from kdcache import backbones
from kdcache.errors import OptionError
from kdcache.streams import axes_of, has_levels, view_names
from kdcache.streams.axes import check_axes
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

WEIGHTS = dict.fromkeys(backbones.names(), "random:0")


def recipe(stream: str, **settings: Any) -> dict[str, Any]:
    return resolve([stream], StreamSettings(**settings), WEIGHTS)[0].recipe


def layers(name: str) -> list[str]:
    module = importlib.import_module(f"kdcache.backbones.{backbones.REGISTRY[name].module}_layers")
    return list(module.ORDER)


@pytest.mark.parametrize("name", backbones.names())
def test_axes_of_every_layer_are_those_that_grow_with_frames_and_size(name: str) -> None:
    """More frames lengthen T (or N, of skeletons) alone, a larger input H and W alone."""
    spec = backbones.input_spec(name)
    skeleton = spec.modality == "skeleton"
    for layer in layers(name):
        axes = backbones.layer_axes(name, layer)

        def shape(frames: int, size: int, layer: str = layer) -> tuple[int, ...]:
            return backbones.layer_shape(name, layer, frames, size)[1]

        small = shape(spec.frames, spec.size)
        assert len(axes) == len(small) == len(set(axes)), (layer, axes, small)
        longer = "".join(a for a, m, n in zip(axes, small, shape(4 * spec.frames, spec.size), strict=True) if m != n)
        assert longer == "".join(a for a in axes if a in "NT"), (layer, axes)
        assert ("N" in axes) == skeleton
        if not skeleton:
            larger = zip(axes, small, shape(spec.frames, 2 * spec.size), strict=True)
            assert "".join(a for a, m, n in larger if m != n) == "".join(a for a in axes if a in "HW"), (layer, axes)
    with pytest.raises(OptionError, match="Unknown layer 'layer9'"):
        backbones.layer_axes(name, "layer9")


@pytest.mark.parametrize(
    ("stream", "settings", "axes", "levels"),
    [
        ("rgb", {}, "THWC", False),
        ("rgb", {"rgb": "raw"}, "THWC", False),
        ("flow", {}, "THWC", False),
        ("flow-warped", {}, "THWC", False),
        ("idt", {}, "THW", False),
        ("i3d-rgb/mixed4a", {}, "VCTHW", False),
        ("i3d-flow/mixed4a", {"levels": 4}, "VNCTHW", True),
        ("i3d-rgb/pool", {}, "VD", False),
        ("i3d-rgb/pool", {"levels": 4}, "VND", True),
        ("i3d-rgb/logits", {}, "VDT", False),
        ("resnet34/layer3", {}, "VTCHW", False),
        ("resnet34/layer3", {"frames": 1, "levels": 4}, "VNCHW", True),
        ("resnet34-flow/pool", {}, "VTD", False),
        ("resnext101/layer4", {}, "VCTHW", False),
        ("resnext101/pool", {"levels": 2}, "VND", True),
        ("tsm/layer4", {}, "VTCHW", False),
        ("tsm/pool", {}, "VTD", False),  # frames of the whole clip, shifted both ways: no levels although as many axes
        ("tsm/pool", {"levels": 4}, "VNTD", True),
        ("tsm/clip", {}, "VTD", False),
        ("tsm/clip", {"levels": 10}, "VND", True),
        ("tsm/clip", {"levels": 10, "frames": 16}, "VNTD", True),
        ("vacnn/pool", {}, "VND", True),
        ("vacnn/layer4", {"levels": 3}, "VNCHW", True),
    ],
)
def test_axes_of_recipes(stream: str, settings: dict[str, Any], axes: str, levels: bool) -> None:
    (resolved,) = resolve([stream], StreamSettings(**settings), WEIGHTS)
    assert axes_of(resolved.recipe) == axes
    assert has_levels(resolved.recipe) is levels
    assert "axes" not in resolved.recipe  # they follow: digests of older caches stay
    if resolved.shape is not None:
        assert len(resolved.shape) == len(axes)


def test_names_of_views() -> None:
    assert view_names(recipe("tsm/pool", views=("centre", "tl@0.875-flip"))) == ("centre", "tl@0.875-flip")
    assert view_names(recipe("vacnn/pool", rotations=2)) == ("straight", "turned-1", "turned-2")
    assert view_names(recipe("vacnn/pool")) == ("straight",)
    assert view_names(recipe("flow")) == ()
    assert view_names({"stream": "net/map", "imported": {}, "shape": [3, 4]}) is None


def test_imports_say_or_are_not_known() -> None:
    def imported(*shape: int, **stated: str) -> dict[str, Any]:
        return {"stream": "a/b", "layout": "fixed", "shape": [*shape], "imported": {"from": "npy"}, **stated}

    assert axes_of(imported(1, 8)) == "VD"
    assert axes_of(imported(1, 14, 1024)) == "VTD"
    assert not has_levels(imported(1, 14, 1024))
    assert has_levels(imported(1, 14, 1024, axes="VND"))
    assert axes_of(imported(1, 8, 4, 4, 16)) is None
    assert not has_levels(imported(1, 8, 4, 4, 16))
    assert axes_of(imported(1, 8, 4, 4, 16, axes="VTHWC")) == "VTHWC"
    assert axes_of({"stream": "x/y", "backbone": {"name": "of-another-version", "layer": "pool"}}) is None


@pytest.mark.parametrize("axes", ["VTX", "TDV", "VTT", "vtd", ""])
def test_axes_that_are_none(axes: str) -> None:
    with pytest.raises(OptionError, match="write V first and each letter once"):
        check_axes(axes, 3)


def test_axes_of_another_number() -> None:
    assert check_axes("VTD", 3) == "VTD"
    with pytest.raises(OptionError, match="the arrays have 5 dimensions"):
        check_axes("VTD", 5)


def test_torch_is_not_needed() -> None:
    code = (
        "import sys; from kdcache.streams import axes_of, has_levels\n"
        "r = {'stream': 'tsm/clip', 'backbone': {'name': 'tsm-resnet50', 'layer': 'clip'},\n"
        "     'progress': {'levels': 4}, 'sampling': {'frames': 8}, 'views': {'size': 224}}\n"
        "assert axes_of(r) == 'VND' and has_levels(r) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

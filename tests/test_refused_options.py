"""Options out of range, and numbers that are none: one sentence that names the option, whatever takes it."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from kdcache import methods
from kdcache.errors import OptionError
from kdcache.methods import method
from kdcache.options import build, parse_texts
from kdcache.runs.config import RunSettings
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings


def numbers(kind: type, *types: type) -> list[tuple[str, object]]:
    """Options of a data class that take numbers of these types, with their annotations."""
    hints = typing.get_type_hints(kind)
    return [
        (f.name, hints[f.name])
        for f in dataclasses.fields(kind)
        if {hints[f.name], *typing.get_args(hints[f.name])} & set(types)
    ]


@pytest.mark.parametrize("name", methods.names())
def test_no_option_of_a_method_takes_what_is_no_number(name):
    options = method(name).Options
    for option, hint in numbers(options, float):
        for text in ("nan", "inf", "-inf", "1e400", "1e39", "٠", "1_0e"):
            with pytest.raises(OptionError, match=option):
                build(options, parse_texts({option: hint}, [f"{option}={text}"]))
        with pytest.raises(OptionError, match=f"{option}=nan: give a finite number"):
            build(options, {option: float("nan")})
    for option, hint in numbers(options, int):
        with pytest.raises(OptionError, match=option):
            build(options, parse_texts({option: hint}, [f"{option}=1{'0' * 30}"]))


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 0), ("lr", -1.0), ("dropout", 2.0), ("dropout", 1.0), ("dropout", -0.1), ("momentum", 1.0),
     ("milestones", (-1,)), ("gamma", -0.5), ("label_seed", -1), ("epochs", 0), ("batch_size", 0)],
)  # fmt: skip
def test_options_of_one_name_have_one_range(name, option, value):
    options = method(name).Options
    if option not in typing.get_type_hints(options):
        return
    with pytest.raises(OptionError, match=option):
        build(options, {option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", -1), ("validation_seed", -1), ("seed", 2**63), ("validation", float("nan")), ("validation", 1.0),
     ("save_every", float("inf")), ("save_every", -1.0), ("tau_s", -1.0), ("eval_every", 0), ("memory_fraction", 1.5),
     ("shards", "a\0b"),
     ("stream", "a\0b")],
)  # fmt: skip
def test_settings_of_a_run_have_ranges(option, value):
    with pytest.raises(OptionError, match=option):
        build(RunSettings, {"method": "early", "shards": "out", option: value})


def test_a_layout_of_skeletons_has_ranges():
    for joint, fps in ((-1, 30.0), (0, 0.0), (0, -1.0)):
        with pytest.raises(OptionError, match=r"centre_joint=.* and skeleton_fps="):
            build(RunSettings, {"method": "early", "shards": "out", "centre_joint": joint, "skeleton_fps": fps})


@pytest.mark.parametrize(
    ("option", "value"),
    [("frames", 0), ("frames", -1), ("fps", 1e-300), ("fps", 0.0), ("fps", float("nan")), ("fps", float("inf")),
     ("short_side", 100_000), ("short_side", 31), ("size", 0), ("size", 10**6), ("resize", 0), ("quality", 101),
     ("levels", 0), ("levels", 10**9), ("bound", 0.0), ("bound", float("inf")), ("rotations", -1),
     ("centre_joint", -1), ("skeleton_fps", float("nan"))],
)  # fmt: skip
def test_settings_of_streams_have_ranges(option, value):
    with pytest.raises(OptionError, match=f"{option} is .*: .* is from "):
        StreamSettings.of({option: value})


def test_levels_of_whole_clips_are_refused():
    with pytest.raises(OptionError, match="levels is 10, but rgb is of whole clips"):
        resolve(["rgb"], StreamSettings(levels=10))
    weights = {"i3d-rgb": "random:0"}
    both = resolve(["rgb", "i3d-rgb/mixed4a"], StreamSettings(levels=10, fps=8), weights)
    assert [stream.name for stream in both] == ["rgb", "i3d-rgb/mixed4a"]

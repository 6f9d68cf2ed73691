"""A kind of stream is one class: a new one is extracted, indexed, drawn and restored without touching anything else."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pytest
from make_videos import pictures, write

import kdcache
from kdcache import backbones
from kdcache.backbones import weights as weights_module
from kdcache.errors import ClipError, OptionError
from kdcache.report.sheet import sheet
from kdcache.streams import axes_of, has_levels, registry, view_names
from kdcache.streams.base import Choose, ClipData, ClipSpan, Stream, Strip
from kdcache.streams.registry import KINDS, kind_of, resolve, restore, without_effect
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import ClipFrames, DenseStream

NAN = float("nan")
WEIGHTS = dict.fromkeys(backbones.names(), "random:0")


@dataclass(frozen=True, kw_only=True)
class BrightnessStream(DenseStream):
    """Mean brightness of each frame, float32 [T]."""

    names: ClassVar[tuple[str, ...]] = ("brightness",)
    channels: ClassVar[float] = 1

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        return cls(name=name, **cls.common(settings))

    @classmethod
    def from_recipe(cls, name: str, recipe: dict[str, Any], choose: Choose) -> Self:
        return cls(name=name, **cls.common_in(recipe))

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str:
        return "T"

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Any, frames: Any) -> list[Strip]:
        grey = np.broadcast_to(array.astype(np.uint8)[:, None, None, None], (len(array), 8, 8, 3))
        return [Strip(name, np.ascontiguousarray(grey), frames, order=5)]

    def to_recipe(self) -> dict[str, Any]:
        return {**super().to_recipe(), "dtype": "float32"}

    def compute(self, clip: ClipFrames) -> Any:
        return clip.stack(self).mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


@dataclass
class ClipNumbers(ClipData):
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NumbersStream(Stream):
    """Ten numbers a second from a text file, one a line: a medium of its own, named by a manifest column."""

    medium: ClassVar[str] = "number files"
    column: ClassVar[str] = "numbers"

    @classmethod
    def accepts(cls, name: str) -> bool:
        return name == "numbers"

    @classmethod
    def examples(cls) -> list[str]:
        return ["numbers"]

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        return cls(name=name)

    @classmethod
    def from_recipe(cls, name: str, recipe: dict[str, Any], choose: Choose) -> Self:
        return cls(name=name)

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str:
        return "T"

    @classmethod
    def read(
        cls, spans: Sequence[ClipSpan], streams: Sequence[Any], threads: int, device: str = "cpu"
    ) -> Iterator[tuple[int, ClipData | ClipError]]:
        values = np.loadtxt(spans[0].path, dtype=np.float32)
        for number, span in enumerate(spans):
            found = values[round(10 * span.start_s) : round(10 * span.stop_s)]
            origin = {"fingerprint": span.fingerprint, "decoder": "numpy"}
            yield number, ClipNumbers(span, origin, found) if len(found) else ClipError("Nothing there.")

    def to_recipe(self) -> dict[str, Any]:
        return {"stream": self.name, "version": self.version, "layout": "ragged", "dtype": "float32"}

    def nbytes(self, start_s: float, stop_s: float) -> int:
        return round(40 * (stop_s - start_s))

    def frames(self, clip: ClipNumbers) -> Any:
        return np.arange(len(clip.values), dtype=np.int32)

    def compute(self, clip: ClipNumbers) -> Any:
        return clip.values


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's line of each."""
    monkeypatch.setattr(registry, "KINDS", [*KINDS, BrightnessStream, NumbersStream])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write(folder / "a.mp4", pictures(20))
    (folder / "a.num").write_text("".join(f"{i}\n" for i in range(20)))
    return folder


def rows(**columns: Any) -> pd.DataFrame:
    spans = [("a0", "a.mp4", 0.0, 0.4), ("a1", "a.mp4", 0.2, 0.8)]
    return pd.DataFrame(spans, columns=["clip_id", "source", "start_s", "stop_s"]).assign(**columns)


def test_a_new_kind_of_video_stream(kinds: None, root: Path, tmp_path: Path) -> None:
    call = {"root": root, "out": tmp_path, "streams": ["rgb", "brightness"], "short_side": 64, "bar": False}
    assert kdcache.extract(rows(), dry_run=True, **call).planned == 2
    assert kdcache.extract(rows(), **call).extracted == 2
    assert kdcache.extract(rows(), **call).cached == 2
    cache = kdcache.Cache(tmp_path)
    rgb, found = (cache.read(stream, ["a0", "a1"]) for stream in ("rgb", "brightness"))
    assert [a.shape for a in found] == [(10,), (15,)]
    for shown, array in zip(rgb, found, strict=True):
        assert np.allclose(shown.mean(axis=(1, 2, 3)), array, atol=2)  # JPEG
    recipe = cache.recipe("brightness")
    assert (axes_of(recipe), has_levels(recipe), view_names(recipe)) == ("T", False, ())
    assert restore("brightness", recipe).recipe == recipe
    assert len(sheet(cache, "a0")) > len(sheet_without(cache))
    with pytest.raises(OptionError, match="did you mean 'brightness'"):
        kdcache.extract(rows(), root, tmp_path, ["brigthness"], bar=False)


def sheet_without(cache: kdcache.Cache) -> Any:
    only = kdcache.Cache(cache.path)
    only.streams = ["rgb"]
    return sheet(only, "a0")


def test_a_new_medium(kinds: None, root: Path, tmp_path: Path) -> None:
    table = pd.concat([rows(), rows().iloc[:1].assign(clip_id="late", start_s=3.0, stop_s=4.0)], ignore_index=True)
    call = {"root": root, "out": tmp_path, "streams": ["numbers"], "bar": False}
    report = kdcache.extract(table.assign(numbers="a.num"), **call)
    assert (report.extracted, [f.clip_id for f in report.failures]) == (2, ["late"])
    cache = kdcache.Cache(tmp_path)
    assert [a.tolist() for a in cache.read("numbers", ["a0", "a1"])] == [[0, 1, 2, 3], [2, 3, 4, 5, 6, 7]]
    with pytest.raises(OptionError, match="numbers reads number files and rgb videos: extract them in two calls"):
        kdcache.extract(rows(), root, tmp_path, ["numbers", "rgb"], bar=False)


# ---- every kind


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rgb", {}),
        ("rgb", {"rgb": "raw", "fps": 5.0, "decoder": "pyav", "short_side": 64}),
        ("rgb", {"quality": 80}),
        ("flow", {"bound": 10.0}),
        ("flow-warped", {"flow": "float16"}),
        ("idt", {"short_side": 100}),
        ("i3d-rgb/mixed4a", {"views": ("centre", "tl@0.8-flip"), "size": 96, "frames": 16, "dtype": "float32"}),
        ("i3d-flow/mixed4a", {"bound": 5.0, "precision": "bf16", "fps": 25.0, "anchor": "last"}),
        ("tsm/clip", {"levels": 4, "progress": "prefix", "resize": 260}),
        ("resnet34-flow5/pool", {}),
        ("vacnn/pool", {"rotations": 2, "levels": 3, "skeleton": "float_bilinear", "progress": "segment"}),
    ],
)
def test_every_kind_is_what_its_recipe_says(name: str, settings: dict[str, Any]) -> None:
    (stream,) = resolve([name], StreamSettings(**settings), WEIGHTS)
    again = restore(name, stream.recipe, WEIGHTS)
    assert again.recipe == stream.recipe
    assert again.shape == stream.shape
    assert again.nbytes(0.0, 2.0) == stream.nbytes(0.0, 2.0) > 0
    assert kind_of(stream.recipe) is type(stream)
    assert pickle.loads(pickle.dumps(stream)).digest == stream.digest  # as workers get it
    with pytest.raises(OptionError, match=r"cached by other rules .*version: 0 → 1"):
        restore(name, {**stream.recipe, "version": 0}, WEIGHTS)


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(OptionError, match="r3d/pool was imported"):
        restore("r3d/pool", {"stream": "r3d/pool", "imported": {"from": "npy"}, "shape": [1, 8]})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dtype": "float64"}, "Unknown dtype 'float64'"),
        ({"rgb": "png"}, "Unknown rgb 'png'"),
        ({"decoder": "ffmpeg"}, "Unknown decoder 'ffmpeg'"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
    ],
)
def test_values_that_are_none_of_the_choices(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        StreamSettings(**settings)


def test_flow_as_it_is(root: Path, tmp_path: Path) -> None:
    """float16 within its rounding of what uint8 holds in steps of 40 / 255 pixels."""
    for kind in ("uint8", "float16"):
        kdcache.extract(rows(), root, tmp_path / kind, ["flow"], short_side=64, flow=kind, bar=False)
    from kdcache.motion.flow_image import dequantise

    exact, bytes_ = (kdcache.Cache(tmp_path / kind).read("flow", ["a1"])[0] for kind in ("float16", "uint8"))
    assert (exact.dtype, exact.shape) == (np.float16, (14, 64, 96, 2))
    assert np.abs(np.clip(exact, -20, 20) - dequantise(bytes_, 20.0)).max() <= 0.5 * 40 / 255 + 0.02
    assert np.abs(exact).max() > 0.5


def test_weights_are_looked_for_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many streams, in the plan, the facts of a fit and the network: what was chosen is passed on."""
    asked = []

    @functools.wraps(weights_module.resolve)
    def counted(name: str, given: Any = None) -> Any:
        if not isinstance(given, weights_module.Choice):
            asked.append(name)
        return real(name, given)

    real = weights_module.resolve
    for module in ("registry", "weights", "checkpoint"):
        monkeypatch.setattr(f"kdcache.backbones.{module}.resolve", counted)
    streams = ["resnext101/pool", "resnext101/layer4"]
    kdcache.extract(
        rows(), root, tmp_path, streams, {"resnext101": "random:0"}, size=32, frames=4, bar=False, device="cpu"
    )
    assert asked == ["resnext101"]


def test_sizes_that_no_stream_has_are_told():
    frames, features = resolve(["rgb", "flow"]), resolve(["i3d-rgb/mixed4a"], weights={"i3d-rgb": "random:0"})
    (sentence,) = without_effect(frames, {"size": 128, "resize": None, "short_side": 64})
    assert sentence.startswith("size=128 changes nothing for rgb, flow")
    (sentence,) = without_effect(features, {"size": 128, "resize": 146, "short_side": 64})
    assert sentence.startswith("short_side=64 changes nothing for i3d-rgb/mixed4a")
    assert not without_effect([*frames, *features], {"size": 128, "resize": 146, "short_side": 64})

"""Layers of one network are computed in one pass, and are to the bit what each alone is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_videos import pictures, write

import kdcache
from kdcache import backbones
from kdcache.backbones.base import Backbone
from kdcache.backbones.freeze import FrozenLayers
from kdcache.errors import OptionError
from kdcache.extraction.features import Backbones
from kdcache.store import Cache
from kdcache.streams.backbone import passes
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

LAYERS = {
    "i3d-rgb": ("mixed4a", "Conv3d_1a_7x7", "pool", "Logits", "mixed5c"),
    "resnet34": ("layer1", "layer4", "pool", "logits"),
    "tsm-resnet50": ("layer3", "clip", "pool"),
    "vacnn-small": ("params", "image", "layer2", "pool", "logits"),
    "resnext101": ("layer3", "logits"),
}
RANDOM = {"i3d-rgb": "random:0", "resnet34": "random:0"}


def pixels(name: str) -> torch.Tensor:
    spec = backbones.input_spec(name)
    size = (2, 224, 224) if spec.modality == "skeleton" else (16 if name.startswith(("i3d", "resnext")) else 8, 64, 64)
    return torch.randint(0, 256, (1, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_together_are_those_of_each_alone(name):
    net, x = backbones.build(name, "random:0"), pixels(name)
    together = FrozenLayers(net, LAYERS[name])
    alone = [backbones.frozen(net, layer)(x) for layer in LAYERS[name]]
    found = together.at(LAYERS[name], x)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    for layer, expected in zip(LAYERS[name], alone, strict=True):  # and as far as that one alone
        assert torch.equal(together.at([layer], x)[0], expected)


def test_layers_on_several_ways_are_refused_together():
    net = backbones.build("egornn", "random:0")
    with pytest.raises(OptionError, match="No single pass gives descriptor and logits: freeze each by itself"):
        FrozenLayers(net, ["descriptor", "logits"])


def test_streams_of_one_network_are_those_that_are_given_the_same():
    wide = StreamSettings(frames=16, size=32)
    names = ["i3d-rgb/mixed4a", "resnet34/pool", "i3d-rgb/pool"]
    streams = resolve(names, wide, RANDOM)
    assert [[s.name for s in of_network] for of_network in passes(streams)] == [
        ["i3d-rgb/mixed4a", "i3d-rgb/pool"],
        ["resnet34/pool"],
    ]
    others = [
        resolve(["i3d-rgb/pool"], StreamSettings(frames=16, size=48), RANDOM),
        resolve(["i3d-rgb/pool"], wide, {"i3d-rgb": "random:1"}),
        resolve(["i3d-rgb/pool"], StreamSettings(frames=16, size=32, levels=2), RANDOM),
        resolve(["i3d-rgb/pool"], StreamSettings(frames=16, size=32, precision="bf16"), RANDOM),
    ]
    assert all(len(passes([streams[0], *other])) == 2 for other in others)
    (kept,) = resolve(["i3d-rgb/pool"], StreamSettings(frames=16, size=32, dtype="uint8"), RANDOM)
    assert len(passes([streams[0], kept])) == 1  # how they are stored is no matter


@pytest.fixture
def clips(tmp_path):
    write(tmp_path / "a.avi", pictures(24), "ffv1")
    spans = "".join(f"c{i},a.avi,{0.2 * i},{0.2 * i + 0.5}\n" for i in range(2))
    (tmp_path / "clips.csv").write_text(f"clip_id,source,start_s,stop_s\n{spans}")
    return tmp_path


@pytest.fixture
def forwards(monkeypatch):
    """Layers of each call of a network."""
    seen, real = [], FrozenLayers.at

    def at(self, layers, x):
        seen.append(list(layers))
        return real(self, layers, x)

    monkeypatch.setattr(FrozenLayers, "at", at)
    return seen


def extract(clips, out, streams, **more):
    options = {"frames": 8, "size": 32, "levels": 2, "bar": False} | more
    return kdcache.extract(clips / "clips.csv", clips, clips / out, streams, RANDOM, **options)


def arrays(clips, out, stream):
    cache = Cache(clips / out)
    return cache.read(stream, list(cache.clips["clip_id"]))


@pytest.mark.parametrize("workers", [1, 2])
def test_one_forward_serves_all_streams_of_a_network(clips, forwards, workers):
    both = ["i3d-rgb/mixed4a", "i3d-rgb/mixed5c"]
    extract(clips, "both", both, workers=workers)
    if workers == 1:
        assert forwards == [["mixed4a", "mixed5c"]] * 4  # two clips of two levels
    for stream in both:
        extract(clips, "one", [stream])
        np.testing.assert_array_equal(arrays(clips, "both", stream), arrays(clips, "one", stream))


def test_a_layer_that_is_cached_is_not_computed_again(clips, forwards):
    extract(clips, "out", ["i3d-rgb/mixed4a"])
    forwards.clear()
    report = extract(clips, "out", ["i3d-rgb/mixed4a", "i3d-rgb/mixed3c"])
    assert report.extracted == 2
    assert forwards == [["mixed3c"]] * 4
    extract(clips, "one", ["i3d-rgb/mixed3c"])
    np.testing.assert_array_equal(arrays(clips, "out", "i3d-rgb/mixed3c"), arrays(clips, "one", "i3d-rgb/mixed3c"))


def test_a_network_without_one_way_is_called_for_each(monkeypatch):
    streams = resolve(["i3d-rgb/mixed4a", "i3d-rgb/pool"], StreamSettings(frames=16, size=32), RANDOM)
    monkeypatch.setattr("kdcache.backbones.base.Chain.deepest", Backbone.deepest)
    nets = Backbones(streams, "cpu", None)
    x = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 32, 3), np.uint8)
    found = nets.several([x], streams)
    for stream in streams:
        np.testing.assert_array_equal(found[stream.name][0], nets.features([x], stream)[0])

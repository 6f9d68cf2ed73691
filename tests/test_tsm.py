"""TSM ResNet-50 against its golden output; its shift; causality for early recognition."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from backbone_cases import batch_norms, check_batch, check_misuse, check_stops, images, relative
from golden_weights import WEIGHTS, golden_state
from hypothesis import given
from hypothesis import strategies as st

from kdcache import backbones
from kdcache.backbones import tsm_layers
from kdcache.backbones.freeze import Frozen
from kdcache.backbones.tsm import TSM, level_features, shift
from kdcache.errors import OptionError
from kdcache.levels import level_frames, level_spans

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> TSM:
    """Read from a file as the authors publish it, with the weights behind the golden output."""
    state = golden_state(WEIGHTS / "tsm_resnet50_state_dict.json")
    path = tmp_path_factory.mktemp("tsm") / "published.pth"
    torch.save({"epoch": 50, "state_dict": state, "best_prec1": 71.2}, path)
    built = backbones.build("tsm-resnet50", path)
    path.unlink()
    assert isinstance(built, TSM)
    return built


def test_golden(net):
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (8, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        outputs = dict(net.endpoints(x))
    expected = np.load(WEIGHTS / "tsm_resnet50_golden.npz")["pool"]
    assert relative(outputs["pool"], torch.from_numpy(expected)) < 1e-4
    assert relative(outputs["clip"][0], outputs["pool"].mean(0)) < 1e-6
    with torch.inference_mode():
        segments = net.new_fc(outputs["pool"])
    assert relative(outputs["logits"][0], segments.mean(0)) < 1e-5  # the published consensus


def test_names_are_the_published_ones(net):
    published = json.loads((WEIGHTS / "tsm_resnet50_state_dict.json").read_text())
    own = {f"module.{name}": list(value.shape) for name, value in net.state_dict().items()}
    assert own == published
    assert backbones.build("tsm-resnet50-online", "random:0").state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("online", [False, True])
def test_shift_against_loops(online):
    x = torch.randn(2 * 4, 16, 3, 2)
    found = shift(x, 4, online).view(2, 4, 16, 3, 2)
    clips = x.view(2, 4, 16, 3, 2)
    for n in range(2):
        for t in range(4):
            for c in range(16):
                source = t
                if online:
                    source = t - 1 if c < 2 else t
                elif c < 4:
                    source = t + 1 if c < 2 else t - 1
                expected = clips[n, source, c] if 0 <= source < 4 else torch.zeros(3, 2)
                assert torch.equal(found[n, t, c], expected), (n, t, c)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shift_keeps_its_input_and_layout(layout):
    x = torch.randn(8, 16, 5, 5).contiguous(memory_format=layout)
    before = x.clone()
    assert shift(x, 8).is_contiguous(memory_format=layout)
    assert torch.equal(x, before)


def test_shapes_are_as_promised(net):
    x = net.prepare(images(2, 16, 40, 40, 3))  # two clips in a row, an odd map in the last stage
    with torch.inference_mode():
        for layer in tsm_layers.ORDER:
            found = net.features(x, layer).shape
            assert found == (2, *tsm_layers.shape(layer, 3, 16, 40)), layer
    assert net.layers["clip"] == (1, 2048)
    assert net.layers["layer3"] == (8, 1024, 14, 14)
    assert backbones.layer_shape("tsm-resnet50", "clip", frames=80) == ("clip", (10, 2048))


def test_clips_in_a_row_are_apart(net):
    x = net.prepare(images(1, 16, 32, 32, 3))
    with torch.inference_mode():
        together = net.features(x, "pool")[0]
        apart = torch.cat([net.features(x[:, :8], "pool")[0], net.features(x[:, 8:], "pool")[0]])
    assert relative(together, apart) < 1e-5


def test_features_stop_where_asked(net):
    x = net.prepare(images(1, 8, 32, 32, 3))
    check_stops(net, x, "layer2", "base_model.layer2", ("base_model.layer3", "base_model.layer4", "new_fc"))
    check_stops(net, x, "clip", "base_model.layer4", ("new_fc",))


def test_batch(net):
    check_batch(net, net.prepare(images(16, 8, 32, 32, 3)), "clip")


def test_misuse(net):
    check_misuse(net, torch.zeros(1, 8, 3, 32, 32), 3)
    with pytest.raises(OptionError, match="clips of 8 frames and got 12"):
        net.features(torch.zeros(1, 12, 3, 32, 32), "pool")
    with pytest.raises(OptionError, match="clips of 8 frames and got 4"):
        backbones.layer_shape("tsm-resnet50", "clip", frames=4)


def test_prepare_is_imagenets(net):
    pixels = images(1, 8, 32, 32, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((pixels / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    assert relative(net.prepare(pixels), expected) < 1e-6


def test_frozen_is_the_network(net):
    pixels = images(2, 8, 32, 32, 3)
    frozen = Frozen(net, "clip")
    assert batch_norms(frozen._net) == 0
    with torch.inference_mode():
        assert relative(frozen(pixels), net.features(net.prepare(pixels), "clip")) < 1e-4
    short = copy.deepcopy(net)
    short.truncate("layer1")
    assert sum(p.numel() for p in short.parameters()) < 300_000
    with pytest.raises(OptionError, match="Unknown layer 'pool'"):
        short.features(net.prepare(pixels), "pool")


@pytest.mark.parametrize("mode", ["segment", "prefix"])
def test_progress_never_looks_ahead(net, mode):
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (23, 32, 32, 3), np.uint8)
    features = level_features(net, frames, 3, mode)
    assert features.shape == (3, 2048)
    for level, end in enumerate([7, 15]):  # ⌊23 n / 3⌋
        changed = frames.copy()
        changed[end:] = rng.integers(0, 256, changed[end:].shape)
        later = level_features(net, changed, 3, mode)
        assert torch.equal(later[: level + 1], features[: level + 1])
        assert not torch.equal(later[level + 1], features[level + 1])


def test_online_shift_sees_the_past_alone():
    online = backbones.build("tsm-resnet50-online", "random:0")
    offline = backbones.build("tsm-resnet50", "random:0")
    pixels = images(1, 8, 32, 32, 3)
    changed = pixels.clone()
    changed[:, 5:] = images(1, 3, 32, 32, 3, seed=1)
    with torch.inference_mode():
        before, after = (online.features(online.prepare(p), "pool")[0] for p in (pixels, changed))
        assert torch.equal(before[:5], after[:5])
        assert not torch.equal(before[5:], after[5:])
        before, after = (offline.features(offline.prepare(p), "pool")[0] for p in (pixels, changed))
        assert not torch.equal(before[:5], after[:5])  # which is why the offline shift needs clips of their own
        changed = pixels.clone()
        changed[:, 0] = 0
        assert not torch.equal(online.features(online.prepare(changed), "pool")[0, 3], before[3])  # the past does reach


@given(frames=st.integers(1, 400), levels=st.integers(1, 20), mode=st.sampled_from(["segment", "prefix"]))
def test_level_spans(frames, levels, mode):
    spans = level_spans(frames, levels, mode)
    ends = [max(1, (n + 1) * frames // levels) for n in range(levels)]
    assert spans[:, 1].tolist() == ends
    assert ends[-1] == frames
    assert (spans[:, 0] >= 0).all()
    assert (spans[:, 0] < spans[:, 1]).all()
    if mode == "segment" and frames >= levels:
        assert spans[:, 0].tolist() == [0, *ends[:-1]]
    sampled = level_frames(frames, levels, 8, mode)
    assert (np.diff(sampled, axis=1) >= 0).all()
    assert ((sampled >= spans[:, :1]) & (sampled < spans[:, 1:])).all()


def test_level_frames_by_hand():
    assert level_frames(80, 10)[3].tolist() == list(range(24, 32))
    assert level_frames(160, 10)[0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]  # ⌊tick/2 + tick i⌋ with tick 2
    assert level_frames(1, 3, 2).tolist() == [[0, 0]] * 3
    assert level_frames(4, 10, 1)[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    with pytest.raises(OptionError, match="Unknown mode 'prefx': did you mean 'prefix'"):
        level_spans(9, 3, "prefx")
    with pytest.raises(OptionError, match="at least one of each"):
        level_spans(0, 3)

"""Motion imprinting: θ(·), the losses, the labels, and what each stage trains."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_cases import relative
from memory_stream import MemoryStream, data_on
from PIL import Image
from torch import nn
from torch.nn import functional as F

from kdcache import losses
from kdcache.backbones.checkpoint import random_init
from kdcache.backbones.resnet import ResNet34, cam_attention
from kdcache.engine.freezing import frozen_but, set_train_mode
from kdcache.errors import OptionError
from kdcache.methods import imprint
from kdcache.methods.contract import Split, Stage
from kdcache.methods.imprint import Options
from kdcache.methods.imprint_networks import Imprint, motion_share

pytestmark = pytest.mark.usefixtures("one_thread")
T, SIZE, CLASSES = 3, 64, 3
TINY = Options(
    frames=T,
    size=SIZE,
    hidden=16,
    cam_classes=10,
    target="label",
    stage1="batch_size=2",
    stage2="batch_size=2",
    dropout=0.0,
)


@pytest.fixture(scope="module")
def resnet():
    """A random ResNet-34 with a classifier of ten classes."""
    return random_init(ResNet34(10), 0)


@pytest.fixture(scope="module")
def streams():
    """Of four clips: frames, their motion maps, and layer-3 maps."""
    rng = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (4, 1, T, SIZE, SIZE, 3), generator=rng).to(torch.uint8)
    coarse = torch.rand(4 * T, 1, 8, 8, generator=rng)
    motion = (F.interpolate(coarse, (SIZE, SIZE)).view(4, 1, T, SIZE, SIZE) > 0.6).to(torch.uint8) * 255
    maps = torch.randn(4, 1, T, 256, SIZE // 16, SIZE // 16, generator=rng).relu()
    named = {"rgb": rgb, "motion": motion, "motion_beside": motion, "maps": maps}
    return {name: MemoryStream(values) for name, values in named.items()}


@pytest.fixture
def data(resnet, streams):
    """Two training and two test clips."""
    splits = {
        name: Split([f"{name}{i}" for i in rows], {"clip": torch.tensor(rows)}, {"label": torch.tensor(y)})
        for name, rows, y in (("train", [0, 1], [0, 2]), ("test", [2, 3], [1, 2]))
    }
    classes = {"label": list(range(CLASSES))}
    return data_on(streams, splits=splits, classes=classes, backbone=lambda name: resnet)


def network(data, seed=0, **given) -> Imprint:
    """A network in evaluation mode whose every part is random, β and γ among them, and whose attention is mild."""
    options = replace(TINY, **given)
    net = imprint.network(options, data, data.backbone("maps")).eval()
    with torch.no_grad():
        net.action.resnet.fc.weight *= 0.01
    if net.feedback is not None:
        rng = torch.Generator().manual_seed(seed)
        for parameter in net.feedback.parameters():
            nn.init.normal_(parameter, std=0.05, generator=rng)
    return net


# θ(·)


def by_hand(net: Imprint, x: torch.Tensor, at: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """F, F~ and the last cell state as the paper tells them, one clip and one frame at a time, from plain layers."""
    res, ms, feedback = net.action.resnet, net.ms, net.feedback
    maps, pre = [], []
    for clip in x:
        U = None
        for frame in clip:
            here = frame[None] if at == "layer3" else res.conv1(res.prepare(frame[None, None])[0])
            if U is not None:
                up = F.interpolate(U, size=here.shape[-2:], mode="bilinear", align_corners=False)
                factor = {}
                for name in ("beta", "gamma"):
                    first, _, second = getattr(feedback, name)
                    hidden = F.conv2d(up, first.weight, first.bias).relu()
                    factor[name] = F.conv2d(hidden, second.weight, second.bias)
                here = factor["beta"] * here + factor["gamma"]
            if at == "conv1":
                here = res.layer3(res.layer2(res.layer1(res.maxpool(res.relu(res.bn1(here))))))
            *blocks, last = res.layer4
            for block in blocks:
                here = block(here)
            plain = last.conv2(last.relu(last.bn1(last.conv1(here))))
            pre.append(plain + here)
            maps.append((last.bn2(plain) + here).relu())
            U = ms.conv100(maps[-1].relu())
    shape = (len(x), x.shape[1], 512, *maps[0].shape[-2:])
    all_maps, all_pre = torch.cat(maps).view(shape), torch.cat(pre).view(shape)
    scores = F.linear(all_maps.mean((3, 4)), res.fc.weight, res.fc.bias)
    attended = all_pre * cam_attention(all_maps, res.fc.weight, scores).unsqueeze(2)
    return all_maps, all_pre, net.action.lstm(attended)[:, -1]


@pytest.mark.parametrize("at", ["conv1", "layer3"])
def test_theta_frame_by_frame(data, streams, at):
    """Equation (1) with random β and γ, against a loop over clips and frames."""
    net = network(data, feedback=at)
    x = streams["rgb" if at == "conv1" else "maps"].data[:2, 0]
    with torch.inference_mode():
        found = net(x)
        maps, _, cell = by_hand(net, x, at)
        plain = Imprint(net.action)(x)
    assert relative(found["maps"], maps) < 1e-5
    assert relative(found["cells"][:, -1], cell) < 1e-4
    assert relative(found["maps"][:, 0], plain["maps"][:, 0]) < 1e-5  # β_1 = 1, γ_1 = 0
    assert relative(found["maps"][:, 1:], plain["maps"][:, 1:]) > 0.1


@pytest.mark.parametrize("at", ["conv1", "layer3"])
def test_identity_feedback_changes_nothing(data, streams, at):
    net = imprint.network(replace(TINY, feedback=at), data, data.backbone("maps")).eval()
    x = streams["rgb" if at == "conv1" else "maps"].data[:2, 0]
    with torch.inference_mode():
        found, plain = net(x), Imprint(net.action)(x)
    for name in ("logits", "descriptor", "attention", "maps"):
        torch.testing.assert_close(found[name], plain[name], rtol=1e-5, atol=1e-5)
    literal = imprint.network(replace(TINY, feedback=at, feedback_init="default"), data, data.backbone("maps")).eval()
    beta, _ = literal.factors(found["maps"][:, 0], literal.early(x)[:, 1])
    assert beta.shape == (2, *{"conv1": (64, 32, 32), "layer3": (256, 4, 4)}[at])
    assert (beta - 1).abs().mean() > 0.5


def test_no_gradient_through_the_frame_before(data, streams):
    """The last frame's F depends on earlier frames through U alone, and its gradient stops there."""
    net = network(data, feedback="layer3").requires_grad_(True)
    x = streams["maps"].data[:1, 0].clone().requires_grad_(True)
    out = net(x)
    out["maps"][:, -1].square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, -1].abs().sum() > 0
    assert not x.grad[:, :-1].any()
    assert net.ms.conv100.weight.grad is None
    assert net.feedback.beta[0].weight.grad.abs().sum() > 0
    changed = x.detach().clone()
    changed[:, 0] += 1
    with torch.inference_mode():
        assert not torch.allclose(net(changed)["maps"][:, 1], out["maps"][:, 1], atol=1e-4)


def test_the_loss_of_an_action_does_not_reach_the_motion_segmentation(data, streams):
    net = network(data).requires_grad_(True)
    x, y = streams["rgb"].data[:2, 0], torch.tensor([0, 1])
    F.cross_entropy(net(x)["logits"], y).backward()
    assert all(p.grad is None for p in net.ms.parameters())
    assert all(p.grad is not None for p in net.feedback.parameters())


# Labels and losses


@pytest.mark.parametrize(("size", "cells"), [(224, 7), (64, 2), (160, 5)])
@pytest.mark.parametrize("binary", [True, False])
def test_motion_maps_are_resized_as_pillow_does(size, cells, binary):
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 256, (2, 3, size, size)).astype(np.uint8)
    maps[0, 0, : size // 3, size // 5 :] = 255
    maps = np.where(maps > 180, 255, 0).astype(np.uint8) if binary else maps
    found = motion_share(torch.from_numpy(maps), cells) * 255
    expected = [
        np.asarray(Image.fromarray(one).resize((cells, cells), Image.Resampling.BILINEAR))
        for one in maps.reshape(-1, size, size)
    ]
    assert np.array_equal(found.round().numpy().astype(np.uint8), np.stack(expected).reshape(2, 3, cells, cells))


def test_each_loss_by_hand():
    """Two frames of 1 × 2 cells (as 2 × 2 with the lower ones alike)."""
    m = torch.tensor([[[[1.0, 0], [0, 0]], [[1, 1], [0, 0]]]])
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[0, 0, 1, 0, 0] = 2.0  # right: moves
    logits[0, 1, 1, 1, 1] = 2.0  # wrong: is still
    still, right, wrong = np.log(2), np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    cells = [right + 3 * still, wrong + 3 * still]
    assert losses.l_ms(logits, m).tolist() == pytest.approx([sum(cells) / 4])
    assert losses.l_ms(logits, m, "cls", "sum").tolist() == pytest.approx([sum(cells)])

    one = torch.tensor([[[[1.0, 0], [0, 0]], [[0, 0], [0, 0]]]])
    whole = np.log(np.e + 3) - 1 + 2 * np.log(4)  # frame 1: one moving cell; frame 2: two of a flat softmax
    assert losses.l_ms(one, m, "cls", "sum").tolist() == pytest.approx([whole], rel=1e-6)
    assert losses.l_ms(one, m, "cls").tolist() == pytest.approx([whole / 4], rel=1e-6)

    l = torch.full((2, 2, 2, 2), 0.5)  # noqa: E741
    share = torch.tensor([[0.5, 0.5], [0.0, 1.5]]).expand(2, 2, 2, 2)
    assert losses.l_ms(l, share, "reg_mse").tolist() == pytest.approx([2 * 1.25 / 4] * 2)
    assert losses.l_ms(l, share, "reg_mse", "sum").tolist() == pytest.approx([2 * 1.25] * 2)
    assert losses.l_ms(l, share, "reg_l1").tolist() == pytest.approx([2 * 1.5 / 4] * 2)
    assert losses.l_ms(l, share, "reg_l1", "sum").tolist() == pytest.approx([2 * 1.5] * 2)
    m.requires_grad_(True)
    losses.l_ms(logits.requires_grad_(True), m).sum().backward()
    assert m.grad is None


def test_reductions_of_a_batch_and_the_threshold():
    """``code``: means over clips and cells, added up over frames; ``paper``: (3) and (6) add up, (5) does not."""
    l = torch.zeros(2, 3, 2, 2)  # noqa: E741
    maps = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    maps[..., :32, :32] = 255
    s = motion_share(maps, 2)[0, 0].flatten().tolist()
    assert s[0] > 0.7 > 0.2 > s[1] > 0.02 > s[3] > 0  # the filter reaches into the neighbours
    expected = {
        ("reg_mse", "code"): 3 * sum(v**2 for v in s) / 4,
        ("reg_mse", "paper"): 2 * 3 * sum(v**2 for v in s) / 4,
        ("reg_l1", "code"): 3 * sum(s) / 4,
        ("reg_l1", "paper"): 2 * 3 * sum(s),
    }
    for (ms, reduction), value in expected.items():
        options = replace(TINY, feedback="off", ms=ms, ms_reduction=reduction)
        assert float(imprint.l_ms(options, l, maps)) == pytest.approx(value, rel=1e-5), (ms, reduction)
    two = torch.zeros(2, 3, 2, 2, 2)
    two[:, :, 1] = 1.0  # everything moves
    moves, still = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    for tau, count in ((0.2, 1), (0.1, 3), (0.0, 4)):
        said = float(imprint.l_ms(replace(TINY, tau=tau), two, maps))
        assert said == pytest.approx(3 * (count * moves + (4 - count) * still) / 4, rel=1e-5), tau
    said = float(imprint.l_ms(replace(TINY, ms_reduction="paper"), two, maps))
    assert said == pytest.approx(2 * 3 * (moves + 3 * still), rel=1e-5)


# Stages

ROWS = {
    "ours": {},
    "no ms": {"feedback": "off", "ms": "none"},
    "no attention": {"feedback": "off", "attention": False},
    "light": {"feedback": "layer3", "ms": "reg_mse"},
    "whole": {"stage3_backbone": "whole"},
    "ms goes on": {"freeze_ms_stage3": False},
    "two stages": {"stages": 2},
    "two stages, light": {"stages": 2, "feedback": "layer3"},
}
STAGE_1 = ("action.lstm.", "action.classify.")
STAGE_2 = (*STAGE_1, "action.resnet.layer4.", "action.resnet.fc.weight", "ms.")
STAGE_3 = (*(n for n in STAGE_2 if n != "ms."), "action.resnet.conv1.", "feedback.")


def expected(row: str) -> list[tuple[str, ...]]:
    """Prefixes of what trains in each stage."""
    light = tuple(n for n in STAGE_3 if n != "action.resnet.conv1.")
    rest = ("action.resnet.bn1.", *(f"action.resnet.layer{i}." for i in (1, 2, 3)))
    return {
        "ours": [STAGE_1, STAGE_2, STAGE_3],
        "no ms": [STAGE_1, STAGE_2],
        "no attention": [STAGE_1, tuple(n for n in STAGE_2 if n != "action.resnet.fc.weight")],
        "light": [STAGE_1, STAGE_2, light],
        "whole": [STAGE_1, STAGE_2, (*STAGE_3, *rest)],
        "ms goes on": [STAGE_1, STAGE_2, (*STAGE_3, "ms.")],
        "two stages": [STAGE_1, (*STAGE_3, "ms.")],
        "two stages, light": [STAGE_1, (*light, "ms.")],
    }[row]


@pytest.mark.parametrize("row", ROWS)
def test_each_stage_moves_exactly_what_it_trains(data, row):
    """Gradients, one optimiser step, and the statistics of batch norms."""
    stages = list(one_step_of(imprint.stages(replace(TINY, **ROWS[row]), data), data))
    assert [name for name, *_ in stages] == [f"stage{i + 1}" for i in range(len(expected(row)))]
    for (name, got, moved, updated, all_names), prefixes in zip(stages, expected(row), strict=True):
        wanted = {n for n in all_names if n.startswith(prefixes)}
        assert got == wanted, name
        assert moved == wanted, name
        norms = {n.removesuffix("weight") for n in wanted if ".bn" in n or "downsample.1" in n}
        assert {n.rpartition(".")[0] + "." for n in updated} == {n.rpartition(".")[0] + "." for n in norms}, name


def one_step_of(stages, data):
    """Of each stage: its name; parameters with a gradient; those that one step moved; buffers that it changed; all."""
    for stage in stages:
        assert isinstance(stage, Stage)
        if isinstance(stage.module, Imprint) and stage.module.feedback is not None:
            for parameter in stage.module.feedback.parameters():  # from the identity, one layer gets no gradient
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        (batch,) = data.batches(stage.train, 2, 0)
        with frozen_but(stage.module, stage.optimizer):
            set_train_mode(stage.module, stage.optimizer)
            before = copy.deepcopy(stage.module.state_dict())
            stage.optimizer.zero_grad()
            sum(stage.losses(batch).values()).backward()
            named = dict(stage.module.named_parameters())
            got = {name for name, p in named.items() if p.grad is not None and bool(p.grad.any())}
            stage.optimizer.step()
        after = stage.module.state_dict()
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        stage.optimizer.zero_grad()
        yield stage.name, got, changed & set(named), changed - set(named), set(named)


def test_inputs_of_each_variant():
    def read(**given):
        return {one.name: one.when for one in imprint.inputs(Options(**given))}

    assert read() == {"maps": "train", "motion_beside": "train", "rgb": "always", "motion": "train"}
    assert read(feedback="off") == {"maps": "always", "motion_beside": "train"}
    assert read(feedback="layer3", stages=2) == {"maps": "always", "motion_beside": "train"}
    assert read(feedback="off", ms="none") == {"maps": "always"}
    assert read(stages=2) == {"maps": "train", "rgb": "always", "motion": "train"}
    beside = {one.name: one.segment.beside for one in imprint.inputs(Options()) if one.segment is not None}
    assert beside == {"motion_beside": True, "rgb": False, "motion": False}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ms": "none"}, r"feedback=conv1 reads the motion segmentation, and ms=none: set feedback=off"),
        ({"ms": "none", "feedback": "off", "alpha": 0.5}, "alpha=0.5 means nothing with ms=none"),
        ({"ms": "reg_l1", "tau": 0.5}, "tau=0.5 means nothing with ms=reg_l1"),
        ({"ms": "reg_mse", "ms_head": "softmax49"}, "ms_head=softmax49 means nothing with ms=reg_mse"),
        ({"feedback": "off", "stages": 2}, "stages=2 means nothing with feedback=off"),
        ({"feedback": "off", "stage3_backbone": "whole"}, "stage3_backbone=whole means nothing with feedback=off"),
        (
            {"feedback": "layer3", "stage3_backbone": "whole"},
            "stage3_backbone=whole means nothing with feedback=layer3",
        ),
        ({"stages": 2, "freeze_ms_stage3": False}, "freeze_ms_stage3=False means nothing with stages=2"),
        ({"alpha": 0}, "alpha=0: give a positive number"),
        ({"tau": 1}, "tau=1: give a share of motion"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        Options(**given)


def test_maps_of_other_frames_are_refused(data):
    with pytest.raises(OptionError, match=r"of 3 frames of 64 px, but frames=7 and size=64"):
        imprint.resolve(replace(TINY, frames=7), data)
    assert imprint.resolve(replace(TINY, cam_classes=0), data).cam_classes == 10


def test_every_option_reaches_the_objective(data):
    """α, τ, reductions, heads and reductions each give another L_ms on the same batch."""
    values = {}
    for name, given in {
        "default": {},
        "alpha": {"alpha": 0.5},
        "tau": {"tau": 0.35},
        "paper": {"ms_reduction": "paper"},
        "softmax49": {"ms_head": "softmax49"},
        "mse": {"ms": "reg_mse"},
        "l1": {"ms": "reg_l1"},
    }.items():
        stage = list(imprint.stages(replace(TINY, feedback="off", **given), data))[1]
        (batch,) = data.batches(stage.train, 2, 0)
        terms = {k: float(v.detach()) for k, v in stage.losses(batch).items()}
        assert terms["L_cl"] == pytest.approx(values.setdefault("L_cl", terms["L_cl"]), rel=1e-5)
        values[name] = terms["L_ms"]
    assert values["alpha"] == pytest.approx(values["default"] / 2, rel=1e-5)
    assert values["paper"] == pytest.approx(values["default"] * 2 * 4, rel=1e-5)  # clips × cells
    assert len({round(v, 6) for v in values.values()}) == len(values)


# Pictures


def test_pictures(data, streams):
    options = TINY
    predictor = imprint.predictor(options, data)
    state = random_init(ResNet34(10), 1)
    predictor.module.action.resnet.load_state_dict(state)
    predictor.module.eval()
    asked = []

    def load(name, module):
        asked.append((name, sorted({n.partition(".")[0] for n, _ in module.named_parameters()})))
        module.action.resnet.load_state_dict(data.backbone("maps"))
        return module.eval()

    for layer in (predictor.module.feedback.beta[2], predictor.module.feedback.gamma[2]):
        with torch.no_grad():
            layer.bias[[5, 9]] += torch.tensor([1.0, 2.0])
    batch = {name: streams[name].data[:1, 0] for name in ("rgb", "motion")}
    pictures = imprint.explain(options, data, predictor, batch, load)
    by_title = {p.title: p for p in pictures}
    assert asked == [("stage2", ["action", "ms"])]
    assert list(by_title) == [
        *("CAM before feedback", "CAM after feedback", "motion segmentation", "motion map"),
        *("beta_9", "gamma_9", "conv1_9", "theta(conv1_9)", "beta_5", "gamma_5", "conv1_5", "theta(conv1_5)"),
    ]
    for picture in pictures:
        assert picture.values.shape[0] == T
        assert picture.values.dtype == torch.float32
    assert by_title["CAM after feedback"].over
    assert by_title["CAM after feedback"].scale == by_title["CAM before feedback"].scale
    assert by_title["conv1_9"].scale == by_title["theta(conv1_9)"].scale
    torch.testing.assert_close(by_title["motion map"].values, motion_share(batch["motion"], 2)[0])
    assert by_title["motion map"].scale == by_title["motion segmentation"].scale == (0.0, 1.0)
    assert torch.equal(by_title["beta_9"].values, torch.tensor([1.0, 3, 3])[:, None, None].expand(T, 32, 32))
    before, after = by_title["conv1_9"].values, by_title["theta(conv1_9)"].values
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1:], 3 * before[1:] + 2)
    alone = imprint.explain(options, data, predictor, {"rgb": batch["rgb"]}, load)
    assert "motion map" not in {p.title for p in alone}


def test_pictures_without_feedback_and_of_two_stages(data, streams):
    def load(name, module):
        assert name == "stage1"
        return module.eval()

    batch = {"maps": streams["maps"].data[:1, 0], "motion_beside": streams["motion_beside"].data[:1, 0]}
    titles = {}
    for row, given in {
        "no ms": {"feedback": "off", "ms": "none"},
        "one softmax": {"feedback": "off", "ms_head": "softmax49"},
        "shares": {"feedback": "off", "ms": "reg_l1"},
        "two stages": {"feedback": "layer3", "stages": 2},
    }.items():
        options = replace(TINY, **given)
        pictures = imprint.explain(options, data, imprint.predictor(options, data), batch, load)
        titles[row] = [p.title for p in pictures][:4]
    assert titles["no ms"] == ["CAM"]
    assert titles["one softmax"] == titles["shares"] == ["CAM", "motion segmentation", "motion map"]
    assert titles["two stages"][0] == "CAM before feedback"

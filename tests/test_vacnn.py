"""VA-CNN against its golden outputs; skeleton images against the published steps; what is missing; causality."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from backbone_cases import batch_norms, check_batch, check_misuse, check_stops, images, relative
from golden_weights import WEIGHTS, golden_state
from PIL import Image
from torchvision.models import resnet18, resnet50

from kdcache import backbones
from kdcache.backbones import vacnn_layers
from kdcache.backbones.checkpoint import random_init
from kdcache.backbones.freeze import Frozen
from kdcache.backbones.vacnn import VACNN, rotation, seen_from, start
from kdcache.errors import OptionError, WeightsError
from kdcache.skeletons import Skeleton, open_skeleton
from kdcache.skeletons.image import (
    NTU_LIMITS,
    bytescale,
    centred,
    image_of,
    level_images,
    limits_of,
    rotated,
    skeleton_image,
    visible,
)
from kdcache.skeletons.jhmdb import clips_of
from kdcache.skeletons.ntu import Actors, Track

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> VACNN:
    """Read from a file as the published training writes it, with the weights behind the golden output."""
    state = golden_state(WEIGHTS / "vacnn_state_dict.json")
    state["fc.weight"] *= 0.02
    path = tmp_path_factory.mktemp("vacnn") / "0_best.pth"
    torch.save({"epoch": 9, "state_dict": state, "best": torch.tensor(88.0), "monitor": "val_acc"}, path)
    built = backbones.build("vacnn", path)
    path.unlink()
    assert isinstance(built, VACNN)
    return built


def one_person(joints: np.ndarray, centre: int = 1) -> Skeleton:
    frames = np.arange(len(joints), dtype=np.int32)
    return Skeleton(joints.astype(np.float32), joints.shape[1], centre, frames, len(joints), 30.0, "test")


def moving(rng, frames, joints, bodies=1):
    """A smooth walk of ``bodies`` × ``joints`` joints, float32 [frames, bodies × joints, 3], away from zero."""
    steps = rng.normal(0, 0.05, (frames, bodies * joints, 3)).cumsum(axis=0)
    return (steps + rng.normal(0, 0.4, (1, bodies * joints, 3)) + [0.3, 0.2, 3]).astype(np.float32)


# ---- the small network


def test_the_small_network_sees_the_same_images_averaged_down():
    net = backbones.build("vacnn-small", "random:0", num_classes=5)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (1, 2, 224, 224, 3)).astype(np.uint8))
    prepared = net.prepare(x)
    assert prepared.shape == (1, 2, 3, 96, 96)
    corner = x[0, 0, :3, :3].float().mean((0, 1)) - 110  # the first of 96 pixels lies on 2 ⅓, 3 with its rest
    assert torch.allclose(prepared[0, 0, :, 0, 0], corner, atol=1e-4)
    for name, shape in net.layers.items():
        with torch.no_grad():
            assert net.features(prepared, name).shape == (1, 2, *shape[1:]), name
    assert backbones.layer_shape("vacnn-small", "logits", 3, classes=5) == ("logits", (3, 5))
    assert backbones.layer_axes("vacnn-small", "pool") == "ND"
    with pytest.raises(OptionError, match="SmallVACNN takes images of 96 × 96 pixels"):
        net.features(torch.zeros(1, 1, 3, 224, 224), "pool")


def test_the_small_network_starts_from_a_resnet18():
    net = backbones.build("vacnn-small", "random:0", num_classes=5)
    state = random_init(resnet18(weights=None), 1)
    start(net, 0, state)
    assert torch.equal(net.resnet.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert net.fc.weight.abs().max() == 0
    with pytest.raises(WeightsError, match="These are not a ResNet-18's weights"):
        start(net, 0, random_init(resnet50(weights=None), 1))


# ---- the network


def test_golden(net):
    golden = np.load(WEIGHTS / "vacnn_golden.npz")
    x = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        outputs = dict(net.endpoints(x, torch.from_numpy(golden["maxmin"]).flip(1)))
    expected = {name: torch.from_numpy(golden[name]) for name in golden.files}
    assert relative(outputs["params"], expected["params"]) < 1e-4
    assert relative(outputs["image"].mean((2, 3)), expected["image_mean"]) < 1e-4
    assert relative(outputs["image"][:, :, :4, :4], expected["image_corner"]) < 1e-4
    assert relative(outputs["logits"], expected["logits"]) < 1e-4
    for name, output in outputs.items():
        assert output.shape == (2, *vacnn_layers.shape(name, 3, 1, 224)[1:]), name


def test_names_are_the_published_ones(net):
    published = json.loads((WEIGHTS / "vacnn_state_dict.json").read_text())
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == published


def test_layers_for_ten_levels(net):
    assert net.layers["pool"] == (10, 2048)
    assert net.layers["params"] == (10, 6)
    assert backbones.layer_shape("vacnn", "layer4") == ("layer4", (10, 2048, 7, 7))
    with pytest.raises(OptionError, match="224 pixels wide, not 112"):
        backbones.layer_shape("vacnn", "pool", size=112)


def test_features_stop_where_asked(net):
    x = net.prepare(images(1, 1, 224, 224, 3))
    check_stops(net, x, "params", "fc", ("classifier",))
    check_stops(net, x, "layer1", "classifier.layer1", ("classifier.layer2", "classifier.fc"))


def test_batch(net):
    check_batch(net, net.prepare(images(16, 1, 224, 224, 3)), "pool")


def test_misuse(net):
    check_misuse(net, torch.zeros(1, 2, 3, 224, 224), 3)
    with pytest.raises(OptionError, match="224 × 224 pixels"):
        net.features(torch.zeros(1, 2, 3, 112, 112), "pool")


def test_prepare_takes_both_kinds_of_image(net):
    pixels = images(1, 2, 224, 224, 3)
    assert torch.equal(net.prepare(pixels), pixels.permute(0, 1, 4, 2, 3).float() - 110)
    assert torch.equal(net.prepare(pixels.float()), net.prepare(pixels))


def test_frozen_is_the_network(net):
    pixels = images(1, 2, 224, 224, 3)
    frozen = Frozen(net, "layer1")
    assert batch_norms(frozen._net) == 0
    assert not any(name.startswith(("classifier.layer2", "classifier.fc")) for name in frozen._net.state_dict())
    with torch.inference_mode():
        assert relative(frozen(pixels), net.features(net.prepare(pixels), "layer1")) < 1e-4


def test_start_is_the_published_one(net):
    with torch.device("meta"):
        blank = resnet50(weights=None)
    imagenet = random_init(blank, 5)
    begun = start(copy.deepcopy(net), 3, imagenet)
    x = begun.prepare(images(1, 1, 224, 224, 3))
    with torch.inference_mode():
        assert torch.equal(begun.features(x, "params"), torch.zeros(1, 1, 6))
        assert relative(begun.features(x, "image"), x) < 1e-6  # seen as it is
    bound = (6 / (128 * 25 + 3 * 25)) ** 0.5  # Xavier's
    assert bound * 0.99 < begun.conv1.weight.abs().max() <= bound
    assert torch.equal(begun.resnet.state_dict()["layer3.1.conv2.weight"], imagenet["layer3.1.conv2.weight"])
    assert torch.equal(begun.resnet.state_dict()["fc.weight"], net.resnet.state_dict()["fc.weight"])
    with pytest.raises(WeightsError, match="not a ResNet-50's weights"):
        start(begun, 3, {"layer1.0.conv1.weight": imagenet["layer1.0.conv1.weight"]})


# ---- the view transform


def test_rotation_by_hand():
    angles = np.array([[0.3, -0.7, 1.1]], np.float32)
    (a, b, c) = angles[0].astype(float)
    x = np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
    np.testing.assert_allclose(rotation(torch.from_numpy(angles))[0], z @ y @ x, atol=1e-6)
    joints = moving(np.random.default_rng(0), 4, 25)
    np.testing.assert_allclose(rotated(joints, angles[0]), joints @ (z @ y @ x).T, rtol=1e-4, atol=1e-5)


def test_moving_the_image_is_moving_the_skeleton():
    """Equation (12): the transformed image is the image of the skeleton R (S + d), as long as nothing is taken off."""
    rng = np.random.default_rng(1)
    skeleton = torch.from_numpy(rng.normal(0, 1, (2, 3, 6, 5)))
    params = torch.from_numpy(rng.normal(0, 0.5, (2, 6)))
    limits = torch.tensor([[-2.0, 3.0], [-1.5, 1.0]], dtype=torch.float64)

    def picture(joints):
        low, high = limits[:, :1, None, None], limits[:, 1:, None, None]
        return 255 * (joints - low) / (high - low)

    moved = torch.einsum("nij,njtk->nitk", rotation(params[:, :3]), skeleton + params[:, 3:, None, None])
    assert relative(seen_from(picture(skeleton), params, limits), picture(moved)) < 1e-5


# ---- skeletons to images


def published_image(rows, low, high):
    """The published steps on a sequence [T, 150] padded with zeros, loop by loop, with what scipy did written out."""
    rows = np.stack([row for row in rows if (row != 0).any()])
    if (rows[:, :75] == 0).all():
        rows = rows[:, 75:]
    elif (rows[:, 75:] == 0).all():
        rows = rows[:, :75]
    values = (255 * (rows - np.float32(low)) / np.float32(high - low)).reshape(len(rows), -1, 3)
    scale = np.float32(255.0 / (float(values.max()) - float(values.min())))
    stretched = ((values - values.min()) * scale + 0).clip(0, 255)
    size = (224, 224)
    return np.asarray(Image.fromarray((stretched + np.float32(0.5)).astype(np.uint8)).resize(size, Image.BILINEAR))


@pytest.mark.parametrize("bodies", ["first", "second", "both"])
def test_image_is_the_published_one(bodies):
    joints = moving(np.random.default_rng(2), 60, 25, 2)
    joints[:, : 25 if bodies == "second" else 0] = 0
    joints[:, 25 if bodies == "first" else 50 :] = 0
    joints[[7, 8, 30]] = 0
    found = skeleton_image(joints, 25)
    np.testing.assert_array_equal(found, published_image(joints.reshape(60, 150), *NTU_LIMITS))
    assert found.shape == (224, 224, 3)
    assert found.dtype == np.uint8


def test_bytescale_is_scipys():
    """The example that scipy's documentation gave for ``scipy.misc.bytescale``."""
    values = [[91.06794177, 3.39058326, 84.4221549], [73.88003259, 80.91433048, 4.88878881], [51.53875334, 34.45808177, 27.5873488]]  # fmt: skip  # noqa: E501
    expected = [[255, 0, 236], [205, 225, 4], [140, 90, 70]]
    assert bytescale(np.array(values, np.float32)).tolist() == expected
    assert not bytescale(np.full((3, 2, 3), 7, np.float32)).any()


def triangle(size, side, antialias):
    """Weights [side, size] of bilinear interpolation between pixel centres, widened for shrinking if asked."""
    scale = size / side
    width = max(1.0, scale) if antialias else 1.0
    centre = (np.arange(side)[:, None] + 0.5) * scale
    if not antialias:
        centre = np.clip(centre, 0.5, size - 0.5)
    weights = np.clip(1 - np.abs(np.arange(size) + 0.5 - centre) / width, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("frames", "joints"), [(40, 25), (300, 20), (5, 15)])
@pytest.mark.parametrize("resize", ["scipy_bytescale", "float_bilinear"])
def test_resizing_against_matrices(frames, joints, resize):
    sequence = moving(np.random.default_rng(3), frames, joints)
    limits = (-2.0, 5.0)
    pixels = 255 * (sequence - limits[0]) / (limits[1] - limits[0])
    antialias = resize == "scipy_bytescale"
    if antialias:
        pixels = bytescale(pixels)
    rows, columns = triangle(frames, 224, antialias), triangle(joints, 224, antialias)
    expected = np.einsum("rt,tjc,kj->rkc", rows, pixels.astype(float), columns, optimize=True)
    found = skeleton_image(sequence, joints, limits, resize)
    tolerance = 1.01 if antialias else 0.02  # 8-bit in between; OpenCV's float32 weights
    assert found.dtype == (np.uint8 if antialias else np.float32)
    assert np.abs(found - expected).max() < tolerance


def test_limits_cancel_in_the_faithful_image():
    joints = moving(np.random.default_rng(4), 30, 20)
    one, other = skeleton_image(joints, 20, (-4, 6)).astype(int), skeleton_image(joints, 20, (-20, 9)).astype(int)
    assert np.abs(one - other).max() <= 1
    with pytest.raises(OptionError, match="Limits 2, 1"):
        skeleton_image(joints, 20, (2, 1))
    with pytest.raises(OptionError, match="Unknown resize 'bilinear': did you mean 'float_bilinear'"):
        skeleton_image(joints, 20, resize="bilinear")


def test_centred_as_published():
    joints = moving(np.random.default_rng(5), 8, 25, 2)
    joints[:2, :25] = 0
    joints[5, 25:] = 0
    origin = joints[2, 1].copy()
    found = centred(joints, 25, 1)
    assert not found[:2, :25].any()
    assert not found[5, 25:].any()
    np.testing.assert_allclose(found[2:, :25], joints[2:, :25] - origin, atol=1e-6)
    np.testing.assert_allclose(found[[0, 7], 25:], joints[[0, 7], 25:] - origin, atol=1e-6)
    assert not found[2, 1].any()
    joints[3, 4] = 0  # one lost joint counts as seen at zero
    np.testing.assert_allclose(centred(joints, 25, 1)[3, 4], -origin, atol=1e-6)


def test_nobody_and_only_the_second():
    joints = moving(np.random.default_rng(6), 8, 25, 2)
    joints[:, :25] = 0
    assert visible(joints, 25).shape == (8, 25, 3)
    np.testing.assert_allclose(centred(joints, 25, 1)[:, 25:], joints[:, 25:] - joints[0, 26], atol=1e-6)
    nothing = np.zeros((6, 50, 3), np.float32)
    assert not centred(nothing, 25, 1).any()
    assert visible(nothing, 25).tolist() == np.zeros((1, 25, 3)).tolist()
    assert not skeleton_image(nothing, 25).any()


def test_real_skeletons(shared):
    folder = shared / "data/skeletons"
    msr = [open_skeleton(folder / f"msraction3d/a{a:02d}_s01_e01_skeleton3D.txt") for a in (1, 5, 18)]
    low, high = limits_of(msr)
    assert -3 < low < 0 < high < 3
    path = folder / "jhmdb/jhmdb_joints_split1.npz"
    flat = [open_skeleton(path).span(c.start / 30, c.stop / 30) for c in clips_of(path)[:3]]
    for skeleton in (*msr, *flat):
        image = image_of(skeleton, (low, high))
        assert image.shape == (224, 224, 3)
        assert image.min() < 8
        assert image.max() > 247  # the stretch spans 0 to 255, resizing takes the edge off
        assert level_images(skeleton, 10).shape == (10, 224, 224, 3)
        np.testing.assert_array_equal(level_images(skeleton, 10)[-1], image_of(skeleton))
    assert np.ptp(image_of(flat[0])[..., 2]) == 0  # z of 2-D joints
    late = open_skeleton(folder / "msraction3d/a07_s04_e01_skeleton3D.txt")  # nobody in the first 36 of 45 frames
    levels = level_images(late, 10)
    assert not levels[:8].any()
    assert levels[8].any()


def test_ten_levels_through_the_network(net, shared):
    skeleton = open_skeleton(shared / "data/skeletons/msraction3d/a01_s01_e01_skeleton3D.txt")
    batch = torch.from_numpy(level_images(skeleton, 10))[None]
    with torch.inference_mode():
        features = net.features(net.prepare(batch), "params")
    assert features.shape == (1, 10, 6)
    assert relative(features[:, 1:], features[:, :-1]) > 1e-4


@pytest.mark.parametrize("mode", ["prefix", "segment"])
@pytest.mark.parametrize("resize", ["scipy_bytescale", "float_bilinear"])
def test_progress_never_looks_ahead(mode, resize):
    rng = np.random.default_rng(7)
    joints = moving(rng, 43, 20)
    joints[:6] = 0
    levels = level_images(one_person(joints), 10, mode, resize=resize)
    for level in range(9):
        end = (level + 1) * 43 // 10
        changed = joints.copy()
        changed[end:] = moving(rng, 43 - end, 20) * 3
        later = level_images(one_person(changed), 10, mode, resize=resize)
        np.testing.assert_array_equal(later[: level + 1], levels[: level + 1])
        assert not np.array_equal(later[level + 1], levels[level + 1])


def test_progress_of_two_people_never_looks_ahead():
    """Who is actor 1, and whether a second body is noise, would be known only later: it must not show before."""
    rng = np.random.default_rng(8)
    every = np.arange(40, dtype=np.int32)
    first, second = moving(rng, 40, 25), moving(rng, 40, 25)
    first[..., 1] *= 4  # upright: plausible
    second[..., 1] *= 4

    def levels(second):
        choose = Actors((Track(every, first), Track(every, second)), every)
        joints, frames = choose(40)
        return level_images(Skeleton(joints, 25, 1, frames, 40, 30.0, "ntu", choose), 10)

    changed = second.copy()
    changed[20:] = 20 * moving(rng, 20, 25)
    before, after = levels(second), levels(changed)
    np.testing.assert_array_equal(before[:5], after[:5])
    assert all(not np.array_equal(before[n], after[n]) for n in range(5, 10))


def test_limits_of_nothing():
    with pytest.raises(OptionError, match="No skeletons"):
        limits_of([])

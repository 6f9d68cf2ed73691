"""Fitting VA-CNN on real skeletons: what it is shown, its limits, and that it learns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import kdcache
from kdcache import backbones
from kdcache.data.ondemand import skeletons
from kdcache.data.ondemand.clips import clips_of
from kdcache.errors import OptionError, WeightsError
from kdcache.methods import recognition as options
from kdcache.roots import Roots
from kdcache.skeletons import Skeleton, open_skeleton
from kdcache.skeletons.image import centred, image_of, level_images, limits_of, skeleton_image

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


LIMITS = (-2.0, 2.0)


def segment_of(**given):
    return options.inputs(options.Options(backbone="vacnn", **given))[0].segment


def walk(frames=20, flat=False, seed=0):
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.normal(0, 0.1, (frames, 20, 3)), axis=0).astype(np.float32)
    if flat:
        joints[..., 2] = 0
    return Skeleton(joints, 20, 3, np.arange(frames, dtype=np.int32), frames, 15.0, "msraction3d")


def resolved(**given):
    return options.with_recipe(options.Options(backbone="vacnn", **given))


def stream(*clips, seed=0, **given):
    return skeletons.SkeletonClips(dict(enumerate(clips)), LIMITS, segment_of(**given), seed, CPU)


def test_view_0_is_the_image_that_extraction_makes_and_others_are_repeatable():
    clip = walk()
    images = stream(clip, clip)
    assert images.views == 1001
    fetched = images.fetch(torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 5, 6]), torch.tensor([0, 1, 0, 0])).numpy()
    assert fetched.shape == (4, 1, 224, 224, 3)
    assert fetched.dtype == np.uint8
    np.testing.assert_array_equal(fetched[0, 0], image_of(clip, LIMITS))
    np.testing.assert_array_equal(fetched[0, 0], level_images(clip, 10, "prefix", LIMITS)[-1])
    np.testing.assert_array_equal(fetched[2], stream(clip, clip).view(0, 5, 0))
    assert (fetched[2] != fetched[3]).any()
    assert (fetched[2] != images.view(1, 5, 1)).any()  # another clip is seen from elsewhere
    assert (fetched[2] != stream(clip, seed=1).view(0, 5, 0)).any()


def test_augmented_images_turn_the_clip_by_at_most_a_little():
    """Independent: the turn is found again by least squares between the joints behind the two images."""
    clip = walk()
    shown = centred(clip.joints, 20, 3)
    images = stream(clip, observed="full", skeleton="float_bilinear")
    angles = []
    for view in range(1, 40):
        rng = np.random.default_rng([0, 0, view])
        x, y, z = rng.uniform(-0.3, 0.3, 3)
        about_x = np.array([[1, 0, 0], [0, np.cos(x), np.sin(x)], [0, -np.sin(x), np.cos(x)]])
        about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
        about_z = np.array([[np.cos(z), np.sin(z), 0], [-np.sin(z), np.cos(z), 0], [0, 0, 1]])
        turned = (shown @ (about_z @ about_y @ about_x).T).astype(np.float32)
        wanted = skeleton_image(turned, 20, LIMITS, "float_bilinear")
        np.testing.assert_allclose(images.view(0, view, 0)[0], wanted, atol=1e-2)
        angles.append(x)
    assert 0.2 < max(np.abs(angles)) <= 0.3


def test_random_progress_shows_every_level_and_nothing_beyond_it():
    clip, other = walk(), walk()
    other.joints[18:] += 1.0  # the last of ten parts
    same = [(stream(clip).view(0, view, 0) == stream(other).view(0, view, 0)).all() for view in range(1, 101)]
    assert 0.82 < np.mean(same) < 0.97  # nine of ten levels end before it
    last = [
        (stream(clip, progress="segment").view(0, v, 0) == stream(other, progress="segment").view(0, v, 0)).all()
        for v in range(1, 101)
    ]
    assert 0.82 < np.mean(last) < 0.97
    full = [
        (stream(clip, observed="full").view(0, v, 0) == stream(other, observed="full").view(0, v, 0)).all()
        for v in range(1, 11)
    ]
    assert not any(full)


def test_flat_joints_turn_in_their_plane_alone():
    images = stream(walk(flat=True), observed="full", skeleton="float_bilinear")
    zero = 255 * (0 - LIMITS[0]) / (LIMITS[1] - LIMITS[0])
    for view in range(5):
        np.testing.assert_allclose(images.view(0, view, 0)[..., 2], zero, rtol=1e-5)
    assert (images.view(0, 1, 0)[..., 0] != images.view(0, 0, 0)[..., 0]).any()


def test_options_of_videos_mean_nothing_here():
    with pytest.raises(OptionError, match="fps is for videos; vacnn takes none"):
        resolved(fps=10.0)
    published, scratch = resolved(imagenet="resnet50.pth"), resolved()
    assert (published.lr, published.schedule, published.patience, published.batch_size) == (1e-4, "plateau", 8, 32)
    assert (scratch.lr, scratch.schedule, scratch.patience, scratch.batch_size) == (1e-3, "steps", 0, 16)
    assert resolved(lr=2e-4, patience=3).patience == 3


def test_only_a_start_from_random_weights_slows_the_view_network_down():
    assert resolved().view_lr == pytest.approx(1e-6)
    assert resolved(init="random:3", lr=1e-3).view_lr == pytest.approx(1e-6)
    assert resolved(imagenet="resnet50.pth").view_lr == resolved(init="mine.safetensors").view_lr == 1e-4
    assert resolved(view_lr=0.5).view_lr == 0.5


def four_clips(shared):
    """Two actions, two subjects of each to train on; two more clips to test on."""
    rows = kdcache.datasets.manifest_for("msraction3d", shared / "data" / "skeletons")
    names = ["a02_s01_e01", "a02_s03_e01", "a13_s01_e01", "a13_s03_e01", "a02_s02_e01", "a13_s02_e01"]
    return rows[rows["clip_id"].isin(names)].reset_index(drop=True)


def test_vacnn_learns_a_handful_of_clips_and_its_file_knows_their_limits(shared, tmp_path):
    root, rows = shared / "data" / "skeletons", four_clips(shared)
    fit = kdcache.fit(
        "vacnn", rows, root, tmp_path / "fit", device="cpu", epochs=2, lr=3e-4, batch_size=4, augmentations=0,
        validation=0.0, schedule="steps",
    )  # fmt: skip
    losses = pd.read_csv(fit.path / "metrics.csv")["loss"]
    assert losses[0] > 0.5
    assert losses.iloc[-1] < 0.1
    assert fit.facts.fitted_on == ("a02_s01_e01", "a02_s03_e01", "a13_s01_e01", "a13_s03_e01")
    assert fit.facts.validated_on == ()
    assert fit.facts.classes == (1, 12)

    clips = [
        open_skeleton(clip.path)
        for clip in clips_of(rows, Roots.of(root)).values()
        if clip.clip_id in fit.facts.fitted_on
    ]
    assert fit.facts.limits == limits_of(clips)
    net = backbones.build("vacnn", fit.weights)
    assert (net.limits, net.num_classes) == (fit.facts.limits, 2)
    assert backbones.build("vacnn", "random:0").limits != net.limits
    with pytest.raises(WeightsError, match="was fitted as vacnn, not as tsm-resnet50"):
        backbones.build("tsm-resnet50", fit.weights)

"""Whole-clip streams as training inputs: what extraction would cut, one augmentation for all inputs of an example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from make_videos import write as write_video

import kdcache
from kdcache.data.beside import stored_at
from kdcache.data.frames import CachedFrames
from kdcache.data.inputs import bind
from kdcache.data.loader import common_views, feed, in_order, shuffled
from kdcache.data.open import open_cache
from kdcache.errors import OptionError, StoreError
from kdcache.methods.contract import BatchSource, Input, Segment
from kdcache.methods.teacher import Teacher
from kdcache.motion.flow_image import dequantise, quantise
from kdcache.sources import open_source
from kdcache.store import Cache
from kdcache.store import opened as reading
from kdcache.views import MOMENTS, Augmentation, Views, cut, resize_short_side

CPU = torch.device("cpu")
T, SIZE, RESIZE = 4, 32, 40
CLIPS = ("a", "b", "c")
FRAMES = 11
pytestmark = pytest.mark.usefixtures("one_thread")


# Extracted from videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three short videos of 48 × 64, and their manifest."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for clip in CLIPS:
        texture = rng.integers(40, 216, (14, 30, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        write_video(root / f"{clip}.mp4", [texture[:48, 2 * t : 2 * t + 64] for t in range(FRAMES)])
    rows = [(c, f"{c}.mp4", np.nan, np.nan, s, 0) for c, s in zip(CLIPS, ("train", "train", "test"), strict=True)]
    return root, pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "split", "label"])


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def extracted(request, videos, tmp_path_factory):
    """The videos' rgb, flow and motion maps."""
    root, table = videos
    folder = tmp_path_factory.mktemp(request.param)
    kdcache.extract(table, root, folder, ["rgb", "flow", "idt"], rgb=request.param, short_side=48)
    return Cache(folder)


def middles(length):
    """The middle of each of T parts, as published samplers count."""
    return [int((part + 0.5) * length / T) for part in range(T)]


def frames_of(cache, name, segment=None, **more):
    return CachedFrames(cache, name, CLIPS, segment or Segment(frames=T, size=SIZE, resize=RESIZE), 0, CPU, **more)


def test_view_0_is_what_cutting_by_hand_gives(extracted):
    views = Views(SIZE, RESIZE)
    for row, clip in enumerate(CLIPS):
        (rgb,), (flow,), (idt,) = (extracted.read(name, [clip]) for name in ("rgb", "flow", "idt"))
        assert (len(rgb), len(flow), len(idt)) == (FRAMES, FRAMES - 1, FRAMES)
        chosen = middles(FRAMES)
        shown = np.stack([resize_short_side(rgb[i], RESIZE) for i in chosen])
        assert np.array_equal(frames_of(extracted, "rgb").view(row, 0, 0), cut(shown, views)[0])
        assert (
            frames_of(extracted, "rgb").shown(row).tolist()
            == frames_of(extracted, "flow").shown(row).tolist()
            == chosen
        )
        maps = np.stack([resize_short_side(idt[i][..., None], RESIZE) for i in chosen])
        assert np.array_equal(frames_of(extracted, "idt").view(row, 0, 0), cut(maps, views)[0][..., 0])
        pixels = dequantise(flow, 20.0)[[min(i, FRAMES - 2) for i in chosen]]
        smaller = np.stack([resize_short_side(f, RESIZE) for f in pixels]) * np.float32(RESIZE / 48)
        want = quantise(cut(smaller, views, flow=True)[0], 20.0)
        assert np.array_equal(frames_of(extracted, "flow").view(row, 0, 0), want)


def test_shapes_lengths_and_single_frames(extracted):
    assert frames_of(extracted, "rgb").shape == (T, SIZE, SIZE, 3)
    assert frames_of(extracted, "flow").shape == (T, SIZE, SIZE, 2)
    assert frames_of(extracted, "idt").shape == (T, SIZE, SIZE)
    stacked = frames_of(extracted, "flow", Segment(frames=T, size=SIZE, resize=RESIZE, stack=5))
    rows = torch.tensor([1, 0])
    assert stacked.shape == (T, SIZE, SIZE, 10)
    assert stacked.fetch(rows, torch.tensor([0, 7]), rows).shape == (2, T, SIZE, SIZE, 10)
    assert [extracted.length(name, "a") for name in ("rgb", "flow", "idt")] == [FRAMES, FRAMES - 1, FRAMES]
    whole = extracted.read("rgb", ["b"])[0]
    assert np.array_equal(extracted.read_frames("rgb", "b", np.array([7, 2])), whole[[7, 2]])
    assert np.array_equal(extracted.read_frames("flow", "b", np.array([3])), extracted.read("flow", ["b"])[0][[3]])
    assert extracted.indexed("flow").tolist() == [True] * 3
    with pytest.raises(StoreError, match="'nowhere'"):
        extracted.length("rgb", "nowhere")


def test_what_frames_cannot_be_is_refused(extracted):
    with pytest.raises(OptionError, match=r"fps=5: cached frames keep the rate at which rgb was extracted; drop fps"):
        frames_of(extracted, "rgb", Segment(frames=T, size=SIZE, fps=5))
    with pytest.raises(OptionError, match=r"stack=5: only flow fields are stacked, and rgb is not flow"):
        frames_of(extracted, "rgb", Segment(frames=T, size=SIZE, stack=5))


# Written by hand: every pixel tells where it lies


HEIGHT, WIDTH = RESIZE, 52


def coded(clip, count=FRAMES):
    """Frames whose red is their row, green their column and blue ten times their number."""
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[..., 0] = 4 * np.arange(HEIGHT)[:, None]
    frames[..., 1] = 4 * np.arange(WIDTH)
    frames[..., 2] = 20 * np.arange(count)[:, None, None] + clip
    return frames


def coded_flow(clip, count=FRAMES - 1):
    """Fields whose bytes are 129 + their column (x), and 129 + ten times their number (y)."""
    fields = np.zeros((count, HEIGHT, WIDTH, 2), np.uint8)
    fields[..., 0] = 129 + np.arange(WIDTH)
    fields[..., 1] = 129 + 10 * np.arange(count)[:, None, None]
    return fields


def coded_idt(clip, count=FRAMES):
    """Motion maps that are the green channel of the frames."""
    return coded(clip, count)[..., 1]


LAST = [2, 5, 8, 10]  # of each of T parts
SHOWN = {"resnet34/pool": LAST, **dict.fromkeys(("rgb", "flow", "idt"), range(FRAMES))}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A cache of such clips, all three streams, and features of three views."""
    table = streams_cache.rows(6, 2, 2)
    count = range(len(table))
    features = streams_cache.features("resnet34/pool", views=("centre-flip", "tl@0.75", "centre"))
    features["views"] |= {"size": SIZE, "resize": RESIZE}
    features["sampling"] = {"frames": T, "fps": None, "anchor": "last"}
    vectors = [np.full((3, 4, 5), i, np.float16) for i in count]
    streams = [
        (streams_cache.RAW, [coded(i) for i in count]),
        (streams_cache.FLOW, [coded_flow(i) for i in count]),
        (streams_cache.IDT, [coded_idt(i) for i in count]),
        (features, vectors),
    ]
    return streams_cache.write(tmp_path_factory.mktemp("known"), table, streams, SHOWN)


def segment_of(**given):
    return Segment(**{"frames": T, "size": SIZE, "resize": RESIZE, "augmentations": 200} | given)


def three(stack=1, **given):
    """Inputs that read one segment of each stream, flow in stacks."""
    axes = {"rgb": "THWC", "flow": "THWC", "idt": "THW"}
    stacks = {"flow": stack}
    return [
        Input(name=n, axes=a, stream=n, segment=segment_of(stack=stacks.get(n, 1), **given)) for n, a in axes.items()
    ]


@pytest.mark.parametrize("stack", [1, 3])
def test_one_augmentation_for_all_inputs_of_an_example(known, stack):
    data = open_cache(known, three(stack), device="cpu").data
    rows = data.splits["train"].rows["clip"]
    source = BatchSource({name: (stream, rows) for name, stream in data.inputs.items()})
    plan = shuffled(source, 6, 201, np.random.default_rng(0)) + shuffled(source, 6, 201, np.random.default_rng(1))
    seen = set()
    for batch in feed(source, plan, data.device):
        for rgb, flow, idt in zip(batch["rgb"].numpy(), batch["flow"].numpy(), batch["idt"].numpy(), strict=True):
            assert np.array_equal(idt, rgb[..., 1])  # the same crop, scale, moments and mirror
            columns = rgb[0, 0, :, 1].astype(int)
            mirrored = columns[0] > columns[-1]
            assert (np.diff(rgb[0, :, 0, 0].astype(int)) >= 0).all()
            middle = 2 * (stack // 2)
            x, y = flow[0, 0, :, middle].astype(int), flow[:, 0, 0, 1::2].astype(int)
            assert (np.abs(flow[0, 0, :, 0::2].astype(int) - x[:, None]) == 0).all()  # x of each field of a stack
            length = SIZE / round((columns.max() - columns.min()) / 4 + 1)  # vectors grow with the picture
            expected = 128 + length * (-1 if mirrored else 1) * (1 + columns / 4)
            assert np.abs(x - expected).max() <= 2
            times = (rgb[:, 0, 0, 2] // 20).astype(int)
            around = np.clip(times[:, None] + np.arange(stack) - stack // 2, 0, FRAMES - 2)
            assert np.abs(y - (128 + length * (1 + 10 * around))).max() <= 5
            assert (np.diff(times) >= 0).all()
            seen.add((bool(mirrored), int(rgb[0, 0, 0, 0]), tuple(times)))
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert len(seen) > 8


def test_a_mirrored_field_has_the_bytes_256_less(known):
    plain, mirrored = (frames_of_known(known, "flow", names=[name]).view(1, 0, 0) for name in ("centre", "centre-flip"))
    assert np.array_equal(mirrored[..., 0], 256 - plain[:, :, ::-1, 0].astype(int))
    assert np.array_equal(mirrored[..., 1], plain[:, :, ::-1, 1])
    left = (WIDTH - SIZE) // 2
    assert np.array_equal(plain[0, 0, :, 0], 129 + np.arange(left, left + SIZE))  # as stored, to the byte


def frames_of_known(known, name, names=None, **given):
    cache = Cache(known)
    return CachedFrames(cache, name, list(cache.clips["clip_id"]), segment_of(**given), 0, CPU, names=names)


def test_fields_are_stacked_around_each_frame_and_clamped(known):
    shown = frames_of_known(known, "flow", stack=5).view(0, 0, 0)
    numbers = (shown[:, 0, 0, 1::2].astype(int) - 129) // 10
    fields = FRAMES - 1
    want = [[min(max(middle + k, 0), fields - 1) for k in (-2, -1, 0, 1, 2)] for middle in middles(FRAMES)]
    assert numbers.tolist() == want
    assert want[0][0] == 0
    assert want[-1][-2:] == [fields - 1, fields - 1]
    across = shown[0, 0, 0, 0::2]
    assert (across == across[0]).all()  # x of each field in turn


def test_augmentation_depends_on_the_example_alone(known):
    rgb = frames_of_known(known, "rgb")
    assert np.array_equal(rgb.view(0, 5, 3)[..., :2], rgb.view(1, 5, 3)[..., :2])  # one key, two clips
    assert any(not np.array_equal(rgb.view(0, 5, 3), rgb.view(0, 5, key)) for key in range(4, 8))
    assert any(not np.array_equal(rgb.view(0, 5, 3), rgb.view(0, view, 3)) for view in range(6, 10))
    still = frames_of_known(known, "rgb", mirror=False)
    columns = [still.view(0, view, 0)[0, 0, :, 1].astype(int) for view in range(40)]
    assert all(each[0] < each[-1] for each in columns)
    name = Augmentation.draw(np.random.default_rng([0, 3, 5]), 1, True).crop
    moments = np.random.default_rng([0, 3, 5, T]).integers(len(MOMENTS), size=T)
    assert np.array_equal(rgb.view(0, 5, 3)[..., :2], cut(coded(0)[:T], Views(SIZE, RESIZE, (name,)))[0][..., :2])
    assert len(set(moments.tolist())) > 1


def test_beside_features_frames_show_the_features_views(known):
    vectors = Input(name="x", axes="TD", stream="resnet34/*")
    rgb = Input(name="rgb", axes="THWC", stream="rgb", segment=Segment(frames=T, size=SIZE))
    data = open_cache(known, [vectors, rgb], device="cpu").data
    assert (data.inputs["x"].views, data.inputs["rgb"].views) == (3, 3)
    rows = torch.tensor([4, 2])
    ids = open_cache(known, [vectors, rgb], device="cpu").examples.clip_ids
    number = {clip: i for i, clip in enumerate(Cache(known).clips["clip_id"])}
    for view, name in enumerate(("centre-flip", "tl@0.75", "centre")):
        got = data.inputs["rgb"].fetch(rows, torch.full_like(rows, view), rows).numpy()
        for row, shown in zip(rows.tolist(), got, strict=True):
            frames = coded(number[ids[row]])[LAST]
            assert np.array_equal(shown, cut(frames, Views(SIZE, RESIZE, (name,)))[0])  # 5/4 of the size, as they


def beside(*names, axes="TD", segment=None, **given):
    """An input of features, and frames of these names beside it."""
    shown = [replace(one, segment=segment or one.segment) for one in three(**given) if one.name in names]
    return [Input(name="x", axes=axes, stream="resnet34/*"), *shown]


def test_frames_for_stages_of_their_own_are_augmented_beside_features(known):
    """One stage reads features and motion maps in their views, another frames alone: two bindings, one stream."""
    free = [replace(one, name=f"{one.name}-free", segment=segment_of(beside=False)) for one in three()]
    data = open_cache(known, [*beside("rgb", "idt"), *free], device="cpu").data
    views = {name: stream.views for name, stream in data.inputs.items()}
    assert views == {"x": 3, "rgb": 3, "idt": 3, "rgb-free": 201, "flow-free": 201, "idt-free": 201}
    alone = open_cache(known, three(), device="cpu").data
    rows, keys = torch.tensor([3, 1, 3]), torch.tensor([3, 1, 4])
    for name in ("rgb", "flow", "idt"):
        for view in (0, 9, 120):
            shown = [
                each.fetch(rows, torch.full_like(rows, view), keys)
                for each in (data.inputs[f"{name}-free"], alone.inputs[name])
            ]
            assert torch.equal(*shown)
    of = {name: (stream, data.splits["train"].rows["clip"]) for name, stream in data.inputs.items()}
    assert common_views(BatchSource({name: of[name] for name in ("x", "rgb", "idt")})) == 3
    assert common_views(BatchSource({name: of[name] for name in ("rgb-free", "idt-free")})) == 201
    with pytest.raises(ValueError, match="different numbers of views"):
        common_views(BatchSource({name: of[name] for name in ("x", "rgb-free")}))


def test_two_segments_of_one_stream_need_one_choice(tmp_path):
    table = streams_cache.rows(2, 1, 1)
    warped = {**streams_cache.FLOW, "stream": "flow-warped"}
    fields = [coded_flow(i) for i in range(len(table))]
    folder = streams_cache.write(tmp_path, table, [(streams_cache.FLOW, fields), (warped, fields)])
    inputs = [
        Input(name=name, axes="THWC", stream="flow*", segment=segment_of(beside=on))
        for name, on in (("near", True), ("free", False))
    ]
    cache = Cache(folder)
    for given in ("flow-warped", "near=flow-warped", "free=flow-warped"):
        assert [b.streams for b in bind(cache, inputs, given)] == [("flow-warped",)] * 2, given
    assert [b.streams for b in bind(cache, inputs, "near=flow-warped,free=flow")] == [("flow-warped",), ("flow",)]
    with pytest.raises(OptionError, match="several streams for input near: choose"):
        bind(cache, inputs, None)


@pytest.mark.parametrize(
    "sampling", [{"anchor": "first"}, {"fps": 10.0, "anchor": "last"}, {"fps": 100.0}], ids=["first", "fps", "fast"]
)
def test_frames_are_those_from_which_the_features_were_computed(videos, tmp_path, sampling):
    """Of every sampling rule: as decoded again from the video at the features' indices; of flow the fields there."""
    cache = cache_of(videos, tmp_path, sampling)
    data = open_cache(tmp_path, beside("rgb", "flow", "idt", axes="TCHW", stack=3, resize=None), device="cpu")
    assert {stream.views for stream in data.data.inputs.values()} == {1}
    for row, clip in enumerate(data.examples.clip_ids):
        (seen,) = cache.frames(LAYER, [clip])
        assert len(seen) == T
        assert seen.tolist() != middles(FRAMES)
        with open_source(videos[0] / f"{clip}.mp4") as source:
            decoded = dict(zip(np.unique(seen).tolist(), source.read(np.unique(seen)), strict=True))
        views = Views(SIZE, RESIZE, ("centre-flip",))
        shown = np.stack([resize_short_side(resize_short_side(decoded[i], 48), RESIZE) for i in seen.tolist()])
        rows = torch.tensor([row])
        got = {
            name: stream.fetch(rows, torch.tensor([0]), rows)[0].numpy() for name, stream in data.data.inputs.items()
        }
        assert np.array_equal(got["rgb"], cut(shown, views)[0])
        maps = np.stack([resize_short_side(one[..., None], RESIZE) for one in cache.read("idt", [clip])[0][seen]])
        assert np.array_equal(got["idt"], cut(maps, views)[0][..., 0])
        fields = dequantise(cache.read("flow", [clip])[0], 20.0)
        around = np.clip(seen[:, None] + [-1, 0, 1], 0, FRAMES - 2)
        smaller = np.stack([resize_short_side(fields[i], RESIZE) for i in around.ravel()]) * np.float32(RESIZE / 48)
        want = quantise(cut(smaller, views, flow=True)[0], 20.0).reshape(T, 3, SIZE, SIZE, 2)
        assert np.array_equal(got["flow"], np.concatenate(list(want.swapaxes(0, 1)), axis=-1))


LAYER = "resnet34/layer1"


def cache_of(videos, folder, sampling, dense=None):
    """A cache of the videos' raw frames, flow and maps, and of features by a sampling rule."""
    root, manifest = videos
    kdcache.extract(manifest, root, folder, ["rgb", "flow", "idt"], short_side=48, rgb="raw", fps=dense)
    given = {
        "frames": T,
        "size": SIZE,
        "resize": RESIZE,
        "views": ("centre-flip",),
        "weights": {"resnet34": "random:0"},
    }
    kdcache.extract(manifest, root, folder, [LAYER], **given | sampling)
    return Cache(folder)


def test_of_thinned_frames_the_nearest_are_shown(videos, tmp_path):
    """At 10 of 25 frames a second: every second or third frame is there."""
    cache = cache_of(videos, tmp_path, {}, dense=10.0)
    data = open_cache(tmp_path, beside("rgb", axes="TCHW", resize=None), device="cpu")
    for row, clip in enumerate(data.examples.clip_ids):
        (stored,), (seen,) = cache.frames("rgb", [clip]), cache.frames(LAYER, [clip])
        assert seen.tolist() == middles(FRAMES)
        assert len(stored) < FRAMES
        assert not set(seen.tolist()) <= set(stored.tolist())
        nearest = [min(range(len(stored)), key=lambda k, i=i: (abs(int(stored[k]) - i), k)) for i in seen]
        assert stored_at(cache, LAYER, "rgb", clip).tolist() == nearest
        shown = np.stack([resize_short_side(f, RESIZE) for f in cache.read("rgb", [clip])[0][nearest]])
        got = data.data.inputs["rgb"].fetch(torch.tensor([row]), torch.tensor([0]), torch.tensor([row]))
        assert np.array_equal(got[0], cut(shown, Views(SIZE, RESIZE, ("centre-flip",)))[0])


def features_like(known, tmp_path, frames=None, axes="VTD", shape=(1, 4, 5), **recipe):
    """The cache of coded frames with other features beside them."""
    cache = Cache(known)
    table, count = cache.clips, len(cache.clips)
    made = streams_cache.features("resnet34/pool", views=("centre",), **recipe)
    streams = [(made, [np.zeros(shape, np.float16)] * count), (streams_cache.RAW, [coded(i) for i in range(count)])]
    return streams_cache.write(tmp_path, table, streams, SHOWN | ({"resnet34/pool": frames} if frames else {}))


def test_frames_that_cannot_be_shown_with_features_are_refused_by_name(known, tmp_path):
    segment = segment_of(frames=8)
    with pytest.raises(
        OptionError,
        match=r"rgb is shown at 8 frames, but resnet34/pool was computed from 4: extract resnet34/pool with --frames 8 "
        r"or set frames=4\.",
    ):
        open_cache(known, beside("rgb", segment=segment), device="cpu")
    open_cache(known, beside("rgb", segment=replace(segment, beside=False)), device="cpu")

    rule = {"frames": T, "fps": None, "anchor": "centre"}
    folder = features_like(known, tmp_path / "levels", shape=(1, 3, 4, 5), sampling=rule, progress={"levels": 3})
    with pytest.raises(OptionError, match=r"resnet34/pool holds 3 levels of progress, so rgb cannot be shown at its"):
        open_cache(folder, beside("rgb", axes="NTD"), device="cpu")

    folder = features_like(known, tmp_path / "lacks", frames=[0, 3, 9, 40], sampling=rule)
    data = open_cache(folder, beside("rgb"), device="cpu").data
    with pytest.raises(StoreError, match=r"'.*-00': resnet34/pool was computed from frame 40 .* which rgb lacks"):
        data.inputs["rgb"].fetch(*(torch.tensor([0]),) * 3)


@pytest.mark.parametrize(("frames_when", "features_when"), [("always", "train"), ("train", "train"), ("always",) * 2])
def test_frames_read_where_features_are_not_are_spread_evenly_or_refused(known, tmp_path, frames_when, features_when):
    """Else a network would be shown other moments of a clip in training than in prediction."""
    for anchor in ("centre", "first"):
        rule = {"frames": T, "fps": None, "anchor": anchor}
        seen = {"centre": middles(FRAMES), "first": [0, 2, 5, 8]}[anchor]
        folder = features_like(known, tmp_path / anchor, frames=seen, sampling=rule)
        x, rgb = beside("rgb")
        inputs = [replace(x, when=features_when), replace(rgb, when=frames_when)]
        if anchor == "first" and (frames_when, features_when) == ("always", "train"):
            with pytest.raises(
                OptionError, match=r"rgb is also shown where resnet34/pool is not read .* without --fps"
            ):
                open_cache(folder, inputs, device="cpu")
            continue
        rows = torch.tensor([1])
        shown = open_cache(folder, inputs, device="cpu").data.inputs["rgb"].fetch(rows, torch.tensor([0]), rows)
        assert (shown[0, :, 0, 0, 2] // 20).tolist() == seen


def test_features_of_different_moments_are_not_both_followed(known, tmp_path):
    table, count = Cache(known).clips, len(Cache(known).clips)
    streams = [(streams_cache.RAW, [coded(i) for i in range(count)])]
    for name, anchor in (("resnet34/pool", "first"), ("tsm-resnet50/pool", "last")):
        made = streams_cache.features(name, views=("centre",), sampling={"frames": T, "fps": None, "anchor": anchor})
        streams.append((made, [np.zeros((1, 4, 5), np.float16)] * count))
    folder = streams_cache.write(tmp_path, table, streams, SHOWN)
    inputs = [*beside("rgb"), Input(name="y", axes="TD", stream="tsm-resnet50/*")]
    with pytest.raises(OptionError, match=r"resnet34/pool and tsm-resnet50/pool were computed from different moments"):
        open_cache(folder, inputs, device="cpu")


def test_a_shards_frame_numbers_are_read_once(known, monkeypatch):
    opened = []
    plain = reading._tables
    monkeypatch.setattr(reading, "_tables", lambda shard: opened.append(shard) or plain(shard))
    data = open_cache(known, beside("rgb", "flow", "idt"), device="cpu").data
    assert not opened  # nothing is read before a batch asks
    for row, view in ((0, 0), (3, 1), (1, 2), (0, 1)):
        for stream in list(data.inputs.values())[1:]:
            stream.fetch(torch.tensor([row]), torch.tensor([view]), torch.tensor([row]))
    assert len(opened) == 4  # each stream lies in one shard


def test_frames_of_another_short_side_are_brought_to_theirs(known):
    """Whatever short side was extracted: the crop is the same part of the frame."""
    large = frames_of_known(known, "rgb", size=64, resize=80).view(0, 0, 0)
    assert large.shape == (T, 64, 64, 3)
    small = frames_of_known(known, "rgb").view(0, 0, 0)
    assert np.abs(large[:, ::2, ::2].astype(int) - small).max() <= 4
    doubled = frames_of_known(known, "flow", size=64, resize=80).view(0, 0, 0).astype(int) - 128
    single = frames_of_known(known, "flow").view(0, 0, 0).astype(int) - 128
    inner = np.s_[:, 4:-4:2, 4:-4:2]
    fits = np.abs(2 * single[:, 2:-2, 2:-2]) < 120
    assert np.abs(doubled[inner] - 2 * single[:, 2:-2, 2:-2])[fits].max() <= 3


def test_both_clips_of_a_pair_are_cut_alike(tmp_path):
    made = [(f"p{i}", role) for i in range(8) for role in ("observed", "action")]
    table = pd.DataFrame(
        {
            "clip_id": [f"{pair}-{role}" for pair, role in made],
            "source": [f"{pair}.mp4" for pair, _ in made],
            "start_s": [0.0 if role == "observed" else 2.0 for _, role in made],
            "stop_s": [1.0 if role == "observed" else 3.0 for _, role in made],
            "split": ["validation" if pair in ("p6", "p7") else "train" for pair, _ in made],
            "pair": [pair for pair, _ in made],
            "role": [role for _, role in made],
            "label": [int(pair[1:]) % 2 for pair, _ in made],
        }
    )
    rows = kdcache.manifest.validate(table)
    folder = streams_cache.write(tmp_path, rows, [(streams_cache.RAW, [coded(i) for i in range(len(rows))])])
    inputs = [
        Input(name=name, axes="THWC", stream="rgb", role=role, segment=segment_of())
        for name, role in (("x", "observed"), ("x_t", "action"))
    ]
    data = open_cache(folder, inputs, device="cpu").data
    assert data.inputs["x"] is data.inputs["x_t"]
    train = data.splits["train"].rows
    source = BatchSource({"x": (data.inputs["x"], train["observed"]), "x_t": (data.inputs["x"], train["action"])})
    shown = set()
    for batch in feed(source, shuffled(source, 3, 201, np.random.default_rng(0)), data.device):
        assert torch.equal(batch["x"][..., :2], batch["x_t"][..., :2])
        assert not torch.equal(batch["x"][..., 2], batch["x_t"][..., 2])  # another clip
        shown |= {bytes(clip.numpy().tobytes()) for clip in batch["x"][..., :2]}
    assert len(shown) >= 3


def test_a_clip_of_one_frame_does_not_move(tmp_path):
    table = streams_cache.rows(2, 1, 1)
    fields = [coded_flow(i, 0 if i == 1 else 3) for i in range(len(table))]
    folder = streams_cache.write(tmp_path, table, [(streams_cache.FLOW, fields)])
    stream = frames_of_known(folder, "flow")
    assert stream.view(0, 0, 0).shape == (T, SIZE, SIZE, 2)
    assert np.array_equal(stream.view(1, 0, 0), np.full((T, SIZE, SIZE, 2), 128))  # it does not move


def test_in_order_all_inputs_are_the_centre_crop(known):
    data = open_cache(known, three(), device="cpu").data
    rows = data.splits["test"].rows["clip"]
    source = BatchSource({name: (stream, rows) for name, stream in data.inputs.items()})
    (batch,) = feed(source, in_order(source, 4), data.device)
    top, left = (HEIGHT - SIZE) // 2, (WIDTH - SIZE) // 2
    assert batch["rgb"][0, 0, 0, 0, :2].tolist() == [4 * top, 4 * left]
    assert batch["idt"][0, 0, 0, 0].item() == 4 * left


def test_a_teacher_of_frames_runs_in_each_step_on_the_students_crop(known):
    """Targets of augmented views are not worth keeping, and the privileged flow is cut like the student's frames."""
    data = open_cache(known, three()[:2], device="cpu").data
    rows = data.splits["train"].rows["clip"]

    class Mean(torch.nn.Module):
        def forward(self, x):
            return {"logits": x.float().mean((1, 2, 3))}

    shown = []

    def forward(batch):
        shown.append(batch["flow"])
        return network(batch["flow"])

    network = Mean()
    teacher = Teacher(network, forward, data, {"flow": (data.inputs["flow"], rows)}, 4, ("logits",))
    assert teacher.kept is None
    assert len(shown) == 1  # one batch, to see how large the targets are
    inputs, fields = teacher.wants()
    source = BatchSource({"rgb": (data.inputs["rgb"], rows), **inputs}, fields)
    for batch in feed(source, shuffled(source, 3, 201, np.random.default_rng(0)), data.device):
        assert torch.equal(teacher(batch)["logits"], network(shown[-1])["logits"])
        mirrored = batch["rgb"][:, 0, 0, 0, 1] > batch["rgb"][:, 0, 0, -1, 1]
        assert torch.equal(batch["flow"][:, 0, 0, 0, 0] < 128, mirrored)

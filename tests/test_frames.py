"""Whole-clip streams as training inputs: what extraction would cut, one augmentation for all inputs of an example."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from make_videos import write as write_video

import kdcache
from kdcache.data.frames import CachedFrames
from kdcache.data.loader import feed, in_order, shuffled
from kdcache.data.open import open_cache
from kdcache.errors import OptionError, StoreError
from kdcache.methods.contract import BatchSource, Input, Segment
from kdcache.methods.teacher import Teacher
from kdcache.motion.flow_image import dequantise, quantise
from kdcache.store import Cache
from kdcache.views import MOMENTS, Augmentation, Views, cut, resize_short_side

CPU = torch.device("cpu")
T, SIZE, RESIZE = 4, 32, 40
CLIPS = ("a", "b", "c")
FRAMES = 11
pytestmark = pytest.mark.usefixtures("one_thread")


# Extracted from videos


@pytest.fixture(scope="module", params=["jpeg", "raw"])
def extracted(request, tmp_path_factory):
    """Three short videos with rgb, flow and motion maps; frames of 48 × 64."""
    root = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    for clip in CLIPS:
        texture = rng.integers(40, 216, (14, 30, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        write_video(root / f"{clip}.mp4", [texture[:48, 2 * t : 2 * t + 64] for t in range(FRAMES)])
    rows = [(c, f"{c}.mp4", np.nan, np.nan, s, 0) for c, s in zip(CLIPS, ("train", "train", "test"), strict=True)]
    table = pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "split", "label"])
    streams = ["rgb", "flow", "idt"]
    kdcache.extract(table, root, root / "out", streams, rgb=request.param, short_side=48)
    return Cache(root / "out")


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


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A cache of such clips, all three streams, and features of three views."""
    table = streams_cache.rows(6, 2, 2)
    count = range(len(table))
    features = streams_cache.features("resnet34/pool", views=("centre-flip", "tl@0.75", "centre"))
    features["views"] |= {"size": SIZE, "resize": RESIZE}
    vectors = [np.full((3, 4, 5), i, np.float16) for i in count]
    streams = [
        (streams_cache.RAW, [coded(i) for i in count]),
        (streams_cache.FLOW, [coded_flow(i) for i in count]),
        (streams_cache.IDT, [coded_idt(i) for i in count]),
        (features, vectors),
    ]
    return streams_cache.write(tmp_path_factory.mktemp("known"), table, streams)


def segment_of(**given):
    return Segment(**{"frames": T, "size": SIZE, "resize": RESIZE, "augmentations": 200} | given)


def three(**given):
    """Inputs that read one segment of each stream."""
    axes = {"rgb": "THWC", "flow": "THWC", "idt": "THW"}
    return [Input(name=n, axes=a, stream=n, segment=segment_of(**given)) for n, a in axes.items()]


def test_one_augmentation_for_all_inputs_of_an_example(known):
    data = open_cache(known, three(), device="cpu").data
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
            x, y = flow[0, 0, :, 0].astype(int), flow[:, 0, 0, 1].astype(int)
            length = SIZE / round((columns.max() - columns.min()) / 4 + 1)  # vectors grow with the picture
            expected = 128 + length * (-1 if mirrored else 1) * (1 + columns / 4)
            assert np.abs(x - expected).max() <= 2
            times = (rgb[:, 0, 0, 2] // 20).astype(int)
            assert np.abs(y - (128 + length * (1 + 10 * np.minimum(times, FRAMES - 2)))).max() <= 5
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
            frames = coded(number[ids[row]])[middles(FRAMES)]
            assert np.array_equal(shown, cut(frames, Views(SIZE, RESIZE, (name,)))[0])  # 5/4 of the size, as they


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


def test_a_clip_of_one_frame_has_no_flow(tmp_path):
    table = streams_cache.rows(2, 1, 1)
    fields = [coded_flow(i, 0 if i == 1 else 3) for i in range(len(table))]
    folder = streams_cache.write(tmp_path, table, [(streams_cache.FLOW, fields)])
    stream = frames_of_known(folder, "flow")
    assert stream.view(0, 0, 0).shape == (T, SIZE, SIZE, 2)
    with pytest.raises(OptionError, match="Clip 'train-01' has no flow, for it is too short: drop it"):
        stream.view(1, 0, 0)


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

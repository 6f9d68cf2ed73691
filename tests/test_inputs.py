"""Which streams inputs read: by pattern and axes, views by name, and never another clip's row."""

from __future__ import annotations

import numpy as np
import pairs_cache
import pytest
import streams_cache
import torch
from safetensors.torch import load_file

import kdcache
from kdcache.data import stream
from kdcache.data.inputs import align_views, bind, refusal
from kdcache.data.loader import feed, in_order, shuffled
from kdcache.data.open import open_cache
from kdcache.errors import OptionError
from kdcache.methods import anticipation, early, recognition
from kdcache.methods.contract import BatchSource, Input
from kdcache.methods.heads import cells
from kdcache.store import Cache

pytestmark = pytest.mark.usefixtures("one_thread")

LIGHT = {"head": "light", "width": 8, "epochs": 1, "milestones": (), "batch_size": 8, "device": "cpu"}
MAPS = "resnet34/layer3"
CENTRE, FLIP = "centre", "centre-flip"


def vectors(name, pattern="*", axes="D", **more):
    return Input(name=name, axes=axes, stream=pattern, **more)


def noise(count, *shape, seed=0):
    return list(np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float16))


def two_streams(folder, first, second, views=(1, 1), width=3):
    """Clips with vectors of two streams under the given recipes; each value names its stream, clip and view."""
    table = streams_cache.rows()
    made = []
    for number, (recipe, count) in enumerate(zip((first, second), views, strict=True)):
        arrays = [
            np.stack([np.full(width, 1000 * number + 10 * clip + view) for view in range(count)]).astype(np.float16)
            for clip in range(len(table))
        ]
        made.append((recipe, arrays))
    return streams_cache.write(folder, table, made)


# Patterns and axes


@pytest.fixture(scope="module")
def single_frames(tmp_path_factory):
    """Pairs with maps of single frames, [V, T, C, H, W] with T = 3 and C = 6."""
    table = pairs_cache.rows(16)
    maps = noise(len(table), 2, 3, 6, 4, 4)
    recipe = streams_cache.features(MAPS, views=(CENTRE, FLIP))
    return streams_cache.write(tmp_path_factory.mktemp("frames"), table, [(recipe, maps)]), table, maps


@pytest.mark.parametrize("memory_fraction", [0.0, 0.5])
def test_maps_of_single_frames_are_transposed(single_frames, memory_fraction):
    """Time is never taken for channels: [T, C, H, W] reaches the method as [C, T, H, W]."""
    folder, table, maps = single_frames
    inputs = anticipation.inputs(anticipation.Options())
    opened = open_cache(folder, inputs, device="cpu", memory_fraction=memory_fraction)
    stream = opened.data.inputs["x"]
    assert (stream.shape, stream.views, stream.resident) == ((6, 3, 4, 4), 2, memory_fraction > 0)
    rows = torch.tensor([5, 0, 17])
    got = stream.to_device(stream.fetch(rows, torch.tensor([1, 0, 1]), rows)).numpy()
    stored = dict(zip(table["clip_id"], maps, strict=True))
    want = [stored[opened.examples.clip_ids[row]][view] for row, view in ((5, 1), (0, 0), (17, 1))]
    assert np.array_equal(got, np.stack(want).transpose(0, 2, 1, 3, 4).astype(np.float32))
    mapped = stream.map(lambda array: array.mean((2, 3)))
    assert mapped.shape == (6, 3)
    centre = torch.zeros_like(rows)
    negative = mapped.map(torch.neg)  # both functions, one after the other
    assert torch.equal(negative.fetch(rows, centre, rows), -mapped.fetch(rows, centre, rows))


def test_anticipation_trains_on_maps_of_single_frames(single_frames, tmp_path):
    run = kdcache.train("anticipation", single_frames[0], out=tmp_path / "run", **LIGHT)
    assert run.resolved["stream"] == MAPS
    assert load_file(run.path / "anticipation" / "last.safetensors")["project.weight"].shape[1] == 6


@pytest.mark.parametrize(
    ("stream", "shape", "held"),
    [
        ("tsm-resnet50/pool", (1, 8, 16), r"a vector for each time step \[T, D\]"),
        ("i3d-rgb/Logits", (1, 16, 3), r"a vector for each time step \[D, T\]"),
    ],
)
def test_early_refuses_what_has_no_levels(tmp_path, stream, shape, held):
    """Vectors of time steps may have looked ahead: three dimensions do not make levels."""
    table = streams_cache.rows()
    folder = streams_cache.write(tmp_path, table, [(streams_cache.features(stream), noise(len(table), *shape))])
    with pytest.raises(OptionError, match=rf"for input x \({stream}: it holds {held}, not a vector for each level"):
        kdcache.train("early", folder, out=tmp_path / "run", device="cpu")
    with pytest.raises(OptionError, match=rf"stream={stream}: it holds {held}"):
        kdcache.train("early", folder, out=tmp_path / "run", device="cpu", stream=stream)
    assert not (tmp_path / "run").exists()


def test_imports_state_their_axes(tmp_path):
    table = streams_cache.rows()
    count, maps = len(table), (1, 6, 3, 4, 4)
    given = [
        (streams_cache.imported("unknown/maps", maps), noise(count, *maps)),
        (streams_cache.imported("known/maps", maps, "VTCHW"), noise(count, *maps)),
        (streams_cache.imported("steps/x", (1, 8, 5)), noise(count, 1, 8, 5)),
        (streams_cache.imported("levels/x", (1, 8, 5), "VND"), noise(count, 1, 8, 5)),
    ]
    cache = Cache(streams_cache.write(tmp_path, table, given))
    (levels,) = early.inputs(early.Options())
    maps_input = Input(name="x", axes="CTHW")
    assert refusal(cache, "unknown/maps", maps_input) == (
        "its import does not say the order of its axes: import it again with --axes, such as VCTHW"
    )
    assert refusal(cache, "steps/x", levels).endswith("(if that is what was imported, import it again with --axes VND)")
    assert bind(cache, [levels], None)[0].streams == ("levels/x",)
    (binding,) = bind(cache, [maps_input], None)
    assert (binding.streams, binding.order) == (("known/maps",), (1, 0, 2, 3))
    with pytest.raises(OptionError, match=r"stream=unknown/maps: its import .* --axes, such as VCTHW; choose from kn"):
        bind(cache, [maps_input], "unknown/maps")


def test_skeletons_are_not_in_a_cache(single_frames, tmp_path):
    with pytest.raises(OptionError, match="made from skeleton files, which no cache holds: use `kdcache fit`"):
        kdcache.train("recognition", single_frames[0], out=tmp_path / "run", device="cpu", backbone="vacnn")


def test_whole_clips_are_not_features_and_features_are_not_frames(tmp_path):
    table = streams_cache.rows()
    frames = [np.zeros((4, 20, 24, 3), np.uint8)] * len(table)
    thwc = streams_cache.imported("rgb-like", (1, 4, 8, 8, 3), "VTHWC")
    folder = streams_cache.write(
        tmp_path, table, [(streams_cache.RAW, frames), (thwc, noise(len(table), 1, 4, 8, 8, 3))]
    )
    cache = Cache(folder)
    (shown,) = recognition.inputs(recognition.Options(backbone="resnet34"))
    assert refusal(cache, "rgb", shown) == ""
    assert refusal(cache, "rgb-like", shown) == "it does not hold frames"
    assert refusal(cache, "rgb", vectors("x", axes="THWC")).startswith(
        "it holds whole clips, and the input states no segment"
    )


# Several inputs


def test_each_input_finds_its_stream_or_is_told(tmp_path):
    first, second = (streams_cache.features(name) for name in ("i3d-rgb/pool", "resnext101/pool"))
    cache = Cache(two_streams(tmp_path, first, second))
    rgb, flow = vectors("rgb", "i3d-*"), vectors("flow", "resnext101/*", when="train")
    found = bind(cache, [rgb, flow], None)
    assert [(b.streams, b.privileged) for b in found] == [(("i3d-rgb/pool",), False), (("resnext101/pool",), True)]
    swapped = [vectors("rgb"), vectors("flow", "*/*")]  # both patterns take both streams
    found = bind(cache, swapped, "flow=i3d-rgb/pool,rgb=resnext101/pool")
    assert [b.names for b in found] == ["resnext101/pool", "i3d-rgb/pool"]
    with pytest.raises(
        OptionError, match=r"several streams for input rgb: choose with --stream rgb=i3d.* or --stream rgb="
    ):
        bind(cache, swapped, None)
    with pytest.raises(OptionError, match="Unknown input 'flaw': did you mean 'flow'"):
        bind(cache, swapped, "flaw=i3d-rgb/pool")
    with pytest.raises(OptionError, match="did you mean 'i3d-rgb/pool'"):
        bind(cache, swapped, "rgb=i3d-rgb/pol")
    with pytest.raises(OptionError, match=r"stream=flow=i3d-rgb/pool: flow reads resnext101/\*; choose from resnext1"):
        bind(cache, [rgb, flow], "rgb=i3d-rgb/pool,flow=i3d-rgb/pool")
    only = [vectors("a", "i3d-*"), vectors("b", "i3d-*", role="action")]
    assert len(bind(cache, only, None)) == 1
    with pytest.raises(OptionError, match=r"stream=a=i3d.* and stream=b=resnext101/pool: these inputs read one stream"):
        bind(cache, only, "a=i3d-rgb/pool,b=resnext101/pool")
    with pytest.raises(
        OptionError, match=r"stream=resnext101/pool: no input of the method reads it; it reads rgb: i3d"
    ):
        bind(cache, [rgb, vectors("y", "i3d-rgb/*")], "resnext101/pool")


def test_vectors_of_several_streams_are_joined_view_by_view(tmp_path):
    """The second stream's views lie in another order: joined are views of one name."""
    first = streams_cache.features("i3d-rgb/pool", views=(CENTRE, FLIP))
    second = streams_cache.features("resnext101/pool", views=(FLIP, CENTRE))
    folder = two_streams(tmp_path, first, second, (2, 2), width=1)
    opened = open_cache(folder, [vectors("x")], stream="i3d-rgb/pool,resnext101/pool", device="cpu")
    stream, ids = opened.data.inputs["x"], opened.examples.clip_ids
    clips = list(streams_cache.rows()["clip_id"])
    assert (stream.shape, stream.views) == ((2,), 2)
    rows = torch.arange(len(ids))
    for view in (0, 1):
        got = stream.fetch(rows, torch.full_like(rows, view), rows)
        want = [[10 * clips.index(clip) + view, 1000 + 10 * clips.index(clip) + (1 - view)] for clip in ids]
        assert torch.equal(got, torch.tensor(want, dtype=got.dtype))
    left = stream.parts[0].budget.free_bytes
    assert all(stream.map(torch.neg).resident for _ in range(3))
    assert left - stream.parts[0].budget.free_bytes == stream.nbytes  # counted once


# Views


def aligned(first, second, views):
    recipes = {"a": streams_cache.features("i3d-rgb/pool", views=first)}
    recipes["b"] = streams_cache.features("i3d-flow/pool", views=second)
    return align_views(recipes, dict(zip("ab", views, strict=True)))


def test_views_are_matched_by_name():
    assert aligned((CENTRE, FLIP), (FLIP, CENTRE), (2, 2)) == ({"a": [0, 1], "b": [1, 0]}, [CENTRE, FLIP])
    assert aligned((CENTRE,), ("tl", CENTRE, FLIP), (1, 3)) == ({"a": [0], "b": [1]}, [CENTRE])
    assert aligned(("tl", FLIP, CENTRE), (CENTRE, "tl"), (3, 2)) == ({"a": [0, 2], "b": [1, 0]}, ["tl", CENTRE])
    assert aligned(None, None, (2, 2)) == ({"a": [0, 1], "b": [0, 1]}, None)
    assert aligned((CENTRE, FLIP), None, (2, 2)) == ({"a": [0, 1], "b": [0, 1]}, [CENTRE, FLIP])


def test_views_that_cannot_be_matched_are_refused():
    with pytest.raises(OptionError, match=r"No view is cached of every stream \(a centre; b tl, br\)"):
        aligned((CENTRE,), ("tl", "br"), (1, 2))
    with pytest.raises(OptionError, match="a has 1 views and b 2 without names, so they cannot be matched: extract"):
        aligned((CENTRE,), None, (1, 2))
    with pytest.raises(OptionError, match="b has 2 views and a 1 without names"):
        aligned(None, (CENTRE, FLIP), (1, 2))
    with pytest.raises(OptionError, match="b has 2 views and a 1 without names"):
        aligned(None, None, (1, 2))


@pytest.mark.parametrize("memory_fraction", [0.0, 0.5])
def test_an_input_with_one_view_beside_one_with_two_shows_its_own_clip(tmp_path, memory_fraction, caplog):
    """Once the row of a neighbouring clip was read where view 1 was drawn."""
    caplog.set_level("INFO", "kdcache")
    first = streams_cache.features("i3d-rgb/pool", views=(CENTRE,))
    second = streams_cache.features("resnext101/pool", views=(FLIP, CENTRE))
    folder = two_streams(tmp_path, first, second, (1, 2))
    inputs = [vectors("one", "i3d-*"), vectors("two", "resnext101/*")]
    opened = open_cache(folder, inputs, device="cpu", memory_fraction=memory_fraction)
    train, data = opened.data.splits["train"], opened.data
    assert "views that all streams have: centre; the others are not read" in caplog.text
    source = BatchSource({name: (s, train.rows["clip"]) for name, s in data.inputs.items()}, {"i": torch.arange(12)})
    clips = list(streams_cache.rows()["clip_id"])
    plan = shuffled(source, 4, data.inputs["one"].views, np.random.default_rng(0))
    for batch in [*feed(source, plan, data.device), *feed(source, in_order(source, 5), data.device)]:
        number = torch.tensor([10.0 * clips.index(train.names[i]) for i in batch["i"].tolist()])
        assert torch.equal(batch["one"][:, 0], number)
        assert torch.equal(batch["two"][:, 0], 1000 + number + 1)  # its second view is the centre


def test_rows_without_an_array_are_never_read(tmp_path):
    table = streams_cache.rows()
    arrays = noise(len(table), 1, 3)
    some = [None if clip == "test-01" else array for clip, array in zip(table["clip_id"], arrays, strict=True)]
    first, second = (streams_cache.features(name) for name in ("i3d-rgb/pool", "resnext101/pool"))
    folder = streams_cache.write(tmp_path, table, [(first, arrays), (second, some)])
    inputs = [vectors("x", "i3d-*"), vectors("hint", "resnext101/*", when="train")]
    opened = open_cache(folder, inputs, device="cpu")
    stream, row = opened.data.inputs["hint"], opened.examples.clip_ids.index("test-01")
    assert stream.available.tolist() == [clip != "test-01" for clip in opened.examples.clip_ids]
    for bad in (row, -1):
        rows = torch.tensor([0, bad])
        with pytest.raises(ValueError, match="rows without an array were asked for"):
            stream.fetch(rows, torch.zeros_like(rows), rows)


class FewMaps:
    """Four clips of two views, of float16 maps that lie frames first."""

    def __init__(self) -> None:
        self.arrays = np.random.default_rng(0).normal(size=(4, 2, 3, 5, 4, 6)).astype(np.float16)

    def shape(self, stream):
        return self.arrays.shape[1:]

    def dtype(self, stream):
        return self.arrays.dtype

    def read(self, stream, clip_ids, view, out):
        out[:] = self.arrays[[int(clip) for clip in clip_ids], view]


@pytest.mark.parametrize("order", [None, (1, 0, 2, 3)])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_several_maps_at_once_give_what_each_gives(order, piece, monkeypatch):
    monkeypatch.setattr(stream, "PIECE", piece)
    maps = FewMaps()
    rows, views = torch.tensor([3, 0, 2, 0]), torch.tensor([1, 0, 1, 1])
    arrays = torch.from_numpy(maps.arrays[rows, views]).permute(0, *(1 + axis for axis in order or range(4)))
    expected = torch.stack([cells(array.float()) for array in arrays]).half()
    args = maps, "maps", list("0123"), torch.device("cpu"), stream.MemoryBudget(0)
    for fn in (cells, lambda array: cells(array)):
        read = stream.CachedStream(*args, order=order).map(fn)
        assert torch.equal(read.fetch(rows, views, rows), expected)

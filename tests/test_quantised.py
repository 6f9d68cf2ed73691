"""Features as bytes: what is stored, read, lost and refused; in shards, in extraction and in training."""

from __future__ import annotations

import pickle
from pathlib import Path

import clips_cache
import h5py
import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from test_extract import SMALL, dataset, rows  # noqa: F401  (fixtures)

import kdcache
from kdcache.data.quantised import QuantisedStream, open_stream
from kdcache.data.stream import CachedStream, JoinedStream, MemoryBudget
from kdcache.errors import ClipError, OptionError, StoreError
from kdcache.extraction import features as features_module
from kdcache.store import Cache, Record, commit_shard, hdf5_guard, inspect, reindex, update_index, verify
from kdcache.store.decoding import decode
from kdcache.store.layout import DamagedShard, row_digest
from kdcache.store.quantised import Quantised, quantise
from kdcache.streams.registry import resolve, restore
from kdcache.streams.settings import StreamSettings
from kdcache.streams.sharing import shared_axes

MAPS, VECTORS = "i3d-rgb/mixed4a", "vacnn/pool"
CPU = torch.device("cpu")
SHAPE = (2, 6, 2, 5, 5)  # [V, C, T, H, W]

pytestmark = pytest.mark.usefixtures("one_thread")


def maps(i: int) -> np.ndarray:
    """Rectified maps, float32; channel 0 is constant and channel 1 all zeros."""
    noise = np.random.default_rng(i).normal(size=SHAPE) * (1 + np.arange(6)[:, None, None, None])
    made = np.maximum(noise, 0).astype(np.float32)
    made[:, 0], made[:, 1] = 0.3, 0
    return made


def recipe(stream: str = MAPS, shared: str = "THW", **more) -> dict:
    made = streams_cache.features(stream, "MaxPool3d_4a_3x3", ["centre", "centre-flip"], **more)
    return made | {"dtype": "uint8", "quantised": {"steps": 255, "shared": shared}}


def write(folder: Path, clips: int = 6, codec: str | None = None) -> Path:
    """A quantised stream in two shards, the first clips in the second."""
    table = streams_cache.rows(clips, 0, 0)
    rows_of = table.to_dict("records")
    located: dict = {MAPS: {}}
    for part in (range(clips // 2, clips), range(clips // 2)):
        records = [
            Record(
                {k: v for k, v in rows_of[i].items() if pd.notna(v)},
                {},
                {MAPS: f"{i:032x}"},
                {MAPS: np.arange(4, dtype=np.int32)},
                {MAPS: quantise(maps(i), (2, 3, 4))},
            )
            for i in part
        ]
        located[MAPS] |= commit_shard(folder, records, {MAPS: recipe()}, codec=codec).located[MAPS]
    update_index(folder, table, located)
    return folder


@pytest.fixture(scope="module", params=[None, "zstd"], ids=["contiguous", "zstd"])
def cache(request, tmp_path_factory) -> Cache:
    return Cache(write(tmp_path_factory.mktemp("cache"), codec=request.param))


def decoded(i: int) -> np.ndarray:
    """The array as its definition gives it, one channel after the other."""
    array, out = maps(i), np.empty(SHAPE, np.float16)
    for view in range(SHAPE[0]):
        for channel in range(SHAPE[1]):
            values = array[view, channel].astype(np.float64)
            low, step = values.min(), (values.max() - values.min()) / 255
            codes = np.rint((values - low) / step) if step else np.zeros_like(values)
            out[view, channel] = codes * step + low
    return out


def test_codes_follow_from_smallest_and_largest_number():
    array = np.array([[[0, 1, 4], [3, 4, 255]], [[-2, -2, -2], [0, 0, 508]]], np.float32)  # [V, C, T]
    found = quantise(array, (2,))
    np.testing.assert_array_equal(found.codes[0], [[0, 64, 255], [0, 1, 255]])  # steps of 4 / 255 and 252 / 255
    np.testing.assert_array_equal(found.codes[1], [[0, 0, 0], [0, 0, 255]])
    np.testing.assert_allclose(found.scale[..., 0], [[4 / 255, 252 / 255], [0, 508 / 255]], rtol=1e-6)
    np.testing.assert_array_equal(found.offset[..., 0], [[0, 3], [-2, 0]])
    np.testing.assert_array_equal(found.decoded()[1], array[1])  # constant, or on a step: exact
    assert found.decoded().dtype == np.float16
    lost = found.decoded().astype(np.float64) - array
    assert found.error == pytest.approx(np.sqrt((lost**2).sum() / (array.astype(float) ** 2).sum()))
    assert quantise(np.zeros((1, 3, 4), np.float32), (2,)).error == 0


def test_what_is_lost_is_at_most_half_a_step():
    array = np.random.default_rng(0).normal(size=(1, 4, 400)).astype(np.float32) * [[[1e-30], [1e-3], [1], [1e4]]]
    array = array.astype(np.float32)
    found = quantise(array, (2,))
    steps = (array.max(2, keepdims=True) - array.min(2, keepdims=True)) / 255
    assert (np.abs(found.codes * found.scale + found.offset - array) <= 0.501 * steps).all()
    extremes = quantise(np.array([[[-65504, 65504]]], np.float32), (2,))
    np.testing.assert_array_equal(extremes.decoded(), [[[-65504, 65504]]])


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 1, 1),
        (4, 1, 1, 1),
        (1, 1, 1, 1),
        (4, 3, 5, 1),
        (4, 1, 1, 64),
        (4, 1, 5, 64),
        (1, 3, 1, 64),
        (4, 3, 5, 64),
    ],
)
def test_decoding_is_numpy_s_to_the_bit(shape):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (4, 3, 5, 64), dtype=np.uint8)
    for size in 10.0 ** np.arange(-9, 2):  # down to numbers that float16 holds as subnormal
        scale, offset = ((size * rng.normal(size=shape)).astype(np.float32) for _ in range(2))
        values = codes * scale
        values += offset
        half, single = np.empty(codes.shape, np.float16), np.empty(codes.shape, np.float32)
        decode(codes, scale, offset, half)
        decode(codes, scale, offset, single)
        np.testing.assert_array_equal(half.view(np.uint16), values.astype(np.float16).view(np.uint16))
        np.testing.assert_array_equal(single, half.astype(np.float32))


def test_reading_decodes_any_clips_and_views(cache):
    ids = cache.clips["clip_id"].tolist()
    assert cache.dtype(MAPS) == np.float16
    assert cache.shape(MAPS) == SHAPE
    order = [4, 0, 5, 0]
    expected = np.stack([decoded(i) for i in order])
    found = cache.read(MAPS, [ids[i] for i in order])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert (found == expected).mean() > 0.99  # the rest are float16's neighbours
    np.testing.assert_array_equal(cache.read(MAPS, [ids[i] for i in order], view=1), found[:, 1])
    out = np.empty((1, *SHAPE), np.float16)
    assert cache.read(MAPS, ids[3:4], out=out) is out
    with pytest.raises(OptionError, match="a contiguous float16"):
        cache.read(MAPS, ids[:1], out=np.empty((1, *SHAPE), np.uint8))
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.read(MAPS, ids[3:4]), out)


def test_plain_h5py_reads_it_as_documented(cache):
    ids = cache.clips["clip_id"].tolist()
    with h5py.File(cache.path / "shard-00000.h5") as file:
        clip = file["clip"][0].decode()
        scale, offset = (file[f"quantised/{MAPS}/{name}"][0] for name in ("scale", "offset"))
        array = file[MAPS][0] * scale + offset
        assert scale.shape == (2, 6, 1, 1, 1)
        assert file.attrs["format"] == b"kdcache/2"
        assert file[f"quantised/{MAPS}/error"][0] == pytest.approx(quantise(maps(ids.index(clip)), (2, 3, 4)).error)
    np.testing.assert_array_equal(array.astype(np.float16), cache.read(MAPS, [clip])[0])


def test_caches_without_it_stay_in_the_format_that_earlier_versions_read(tmp_path):
    folder = clips_cache.cache(tmp_path)
    with h5py.File(folder / "shard-00000.h5") as file:
        assert file.attrs["format"] == b"kdcache/1"
        assert "quantised" not in file


def test_an_earlier_version_neither_reads_nor_repairs_it(tmp_path, monkeypatch):
    folder = write(tmp_path)
    monkeypatch.setattr(hdf5_guard, "FORMATS", ("kdcache/1",))
    with pytest.raises(StoreError, match="its format is 'kdcache/2'") as caught:
        Cache(folder).read(MAPS, ["train-00"])
    assert not isinstance(caught.value, DamagedShard)
    verify(folder, repair=True)
    assert len(list(folder.glob("shard-*.h5"))) == 2


def test_verify_finds_changed_codes_and_scales(tmp_path):
    folder = write(tmp_path)
    assert verify(folder).ok
    with h5py.File(folder / "shard-00001.h5") as file:
        codes = file[MAPS].id.get_offset()
    shard = folder / "shard-00001.h5"
    data = bytearray(shard.read_bytes())
    data[codes + 3] ^= 0x55
    shard.write_bytes(data)
    report = verify(folder, repair=True)
    assert [(d.clip_id, d.stream) for d in report.damaged] == [("train-00", MAPS)]
    assert Cache(folder).has(MAPS).sum() == 5
    assert len(reindex(folder)) == 6
    with h5py.File(shard) as file:
        scales = file[f"quantised/{MAPS}/scale"].id.get_offset()
    data[scales + 2] ^= 0x55
    shard.write_bytes(data)
    assert "its tables have changed" in verify(folder).unreadable["shard-00001.h5"]


def test_digests_cover_codes_scales_and_offsets():
    one = quantise(maps(0), (2, 3, 4))
    parts = [one.codes, one.scale, one.offset]
    digests = {row_digest(one)}
    for which in range(3):
        changed = [part.copy() for part in parts]
        changed[which].reshape(-1)[7] += 1
        digests.add(row_digest(Quantised(*changed, one.error)))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "float16"}, "only a fixed uint8 stream can be quantised"),
        ({"quantised": None}, "its recipe does not say so"),
    ],
)
def test_records_that_do_not_fit_their_recipe_are_refused(tmp_path, change, sentence):
    made = {k: v for k, v in (recipe() | change).items() if v is not None}
    record = Record(
        {"clip_id": "a", "source": "a.mp4"}, {}, {MAPS: "0" * 32}, {MAPS: np.arange(4, dtype=np.int32)},
        {MAPS: quantise(maps(0), (2, 3, 4))},
    )  # fmt: skip
    with pytest.raises(StoreError, match=sentence):
        commit_shard(tmp_path, [record], {MAPS: made})
    broken = quantise(maps(0), (2, 3, 4))
    broken.scale[0, 0] = np.nan
    record.arrays[MAPS] = broken
    with pytest.raises(StoreError, match="not finite"):
        commit_shard(tmp_path, [record], {MAPS: recipe()})


def test_inspect_states_the_error(cache):
    errors = 100 * np.array([quantise(maps(i), (2, 3, 4)).error for i in range(6)])
    text = inspect(cache.path)
    assert f"{errors.mean():.2f} % (≤ {errors.max():.2f})" in text
    assert "kdcache/2" in text


@pytest.mark.parametrize(
    ("axes", "shape", "shared"),
    [
        ("VCTHW", (1, 480, 8, 14, 14), "THW"),
        ("VTCHW", (2, 8, 512, 7, 7), "THW"),
        ("VNCHW", (1, 10, 512, 7, 7), "HW"),  # levels never share
        ("VNCTHW", (1, 10, 480, 2, 4, 4), "THW"),
        ("VCTHW", (1, 1024, 1, 2, 2), "CHW"),
        ("VND", (3, 10, 2048), "D"),
        ("VTD", (1, 32, 2048), "D"),
    ],
)
def test_what_shares_a_scale(axes, shape, shared):
    assert shared_axes(axes, shape) == shared


def test_too_few_numbers_and_unknown_axes_are_refused():
    with pytest.raises(OptionError, match=r"\[1, 10\] has too few numbers"):
        shared_axes("VD", (1, 10))
    with pytest.raises(OptionError, match="axes is not known"):
        shared_axes(None, (1, 10))


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize(("order", "view_of"), [(None, None), ((1, 0, 2, 3), [1])])
def test_training_reads_the_values_that_the_cache_gives(cache, budget, order, view_of):
    ids = cache.clips["clip_id"].tolist()
    args = (ids, CPU, MemoryBudget(budget), None, view_of, order)
    packed = QuantisedStream(cache, MAPS, cache.packing(MAPS), *args)
    plain = CachedStream(cache, MAPS, *args[:2], MemoryBudget(budget), *args[3:])
    assert (packed.views, packed.shape, packed.resident) == (plain.views, plain.shape, budget > 0)
    assert packed.nbytes < 0.6 * plain.nbytes
    at, views = torch.tensor([5, 1, 1, 0]), torch.tensor([0, 1, 0, 1]) % packed.views
    found, expected = (s.to_device(s.fetch(at, views, at)) for s in (packed, plain))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    on_device = packed._on_device(packed.fetch(at, views, at))  # what a GPU computes, here on the CPU
    assert torch.equal(on_device if order is None else on_device.permute(0, *(1 + axis for axis in order)), expected)
    doubled = packed.map(lambda x: 2 * x)
    assert torch.equal(doubled.to_device(doubled.fetch(at, views, at)), 2 * expected)


def test_clips_that_are_not_cached_are_left_out_of_memory(cache):
    ids = cache.clips["clip_id"].tolist()
    available = torch.tensor([True, False, True, True, True, True])
    stream = QuantisedStream(cache, MAPS, cache.packing(MAPS), ids, CPU, MemoryBudget(10**9), available)
    at = torch.tensor([2, 0])
    found = stream.to_device(stream.fetch(at, torch.tensor([1, 0]), at))
    expected = [cache.read(MAPS, [ids[2]])[0, 1], cache.read(MAPS, [ids[0]])[0, 0]]
    np.testing.assert_array_equal(found, np.stack(expected).astype(np.float32))
    with pytest.raises(ValueError, match="rows without an array"):
        stream.fetch(torch.tensor([1]), torch.tensor([0]), at[:1])


def test_a_dataset_gives_what_the_cache_reads(cache):
    clips = kdcache.Cache(cache.path).dataset(MAPS, view=None)
    np.testing.assert_array_equal(clips[2][MAPS], cache.read(MAPS, [clips.clip_ids[2]])[0])
    assert clips[2][MAPS].dtype == torch.float16


def vectors(folder: Path, quantised: bool) -> Path:
    """Clips of ``clips_cache`` with vectors [V, N, 64], as bytes or as float16."""
    table = clips_cache.rows(24, 6, 6)
    made = clips_cache.arrays(table, width=64)
    recipe_of = clips_cache.recipe(VECTORS)
    if quantised:
        recipe_of |= {"dtype": "uint8", "quantised": {"steps": 255, "shared": "D"}}
        made = [quantise(vector.astype(np.float32), (2,)) for vector in made]
    return streams_cache.write(folder, table, [(recipe_of, made)], frames={VECTORS: range(clips_cache.LEVELS)})


def test_a_method_trains_and_answers_on_bytes(tmp_path):
    options = {"hidden": 8, "teacher_hidden": 4, "epochs": 3, "milestones": (), "batch_size": 12, "device": "cpu"}
    runs = {
        name: kdcache.train("early", vectors(tmp_path / name, name == "bytes"), out=tmp_path / f"run-{name}", **options)
        for name in ("bytes", "half")
    }
    stream = runs["bytes"].training_data.data.inputs["x"]
    assert isinstance(stream, QuantisedStream)
    probabilities = {name: run.predict("test").to_numpy() for name, run in runs.items()}
    np.testing.assert_allclose(probabilities["bytes"], probabilities["half"], atol=0.02)
    streamed = kdcache.train("early", tmp_path / "bytes", out=tmp_path / "streamed", memory_fraction=0.0, **options)
    np.testing.assert_array_equal(streamed.predict("test").to_numpy(), probabilities["bytes"])


def test_joined_streams_are_decoded(tmp_path):
    cache = Cache(vectors(tmp_path, quantised=True))
    ids, at = cache.clips["clip_id"].tolist(), torch.arange(3)
    args = (cache, VECTORS, ids, CPU, MemoryBudget(0), None, None, None)
    assert isinstance(open_stream(*args, alone=True), QuantisedStream)
    joined = JoinedStream([open_stream(*args, alone=False) for _ in range(2)])
    found = joined.to_device(joined.fetch(at, torch.zeros_like(at), at))
    read = cache.read(VECTORS, ids[:3], view=0).astype(np.float32)
    np.testing.assert_array_equal(found, np.concatenate([read, read], axis=-1))


def test_extraction_stores_what_float16_would_within_half_a_step(dataset, rows, tmp_path):  # noqa: F811
    few = rows.iloc[:3]
    for dtype in ("uint8", "float16"):
        for _ in range(2):  # the second call finds all of it
            report = kdcache.extract(few, root=dataset, out=tmp_path / dtype, streams=[MAPS], dtype=dtype, **SMALL)
        assert (report.extracted, report.cached) == (0, 3)
    packed, half = (kdcache.Cache(tmp_path / dtype) for dtype in ("uint8", "float16"))
    ids = few["clip_id"].tolist()
    a, b = (each.read(MAPS, ids).astype(np.float32) for each in (packed, half))
    shared = tuple(i + 1 for i, letter in enumerate("VCTHW") if letter in packed.recipe(MAPS)["quantised"]["shared"])
    step = (b.max(axis=shared, keepdims=True) - b.min(axis=shared, keepdims=True)) / 255
    assert (np.abs(a - b) <= 0.51 * step + 2e-3 * np.abs(b)).all()
    stored = np.concatenate([packed._shards.get(name).stored(MAPS).errors for name in packed._place(MAPS).shards])
    lost = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(sorted(stored), sorted(lost), rtol=0.05)
    assert packed.verify().ok
    assert restore(MAPS, packed.recipe(MAPS), {"i3d-rgb": "random:0"}).dtype == "uint8"


def test_what_bytes_cannot_hold_fails_the_clip():
    (stream,) = resolve([MAPS], StreamSettings(size=32, frames=8, dtype="uint8"), {"i3d-rgb": "random:0"})
    scales = np.prod([n for axis, n in enumerate(stream.shape) if axis not in stream.shared])
    assert stream.nbytes(0, 1) == np.prod(stream.shape) + 8 * scales
    for value, reason in ((np.nan, "NaN or infinite"), (1e5, "float32")):
        result = features_module._checked(np.full(stream.shape, value, np.float32), stream)
        assert isinstance(result, ClipError)
        assert reason in str(result)

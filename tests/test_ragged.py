"""Sequences that differ in length: which are accepted, how they are padded, that padding enters no number."""

from __future__ import annotations

import numpy as np
import pytest
import ragged_cache
import streams_cache
import torch

import kdcache
from kdcache import losses
from kdcache.data.inputs import bind
from kdcache.data.loader import feed, in_order
from kdcache.data.open import open_cache
from kdcache.errors import OptionError, StoreError
from kdcache.methods import early
from kdcache.methods.contract import BatchSource, Input
from kdcache.methods.heads import LightHead
from kdcache.methods.parts import means_of_parts
from kdcache.methods.vector_heads import FeatureClassifier, VectorHead
from kdcache.store import Cache

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = Input(name="x", axes="TD", ragged=True)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder, table, made = ragged_cache.clips(tmp_path_factory.mktemp("ragged"))
    return folder, dict(zip(table["clip_id"], made, strict=True))


@pytest.mark.parametrize("memory_fraction", [0.0, 0.5])
def test_batches_are_padded_to_their_longest_clip(cached, memory_fraction):
    folder, stored = cached
    opened = open_cache(folder, [STEPS], device="cpu", memory_fraction=memory_fraction)
    stream, ids = opened.data.inputs["x"], opened.examples.clip_ids
    assert (opened.data.axes, opened.data.ragged) == ({"x": "TD"}, {"x"})
    assert stream.resident == (memory_fraction > 0)
    assert stream.shape == (max(map(len, stored.values())), ragged_cache.WIDTH)
    assert stream.nbytes == sum(array.nbytes for array in stored.values())  # not padded
    rows = torch.arange(len(ids))
    source = BatchSource({"x": (stream, rows)}, {"row": rows})
    for batch in feed(source, in_order(source, 3), torch.device("cpu")):
        arrays = [stored[ids[row]] for row in batch["row"].tolist()]
        assert batch["x.lengths"].tolist() == [len(array) for array in arrays]
        assert batch["x"].shape[1] == max(map(len, arrays))
        for shown, array in zip(batch["x"].numpy(), arrays, strict=True):
            assert np.array_equal(shown[: len(array)], array)
            assert not shown[len(array) :].any()


def test_a_map_sees_each_clip_without_padding(cached):
    folder, stored = cached
    opened = open_cache(folder, [STEPS], device="cpu")
    mean = opened.data.inputs["x"].map(lambda x: x.mean(0))
    rows = torch.arange(len(stored))
    got = mean.fetch(rows, torch.zeros_like(rows), rows).numpy()
    want = np.stack([stored[clip].mean(0) for clip in opened.examples.clip_ids])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(ValueError, match="differ in length, and so does what is made of them"):
        opened.data.inputs["x"].map(torch.neg)


def test_what_does_not_fit_is_refused_by_name(tmp_path, cached):
    fixed = Input(name="x", axes="TD")
    with pytest.raises(OptionError, match=r"features/x: its clips differ in length, and this input takes clips of one"):
        bind(Cache(cached[0]), [fixed], None)
    table = streams_cache.rows()
    empty = [np.zeros((0 if i == 3 else 2, 4), np.float32) for i in range(len(table))]
    folder = streams_cache.write(tmp_path / "empty", table, [(ragged_cache.recipe(), empty)])
    with pytest.raises(StoreError, match=r"clip 'train-03': stream 'features/x' has no vector; import it again"):
        open_cache(folder, [STEPS], device="cpu")
    widths = [np.zeros((2, 5 if i == 3 else 4), np.float32) for i in range(len(table))]
    folder = streams_cache.write(tmp_path / "widths", table, [(ragged_cache.recipe(), widths)])
    with pytest.raises(StoreError, match=r"'train-03'.* has vectors of 5 numbers, clip '.*' of 4; import features"):
        open_cache(folder, [STEPS], device="cpu")


def test_streams_of_equal_lengths_are_joined_and_others_refused(tmp_path):
    table = streams_cache.rows()
    lengths = [1 + i % 4 for i in range(len(table))]
    a, b = ([np.full((n, w), w, np.float32) for n in lengths] for w in (2, 3))
    c = [np.zeros((n + (i == 5), 2), np.float32) for i, n in enumerate(lengths)]
    given = [(ragged_cache.recipe(f"f/{name}"), arrays) for name, arrays in (("a", a), ("b", b), ("c", c))]
    given.append((streams_cache.imported("f/fixed", (1, 3, 2), "VTD"), [np.zeros((1, 3, 2), np.float16)] * len(table)))
    folder = streams_cache.write(tmp_path, table, given)
    stream = open_cache(folder, [STEPS], device="cpu", stream="f/a,f/b").data.inputs["x"]
    rows = torch.arange(4)
    joined = stream.fetch(rows, torch.zeros_like(rows), rows)
    assert joined.shape[-1] == 5
    assert torch.equal(joined[0, 0], torch.tensor([2.0, 2.0, 3.0, 3.0, 3.0]))
    with pytest.raises(OptionError, match=r"clip 'train-05' has 2 and 3 vectors, so they cannot be joined; import"):
        open_cache(folder, [STEPS], device="cpu", stream="f/a,f/c")
    with pytest.raises(OptionError, match=r"all clips of f/fixed have one length, those of f/a differ"):
        open_cache(folder, [STEPS], device="cpu", stream="f/a,f/fixed")


def test_the_preferred_axes_are_read_and_told(tmp_path, caplog):
    """A cache that held maps alone for a method keeps training on them when vectors lie beside."""
    caplog.set_level("INFO", "kdcache")
    table = streams_cache.rows()
    shape = (1, 2, 1, 2, 2)
    maps = (streams_cache.imported("f/maps", shape, "VTCHW"), [np.zeros(shape, np.float16)] * len(table))
    steps = (ragged_cache.recipe(), ragged_cache.sequences(len(table), [0] * len(table)))
    cache = Cache(streams_cache.write(tmp_path, table, [maps, steps]))
    both = Input(name="x", axes="CTHW", also=("TD",), ragged=True)
    (binding,) = bind(cache, [both], None)
    assert (binding.streams, binding.axes, binding.order, binding.ragged) == (("f/maps",), "CTHW", (1, 0, 2, 3), False)
    assert "x reads f/maps; it could also read features/x: choose with --stream " in caplog.text
    (binding,) = bind(cache, [both], "features/x")
    assert (binding.axes, binding.ragged) == ("TD", True)


# Networks and losses


def padded(arrays, extra=0, fill=0.0):
    lengths = torch.tensor([len(a) for a in arrays])
    out = torch.full((len(arrays), int(lengths.max()) + extra, arrays[0].shape[1]), fill)
    for place, array in zip(out, arrays, strict=True):
        place[: len(array)] = torch.as_tensor(array)
    return out, lengths


def networks():
    torch.manual_seed(0)
    head, classifier = VectorHead(6, 3, 4), FeatureClassifier(6, 3, attention=True, width=5)
    for net in (head, classifier):
        torch.nn.init.normal_(net.attend.weight)
    return {"head": head, "classifier": classifier}


@pytest.mark.parametrize("name", ["head", "classifier"])
def test_padding_and_other_clips_change_no_answer(name):
    net = networks()[name].eval()
    arrays = ragged_cache.sequences(7, [0, 1, 2, 0, 1, 2, 0])
    together = net(*padded(arrays))["logits"]
    more = net(*padded(arrays, extra=4, fill=1e3))["logits"]
    torch.testing.assert_close(together, more, rtol=1e-5, atol=1e-6)
    for i, array in enumerate(arrays):
        alone = torch.as_tensor(array)[None]
        torch.testing.assert_close(net(alone)["logits"][0], together[i], rtol=1e-5, atol=1e-6)


def test_padding_enters_no_statistic_and_no_gradient():
    """In training too: batch norm of the head is that of the vectors there are."""
    arrays = ragged_cache.sequences(5, [0, 1, 2, 0, 1])
    found = []
    for extra, fill in ((0, 0.0), (3, 50.0)):
        net = networks()["head"].train()
        net.dropout.p = 0.0
        outputs = net(*padded(arrays, extra, fill))
        outputs["logits"].square().sum().backward()
        assert not outputs["map"].flatten(2).transpose(1, 2)[~outputs["own"]].any()
        found.append([net.norm.running_mean, net.norm.running_var, net.project.weight.grad, outputs["logits"]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    every = torch.cat([torch.as_tensor(a) for a in arrays]) @ net.project.weight.T
    torch.testing.assert_close(net.norm.running_mean, 0.1 * every.mean(0), rtol=1e-4, atol=1e-6)
    single = networks()["head"].train()(torch.ones(1, 1, 6), torch.tensor([1]))  # one vector has no variance
    assert single["logits"].isfinite().all()


@pytest.mark.parametrize("distance", ["huber", "mse", "kl"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("which", ["AR", "RA", "both"])
def test_masked_distillation_equals_a_loop_over_single_examples(distance, reduction, which):
    rng = np.random.default_rng(0)
    lengths = ([3, 1, 5], [2, 4, 4])
    A, R = ([torch.tensor(rng.normal(size=(n, 4)), dtype=torch.float32) for n in of] for of in lengths)
    (a, of_a), (r, of_r) = padded(A, 2, 7.0), padded(R, 1, -9.0)
    masks = [torch.arange(x.shape[1]) < n[:, None] for x, n in ((a, of_a), (r, of_r))]
    as_maps = [x.transpose(1, 2)[..., None, None] for x in (a, r)]
    got = losses.l_d(*as_maps, which, 0.7, distance, reduction, masks=tuple(masks))
    alone = [losses.l_d(x.T[None], y.T[None], which, 0.7, distance, reduction)[0] for x, y in zip(A, R, strict=True)]
    torch.testing.assert_close(got, torch.stack(alone), rtol=1e-5, atol=1e-6)
    entropy = losses.attention_entropy(a, r, 0.7, *masks)
    each = [losses.attention_entropy(x[None], y[None], 0.7)[0] for x, y in zip(A, R, strict=True)]
    torch.testing.assert_close(entropy, torch.stack(each), rtol=1e-5, atol=1e-6)


# Anticipation and early recognition on vectors

QUICK = {"epochs": 2, "batch_size": 8, "device": "cpu"}


def test_anticipation_trains_on_sequences_that_differ_in_length(tmp_path, monkeypatch):
    folder, _, _ = ragged_cache.pairs(tmp_path / "cache", 24, 8)
    quick = QUICK | {"width": 8, "milestones": (), "epochs": 4, "save_every": 0.0}
    run = kdcache.train("anticipation", folder, out=tmp_path / "run", **quick)
    assert run.resolved["options"]["head"] == "light"
    assert run.resolved["options"]["data"] == "S+U"
    assert run.metrics["last"]["validation"]["label"]["top1"] > 60  # chance: 33
    assert set(run.history.columns) >= {"L_c", "L_c_U", "L_d", "attention_entropy"}
    assert run.history["attention_entropy"].dropna().between(0, 1).all()
    whole = run.predict("validation")
    one = run.predict([whole.index[2]])
    np.testing.assert_allclose(one.to_numpy()[0], whole.to_numpy()[2], rtol=1e-5)
    streamed = kdcache.train("anticipation", folder, out=tmp_path / "streamed", memory_fraction=0.0, **quick)
    np.testing.assert_allclose(streamed.predict("validation").to_numpy(), whole.to_numpy(), rtol=1e-4)
    with pytest.raises(OptionError, match="loss_d=direct compares maps position by position, and these clips differ"):
        kdcache.train("anticipation", folder, out=tmp_path / "direct", loss_d="direct", **quick)
    with pytest.raises(OptionError, match="head=i3d reads feature maps, and the stream holds a vector for each time"):
        kdcache.train("anticipation", folder, out=tmp_path / "i3d", head="i3d", **quick)
    for more in ({"data": "S+now", "loss_d": "none"}, {"network": "recognition-early"}, {"init": "teacher"}):
        kdcache.train("anticipation", folder, out=tmp_path / "-".join(more), **quick | {"epochs": 1}, **more)


def test_anticipation_on_vectors_of_one_length_equals_the_light_head_on_maps_of_their_width(tmp_path):
    """A map [C, T, 1, 1] whose cells are its time steps twice over: the same positions, the same numbers."""
    rng = np.random.default_rng(0)
    maps = torch.tensor(rng.normal(size=(3, 6, 4, 1, 1)), dtype=torch.float32)
    torch.manual_seed(0)
    light, vectors = LightHead(6, 3, 5).eval(), VectorHead(6, 3, 5).eval()
    state = {k: v.flatten(1) if k == "project.weight" else v for k, v in light.state_dict().items()}
    vectors.load_state_dict(state)
    a, b = light(maps), vectors(maps[..., 0, 0].transpose(1, 2))
    for name in ("logits", "map", "pooled"):
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
    table = ragged_cache.pairs_cache.rows(16)
    steps = list(rng.normal(size=(len(table), 1, 4, 6)).astype(np.float16))
    folder = streams_cache.write(tmp_path / "cache", table, [(streams_cache.imported("f/x", (1, 4, 6)), steps)])
    for loss in ("direct", "both"):
        run = kdcache.train("anticipation", folder, out=tmp_path / loss, width=4, milestones=(), loss_d=loss, **QUICK)
        assert run.history["L_d"].dropna().gt(0).all()


def test_equal_parts_of_a_sequence():
    x = torch.arange(7.0)[:, None]
    assert means_of_parts(3)(x).flatten().tolist() == [0.5, 2.5, 5.0]  # 0 1 | 2 3 | 4 5 6
    assert means_of_parts(7)(x).equal(x)
    two = means_of_parts(5)(torch.tensor([[1.0], [2.0]])).flatten().tolist()
    assert two == [1.0, 1.0, 1.0, 1.0, 2.0]  # the second vector ends with the clip; before the first, the first
    for length in range(1, 12):
        whole, cut = torch.arange(float(length))[:, None], torch.arange(float(length))[:, None]
        cut[length // 2 + 1 :] = 99  # what comes later
        seen = [n for n in range(1, 5) if n * length // 4 <= length // 2 + 1 and n * length // 4 > 0]
        assert torch.equal(means_of_parts(4)(whole)[: len(seen)], means_of_parts(4)(cut)[: len(seen)])


def test_early_needs_to_be_told_that_no_vector_looks_ahead(tmp_path):
    folder, _, _ = ragged_cache.clips(tmp_path / "cache", 12, 6, 6)
    with pytest.raises(OptionError, match=r"a network may have looked ahead; if none .* later frames, set parts=10"):
        kdcache.train("early", folder, out=tmp_path / "run", **QUICK)
    small = {"hidden": 8, "teacher_hidden": 4, "epochs": 15, "milestones": (), "lr": 0.1}
    run = kdcache.train("early", folder, out=tmp_path / "run", parts=4, **QUICK | small)
    assert set(run.predict("test").index.get_level_values("observed")) == {25, 50, 75, 100}
    assert run.metrics["last"]["test"]["label"]["acc100"] > 60
    knn = kdcache.train("early", folder, out=tmp_path / "knn", parts=4, model="knn", device="cpu")
    assert knn.metrics["last"]["test"]["label"]["auc"] > 60
    with pytest.raises(OptionError, match="features/x was imported, so how to compute it from a source is not known"):
        list(kdcache.predict(run, "nowhere.mp4"))
    assert early.inputs(early.Options(parts=3))[0].ragged

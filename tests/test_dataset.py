"""``Cache.dataset``: items, splits as in training, views, whole clips, workers; what ``kdcache`` shows of itself."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import clips_cache
import numpy as np
import pairs_cache
import pytest
import ragged_cache
import streams_cache
import torch
from torch.utils.data import ConcatDataset, DataLoader, random_split

import kdcache
from kdcache.data.open import open_cache
from kdcache.errors import KdcacheError, OptionError
from kdcache.methods.contract import Input

# On a machine of one core torch warns of each loader that has more workers than that.
FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")
STREAM, MAPS = clips_cache.STREAM, "i3d-rgb/mixed4a"
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "own_training.py"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> kdcache.Cache:
    """24 training and 12 test clips of three classes, 2 without a label; vectors [2, 5, 8]."""
    return kdcache.Cache(clips_cache.cache(tmp_path_factory.mktemp("cache"), views=2, unlabelled=2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> kdcache.Cache:
    """Maps in two views, JPEG frames and flow of 20 clips; clip ``i`` has 3 + i % 4 frames."""
    table = streams_cache.rows()
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 255, (3 + i % 4, 12, 16, 3), dtype=np.uint8) for i in range(len(table))]
    maps = streams_cache.features(MAPS, "MaxPool3d_4a_3x3", ["centre", "centre-flip"])
    flip = streams_cache.features("resnet34/layer4", views=["centre-flip", "tl"])
    streams = [
        (maps, [np.full((2, 4, 2, 3, 3), [[[[[i]]]], [[[[i + 100]]]]], np.float16) for i in range(len(table))]),
        (flip, [np.full((2, 7), [[i + 100], [i + 200]], np.float16) for i in range(len(table))]),
        (streams_cache.JPEG, [streams_cache.jpegs(frames) for frames in clips]),
        (streams_cache.FLOW, [frames[1:, ..., :2] for frames in clips]),
    ]
    return kdcache.Cache(streams_cache.write(tmp_path_factory.mktemp("whole"), table, streams))


def test_items_are_the_cache_s_arrays_with_class_indices(cache):
    clips = cache.dataset(STREAM, split="test", view=1)
    assert len(clips) == 12
    assert clips.classes == {"label": [0, 10, 20]}
    for i, item in enumerate(clips):
        assert set(item) == {STREAM, "label", "clip_id", "view"}
        np.testing.assert_array_equal(item[STREAM], cache.read(STREAM, [clips.clip_ids[i]], view=1)[0])
        row = cache.clips.set_index("clip_id").loc[item["clip_id"]]
        assert clips.classes["label"][item["label"]] == row["label"]
        assert row["split"] == "test"
        assert item["view"] == 1
    assert list(clips.rows.index) == clips.clip_ids
    assert clips[-1]["clip_id"] == clips.clip_ids[-1]
    with pytest.raises(IndexError, match="has no item 12"):
        clips[12]


@pytest.mark.parametrize("options", [{}, {"split_column": "subject=train1"}, {"validation": 0.5}])
def test_splits_and_classes_are_those_of_training(cache, options):
    vectors = Input(name="x", stream=STREAM, axes="ND")
    trained = open_cache(cache.path, [vectors], device="cpu", **options).examples
    for split, samples in trained.splits.items():
        found = cache.dataset(STREAM, split=split, labelled=False, **options)
        assert found.clip_ids == samples.names
        assert torch.equal(found.labels["label"], samples.labels["label"])
    assert found.classes == trained.classes


def test_pairs_have_the_splits_of_training_and_either_clip(tmp_path):
    folder = pairs_cache.write(
        tmp_path, table := pairs_cache.rows(12), pairs_cache.arrays(table, shape=(4, 2, 2, 2)), shards=1
    )
    cache = kdcache.Cache(folder)
    found = {
        role: cache.dataset(MAPS, split="validation", role=role, target=("label", "verb"))
        for role in ("observed", "action")
    }
    assert found["observed"].pairs == found["action"].pairs == ["p003", "p007", "p011"]
    item = found["observed"][1]
    assert (item["clip_id"], item["pair"], int(item["label"])) == ("p007-observed", "p007", 7 % 3)
    assert int(item["verb"]) == (7 % 3) // 2
    assert len(cache.dataset(MAPS)) == 12  # of pairs the action
    with pytest.raises(OptionError, match="Unknown role 'observd'"):
        cache.dataset(MAPS, role="observd")
    with pytest.raises(OptionError, match="tau_s=1 chooses among pairs"):
        cache.dataset(MAPS, tau_s=1.0)


def test_views_of_several_streams_are_matched_by_name(whole):
    both = whole.dataset([MAPS, "resnet34/layer4"], view="centre-flip")
    assert both.views == ("centre-flip",)
    for i, item in enumerate(both):
        number = int(whole.clips["clip_id"].tolist().index(both.clip_ids[i]))
        assert item[MAPS].unique().tolist() == item["resnet34/layer4"].unique().tolist() == [number + 100]
    every = whole.dataset(MAPS, view=None)
    assert every[0][MAPS].shape == (2, 4, 2, 3, 3)
    assert "view" not in every[0]
    np.testing.assert_array_equal(
        every.__getitems__([3, 0]).columns[MAPS], whole.read(MAPS, [every.clip_ids[3], every.clip_ids[0]])
    )


def test_random_views_follow_torch_s_generator(whole):
    clips = whole.dataset(MAPS, view="random", dtype=torch.float32)

    def epoch(loader):
        torch.manual_seed(3)
        drawn = []
        for batch in loader:
            torch.rand(5)  # a loader that reads ahead is not disturbed by what the loop draws
            assert torch.equal(batch[MAPS][:, 0, 0, 0, 0] >= 100, batch["view"] == 1)
            drawn.append((batch["clip_id"], batch["view"].tolist()))
        return drawn

    ahead = clips.loader(4, shuffle=True)
    assert epoch(ahead) == epoch(ahead)
    assert {v for _, views in epoch(ahead) for v in views} == {0, 1}
    assert next(iter(ahead))["clip_id"] != next(iter(ahead))["clip_id"]  # another order each epoch
    assert clips[0][MAPS].dtype == torch.float32


def test_whole_clips_are_lists_or_so_many_frames(whole):
    clips = whole.dataset([MAPS, "rgb", "flow"])
    batch = next(iter(DataLoader(clips, batch_size=6, collate_fn=clips.collate)))
    assert [len(frames) for frames in batch["rgb"]] == [len(f) + 1 for f in batch["flow"]]
    assert batch["rgb"][0].dtype == torch.uint8
    np.testing.assert_array_equal(batch["rgb"][2], whole.read("rgb", [batch["clip_id"][2]])[0])
    few = whole.dataset("rgb", frames=2)
    batch = next(iter(DataLoader(few, batch_size=20)))
    assert batch["rgb"].shape == (20, 2, 12, 16, 3)
    stored = whole.read("rgb", [few.clip_ids[3]])[0]
    assert len(stored) == 6
    np.testing.assert_array_equal(batch["rgb"][3], stored[[1, 4]])  # the middle of each half


@FEW_CORES
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_the_same_batches(whole, start):
    clips = whole.dataset([MAPS, "rgb"], view=1)
    clips[0]  # what has been opened already goes along
    plain = list(DataLoader(clips, batch_size=7, collate_fn=clips.collate))
    loader = DataLoader(clips, batch_size=7, collate_fn=clips.collate, num_workers=2, multiprocessing_context=start)
    for one, other in zip(plain, loader, strict=True):
        assert one["clip_id"] == other["clip_id"]
        assert torch.equal(one[MAPS], other[MAPS])
        assert all(torch.equal(a, b) for a, b in zip(one["rgb"], other["rgb"], strict=True))


def test_default_collate_and_torch_s_own_datasets_work(cache):
    clips = cache.dataset(STREAM, split="train")
    ours = list(DataLoader(clips, batch_size=8, collate_fn=clips.collate))
    for one, other in zip(ours, DataLoader(clips, batch_size=8), strict=True):
        assert torch.equal(one[STREAM], other[STREAM])
        assert torch.equal(one["label"], other["label"])
        assert one["clip_id"] == other["clip_id"]
    part = random_split(clips, [0.5, 0.5], torch.Generator().manual_seed(0))[0]
    both = ConcatDataset([part, cache.dataset(STREAM, split="test")])
    count = sum(len(batch["label"]) for batch in DataLoader(both, batch_size=5, collate_fn=clips.collate))
    assert count == len(part) + 12
    assert pickle.loads(pickle.dumps(clips)).clip_ids == clips.clip_ids
    batch = clips.__getitems__([4, 2, 0])
    assert [item["clip_id"] for item in batch[1:]] == [clips.clip_ids[2], clips.clip_ids[0]]


def test_clips_without_a_label_and_without_an_array(tmp_path, caplog):
    table = clips_cache.rows(12, 6, unlabelled=3)
    vectors = clips_cache.arrays(table)
    vectors[0] = None
    cache = kdcache.Cache(clips_cache.write(tmp_path, table, {STREAM: vectors}))
    assert len(cache.dataset(STREAM, validation=0)) == 17
    every = cache.dataset(STREAM, labelled=False)
    assert (every.labels["label"] == -1).sum() == 3
    assert set(cache.dataset(STREAM, target=None)[0]) == {STREAM, "clip_id", "view"}
    assert "left out: 1 of 21 clips are not cached (train-0-000)" in caplog.text


def test_a_loader_that_reads_in_a_thread_takes_no_workers(cache):
    with pytest.raises(OptionError, match="num_workers: loader reads in a thread"):
        cache.dataset(STREAM).loader(8, num_workers=2)
    assert [len(b["label"]) for b in cache.dataset(STREAM).loader(16, drop_last=True)] == [16, 16]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"streams": "vacnn/pol"}, "did you mean 'vacnn/pool'"),
        ({"streams": []}, "at least one stream"),
        ({"split": "tets"}, "Unknown split 'tets': did you mean 'test'"),
        ({"target": "verb"}, "target=verb: no cached clip of the manifest has a verb; choose label"),
        ({"target": "lable"}, "did you mean 'label'"),
        ({"view": 2}, r"view=2: the streams have views 0 to 1"),
        ({"view": "centre"}, "Unknown view 'centre'"),
        ({"frames": 4}, "frames=4: vacnn/pool holds no whole clips"),
        ({"frames": 0}, "frames is 0"),
        ({"split_column": "subject=nobody"}, "Unknown value of column subject"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(cache, options, sentence):
    with pytest.raises(OptionError, match=sentence):
        cache.dataset(**({"streams": STREAM} | options))


def test_features_of_differing_length_are_cast_and_have_no_views(tmp_path, whole):
    folder, _, made = ragged_cache.clips(tmp_path)
    cache = kdcache.Cache(folder)
    clips = cache.dataset(ragged_cache.STREAM, dtype=torch.float16)
    found = clips.__getitems__([0, 1]).columns[ragged_cache.STREAM]
    assert [values.dtype for values in found] == [torch.float16] * 2
    number = list(cache.clips["clip_id"]).index(clips.clip_ids[1])
    np.testing.assert_array_equal(found[1], made[number].astype(np.float16))
    assert "float16" in repr(clips)
    few = cache.dataset(ragged_cache.STREAM, dtype=torch.float64, frames=3)
    assert few.__getitems__([0, 1]).columns[ragged_cache.STREAM].dtype == torch.float64
    assert whole.dataset("rgb", dtype=torch.float32)[0]["rgb"].dtype == torch.uint8  # pixels are no features
    for view in (1, "centre", "random"):
        with pytest.raises(OptionError, match=f"view={view}: features/x holds whole clips, without views"):
            cache.dataset(ragged_cache.STREAM, view=view)


def test_a_cache_without_labels_says_so(tmp_path):
    table = clips_cache.rows(4, 0).drop(columns=["label", "split"])
    folder = clips_cache.write(tmp_path, table, {STREAM: [np.zeros((1, 5, 8), np.float16)] * 4})
    with pytest.raises(OptionError, match="no cached clip of the manifest has a label; set target=None"):
        kdcache.Cache(folder).dataset(STREAM)
    assert len(kdcache.Cache(folder).dataset(STREAM, target=None)) == 4


def test_what_is_shown_of_a_cache(cache, whole, tmp_path):
    assert len(cache) == 38
    assert repr(cache) == f"<kdcache.Cache {cache.path}: 38 clips; {STREAM} (38)>"
    assert repr(cache.dataset(STREAM, split="test")) == (
        f"<kdcache dataset of {cache.path}: 12 clips, split test; {STREAM} [5, 8] float16; 3 classes of label>"
    )
    assert "whole clips uint8" in repr(whole.dataset("rgb"))
    table = whole._repr_html_()
    assert "<td>2 × 4 × 2 × 3 × 3</td>" in table
    assert "<td>one a clip</td>" in table
    assert pickle.loads(pickle.dumps(cache)).streams == cache.streams


def test_a_table_of_mixed_recipes_says_so(tmp_path):
    table = clips_cache.rows(4, 2)
    vectors = clips_cache.arrays(table)
    clips_cache.write(tmp_path, table, {STREAM: [*vectors[:3], None, None, None]}, sha256="0" * 64)
    clips_cache.write(tmp_path, table, {STREAM: [None, None, None, *vectors[3:]]}, sha256="1" * 64)
    assert "mixes recipes" in kdcache.Cache(tmp_path)._repr_html_()


def test_what_is_shown_of_a_run(cache, tmp_path):
    options = {"hidden": 8, "teacher_hidden": 4, "epochs": 1, "milestones": (), "batch_size": 12, "device": "cpu"}
    run = kdcache.train("early", cache.path, out=tmp_path / "run", **options)
    assert isinstance(run, kdcache.Run)
    assert repr(run) == f"<kdcache.Run {run.path}: early on {cache.path}, finished>"
    table = run._repr_html_()
    assert table.count("<table") == 2
    assert f"<td>{run.metrics['last']['test']['label']['acc100']:.1f}</td>" in table
    (run.path / "metrics.json").unlink()
    assert "not finished" in repr(kdcache.Run(run.path))
    assert "not finished" in kdcache.Run(run.path)._repr_html_()


def test_the_package_shows_what_there_is_and_loads_nothing_heavy():
    assert {"Cache", "Run", "KdcacheError", "OptionError", "motion"} <= set(dir(kdcache))
    assert kdcache.KdcacheError is KdcacheError
    assert all(getattr(kdcache, name) is not None for name in dir(kdcache))
    code = "import sys, kdcache; kdcache.Cache; kdcache.KdcacheError; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@FEW_CORES
def test_the_example_learns(tmp_path, capsys):
    """Vectors in which the class shows clearly."""
    spec = importlib.util.spec_from_file_location("own_training", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    folder = clips_cache.cache(tmp_path, views=2, noise=0.2, validation=6)
    assert example.train(str(folder), STREAM, epochs=3) == 100.0
    assert "100.0 % of 6 held-out clips" in capsys.readouterr().out
    assert len(EXAMPLE.read_text().splitlines()) < 60

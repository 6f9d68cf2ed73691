"""The names of splits: training and the warning of leaks know the same ones, in every split column."""

from __future__ import annotations

import pandas as pd
import pytest

from kdcache.backbones.metadata import FitMetadata
from kdcache.data.splits import named_splits, split_by
from kdcache.extraction.fitted import leaks
from kdcache.methods import contract
from kdcache.splits import HELD_OUT, NAMES, TRAIN, held_out_clips, split_columns, split_name


def rows(**columns):
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"clip_id": [f"c{i}" for i in range(count)], **columns})


def fitted(*clips, backbone="vacnn"):
    return FitMetadata(backbone=backbone, num_classes=2, classes=(0, 1), fitted_on=clips)


def test_one_list_of_names():
    assert contract.HELD_OUT == HELD_OUT
    table = rows(split=sorted(NAMES))
    assert set(named_splits(table)) == {TRAIN, *HELD_OUT} == {split_name(name) for name in NAMES}
    assert set(held_out_clips(table)["split"]) == set(table["clip_id"][table["split"] != TRAIN])


@pytest.mark.parametrize("name", sorted(NAMES - {TRAIN}))
@pytest.mark.parametrize("column", ["split", "split_2"])
def test_every_held_out_name_in_every_split_column_is_warned_of(name, column):
    table = rows(split=["train"] * 3, group=["a", "b", "c"]).assign(**{column: ["train", name, name]})
    assert split_by(table, column) is not None  # a column that training accepts
    (warning,) = leaks(table, {"0" * 64: fitted("c0", "c2", "elsewhere")})
    assert "vacnn was fitted on the labels of 1 clips that this manifest holds out" in warning
    assert ", such as c2:" in warning
    assert ("by column split_2" in warning) == (column == "split_2")
    assert leaks(table, {"0" * 64: fitted("c0")}) == []


def test_several_columns_make_one_sentence_for_each_file():
    table = rows(
        split=["train", "train", "test"],
        fold_a=["valid", "train", ""],
        fold_b=["train", "test", None],
        subject=["test", "x", "y"],  # not a split column: it has other cells
    )
    assert split_columns(table) == ["split", "fold_a", "fold_b"]
    first, second = leaks(table, {"0" * 64: fitted("c0", "c1"), "1" * 64: fitted("c2", backbone="tsm-resnet50")})
    assert "1 clips that this manifest holds out by column fold_a and 1 more, such as c0:" in first
    assert "tsm-resnet50 was fitted on the labels of 1 clips that this manifest holds out, such as c2:" in second


def test_a_column_split_with_other_names_still_counts_and_a_manifest_without_splits_does_not():
    assert leaks(rows(split=["training", "val"]), {"0" * 64: fitted("c1")})
    assert leaks(rows(subject=["s1", "s2"]), {"0" * 64: fitted("c1")}) == []

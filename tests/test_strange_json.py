"""JSON files beside shards and in weights, with numbers, kinds and depths that kdcache does not write: one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdcache.backbones import metadata
from kdcache.errors import StoreError, WeightsError
from kdcache.store import copying, fitted
from kdcache.store.places import place
from kdcache.store.shard_list import LIST, read_list

DEEP = "[" * 100_000 + "]" * 100_000
STRANGE = ["Infinity", "NaN", "1e999", '"9"', "null", "{}", "[[]]", DEEP, "9" * 5000]


@pytest.mark.parametrize("value", STRANGE, ids=lambda text: text[:9])
def test_a_list_of_shards(tmp_path: Path, value: str) -> None:
    for field in ("size", "clips", "recipes", "shapes"):
        one = {"size": 1, "clips": 1, "recipes": {"a": "b"}, "shapes": {"a": [1]}}
        text = json.dumps({"shards": {"shard-00000.h5": {**one, field: "HERE"}}})
        (tmp_path / LIST).write_text(text.replace('"HERE"', value))
        try:
            read_list(tmp_path)
        except StoreError as error:
            assert LIST in str(error)  # noqa: PT017


@pytest.mark.parametrize("value", STRANGE, ids=lambda text: text[:9])
def test_what_weights_say_of_their_fit(tmp_path: Path, value: str) -> None:
    path = tmp_path / "w.safetensors"
    facts = metadata.FitMetadata(backbone="vacnn", num_classes=2, classes=(0, 1), limits=(0.0, 1.0))
    for field in ("num_classes", "classes", "limits", "fitted_on", "options"):
        text = json.dumps({**facts.to_json(), field: "HERE"}).replace('"HERE"', value)
        save_file({"w": torch.zeros(1)}, path, {metadata._KEY: text})
        try:
            metadata.read_metadata(path)
        except WeightsError as error:
            assert "w.safetensors: what it says of its fit is damaged" in str(error)  # noqa: PT017


@pytest.mark.parametrize("value", STRANGE, ids=lambda text: text[:9])
def test_records_of_copies_and_parts(tmp_path: Path, value: str) -> None:
    parts = fitted.parts_file(tmp_path, "0" * 32)
    parts.parent.mkdir()
    parts.write_text(f'{{"parts": {value}}}')
    for text in (value, f'{{"files": {value}}}', f'{{"files": {{"a": {value}}}}}'):
        (tmp_path / copying.RECORD).write_text(text)
        try:
            copying._read_record(place(str(tmp_path)))
        except StoreError as error:
            assert copying.RECORD in str(error)  # noqa: PT017
    try:
        fitted.parts(tmp_path, "0" * 32)
    except StoreError as error:
        assert parts.name in str(error)  # noqa: PT017

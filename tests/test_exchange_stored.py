"""What the scripts of 0.1 (``tools/import_*.py``) have cached is found by the commands: the same digests and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pandas as pd
import pytest

from kdcache import exchange
from kdcache.manifest import validate, write_manifest
from kdcache.recipe import digest
from kdcache.store import Cache, load_index

# Recipe digest, then the keys of clips c0, c1 and c/2, as those scripts wrote them for the files made below.
WRITTEN: dict[str, tuple[str, list[str]]] = {
    "plain": (
        "a041fd6e6ce37d72d37c825b138a8ef3",
        ["52aae9fc3d99b979f8b32322b9aab91d", "b15fe1c3f99d7649538d988c8bdd37d2", "34630c69f879d8277429069a4941b55b"],
    ),
    "f8": (
        "706d590f909f233b7cc88fa30f3d6f3d",
        ["760157a749efd7213a4a64c611763862", "87109493f4bf351969cddf7fcb060f35", "d529b9be48ff67b08ddbd03daf728b4d"],
    ),
    "net/views": (
        "69a498c44d446920335033e38311903b",
        ["16fd68d732349e89c5278c50a1fc5e32", "ae26bd460a712f546ecdbfca0fa202ad", "a98bb5448594c51a98223a08a0afb374"],
    ),
    "rulstm/rgb": (
        "69055a5b4e6fae3def6e891c5dd1e897",
        ["36d08227e52e63f8bfb19bd87172284a", "53777ef5b3be07b331149aed7ddea35c", "b50d2d5d89a6ab245c9acf71b73cc48c"],
    ),
    "rulstm/even": (
        "eeb0ed7d8dd02f2cbd233c0e6cc99b00",
        ["506338ec6b820b6ed9acb403dcdeae36", "52db058d725bb98cd5d2263d3705b718", "ffe4563c2ae0219469f5c082d1263811"],
    ),
}
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("npy", "f4", {}),
    "f8": ("npy", "f8", {"dtype": "float16", "levels": True}),
    "net/views": ("npy", "views", {"views": True, "axes": "VND"}),
    "rulstm/rgb": ("lmdb", "rgb", {"frames": 5, "step": 0.25}),
    "rulstm/even": ("lmdb", "rgb", {"frames": 4, "anchor": "last", "levels": True, "dtype": "float16"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    spans = [(None, 3.0), (1.0, 4.0), (2.5, None)]
    rows = [
        {"clip_id": clip, "source": "v.mp4", "start_s": a, "stop_s": b, "label": i % 2, "group": "P01_1"}
        for i, (clip, (a, b)) in enumerate(zip(["c0", "c1", "c/2"], spans, strict=True))
    ]
    write_manifest(validate(pd.DataFrame(rows)), root / "clips.csv")
    for folder in ("f4", "f8", "views"):
        (root / folder).mkdir()
    for i, name in enumerate(["c0", "c1", "c%2F2"]):
        base = np.arange(12, dtype=np.float32).reshape(4, 3) / 8 + i
        np.save(root / "f4" / f"{name}.npy", base)
        np.save(root / "f8" / f"{name}.npy", base.astype(np.float64))
        np.save(root / "views" / f"{name}.npy", np.stack([base, -base]).astype(np.float16))
    with lmdb.open(str(root / "rgb"), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for n in range(1, 151):
            value = np.arange(4, dtype=np.float32) + n / 4
            transaction.put(f"P01_1_frame_{n:010d}.jpg".encode(), value.tobytes())
    return root


@pytest.mark.parametrize("stream", sorted(WRITTEN))
def test_digests_and_keys_are_those_of_the_scripts(files: Path, tmp_path: Path, stream: str) -> None:
    kind, source, options = CALLS[stream]
    call = exchange.import_npy if kind == "npy" else exchange.import_lmdb
    report = call(files / source, files / "clips.csv", tmp_path, stream=stream, origin="pinned", **options)
    assert (report.imported, report.failures, report.notes) == (3, [], [])
    recipe, keys = WRITTEN[stream]
    assert digest(Cache(tmp_path).recipe(stream)) == recipe
    assert load_index(tmp_path)[f"{stream}:key"].tolist() == keys

"""Shards of strangers: changed with h5py, with digests that are right again."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import hdf5plugin
import numpy as np

from kdcache.store.layout import tables_digest
from kdcache.store.shard_list import LIST
from torture.damage import damaged
from torture.materials import CODES, FEATURE, PICTURES, RAGGED

TEXTS = ("format", "recipes", "recipe_digests", "libraries")
STRANGE = ["", "x", "[]", "3", "null", '{"clip_id": []}', '{"clip_id": ""}', "{}", "[" * 3000, '{"a":' * 3000, "NaN"]


def spoil_shard(path: Path, rng: random.Random) -> str:
    """One strange thing, digests made right; sometimes plain damage or no shard at all."""
    name, craft = rng.choice(list(CRAFTS.items()))
    if craft is None:
        return WHOLE[name](path, rng)
    with h5py.File(path, "r+") as file:
        craft(file, rng)
        reseal(file)
    return name


def reseal(file: Any) -> None:
    """Make the digest of tables and attributes right, as far as there still are such; the list of shards goes."""
    Path(file.filename).with_name(LIST).unlink(missing_ok=True)
    try:
        recipes = json.loads(_text(file, "recipes"))
        data = {s if r.get("layout") == "fixed" else f"{s}/data" for s, r in recipes.items()}
    except (ValueError, AttributeError, KeyError, RecursionError):
        data = set()
    tables: dict[str, Any] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name not in data and item.size < 10**7:
            tables[name] = np.asarray(item[()])

    try:
        file.visititems(collect)
        texts = [_text(file, name) for name in TEXTS]
        found = tables_digest(texts, tables)
    except (KeyError, TypeError, ValueError, UnicodeError, OSError):
        return
    file.attrs["tables_digest"] = np.bytes_(found)


def _text(file: Any, name: str) -> str:
    value = file.attrs[name]
    return str(value.decode() if isinstance(value, bytes) else value)


def replace(file: Any, name: str, values: Any, **options: Any) -> None:
    """Another data set in the place of one."""
    if name in file:
        del file[name]
    file.create_dataset(name, data=values, **options)


def _strange_text(file: Any, rng: random.Random) -> None:
    table = rng.choice(("row", "origin", "clip"))
    cells = [bytes(cell) for cell in file[table][()]]
    cells[rng.randrange(len(cells))] = rng.choice([*(s.encode() for s in STRANGE), b"\xff\xfe", b"{" * 10_000])
    replace(file, table, np.array(cells, f"S{max(1, *map(len, cells))}"))


def _strange_names(file: Any, rng: random.Random) -> None:
    stream, table = rng.choice((FEATURE, RAGGED)), rng.choice(("key", "digest"))
    replace(file, f"{table}/{stream}", np.array([b"\xff" * 32, b"", b"x" * 90], "S90"))


def _shapes(file: Any, rng: random.Random) -> None:
    shape = np.array(file[f"{RAGGED}/shape"][()])
    strange: list[Any] = [2**32, -1, -(2**31), 2**62, 0, 10**9]
    shape[rng.randrange(len(shape))] = [rng.choice(strange) for _ in range(shape.shape[1])]
    kind = rng.choice(("numbers", "numbers", "floats", "flat", "none"))
    values: Any = {"numbers": shape, "floats": shape * 1.5, "flat": shape.ravel(), "none": shape[:0]}[kind]
    replace(file, f"{RAGGED}/shape", values)


def _offsets(file: Any, rng: random.Random) -> None:
    name = rng.choice((f"{RAGGED}/offset", f"{PICTURES}/offset", f"{PICTURES}/frame_offset"))
    values = np.array(file[name][()])
    values[rng.randrange(len(values))] = rng.choice((-1, 2**62, 10**6, -(2**63), 0))
    replace(file, name, values.astype(rng.choice(("<i8", "<i8", "<f8", "<u2"))) if rng.random() < 0.8 else values[:-1])


def _bomb(file: Any, rng: random.Random) -> None:
    name = rng.choice(("pad", "key/pad", f"frames/{FEATURE}x", "origin2"))
    size = rng.choice((2**30, 3 * 2**30))
    if rng.random() < 0.5:
        data = file.create_dataset(name, (size,), "u1", chunks=(2**24,), **hdf5plugin.Zstd(clevel=1))
        data[: 2**24] = 0
    else:
        file.create_dataset(name, (size,), "u1")


def _inflated_stream(file: Any, rng: random.Random) -> None:
    """Chunks that are not there: HDF5 gives zeros for them."""
    del file[FEATURE]
    clips = len(file["clip"])
    file.create_dataset(FEATURE, (clips, 1, 5, 10**7), "<f2", chunks=(1, 1, 5, 10**6), **hdf5plugin.Zstd(clevel=1))


def _huge_picture(file: Any, rng: random.Random) -> None:
    side = rng.choice((30_000, 65_500, 2, 9000))
    picture = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    at = picture.index(b"\xff\xc0") + 5
    picture = picture[:at] + struct.pack(">HH", side, side) + picture[at + 4 :]
    if rng.random() < 0.3:
        picture = rng.choice((b"", b"\xff\xd8", b"BM" + bytes(100), rng.randbytes(300)))
    frames = int(file[f"{PICTURES}/offset"][-1])
    replace(file, f"{PICTURES}/data", np.frombuffer(picture * frames, np.uint8))
    replace(file, f"{PICTURES}/frame_offset", np.arange(frames + 1, dtype="<i8") * len(picture))


def _groups(file: Any, rng: random.Random) -> None:
    """Groups that name each other: few objects, paths without number."""
    below = file.create_group("g0")
    for level in range(1, 12):
        group = file.create_group(f"g{level}")
        for i in range(12):
            below[f"x{i}"] = group
        below = group
    if rng.random() < 0.3:
        below["loop"] = file["g0"]


def _links(file: Any, rng: random.Random) -> None:
    kind = rng.choice(("external", "soft", "virtual", "objects", "many"))
    if kind == "external":
        file["rgb/more"] = h5py.ExternalLink("/etc/hostname", "/x")
    elif kind == "soft":
        del file["clip"]
        file["clip"] = h5py.SoftLink("/origin")
    elif kind == "virtual":
        layout = h5py.VirtualLayout((2,), "i4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (2,), dtype="i4")
        file.create_virtual_dataset("virtual", layout)
    elif kind == "objects":
        file.create_dataset("notes", data=["text of any length"], dtype=h5py.string_dtype())
    else:
        for i in range(3000):
            file.create_group(f"many/{i}")


def _attributes(file: Any, rng: random.Random) -> None:
    name = rng.choice((*TEXTS, "complete", "tables_digest"))
    if rng.random() < 0.2:
        del file.attrs[name]
        return
    value: Any = rng.choice([*STRANGE, "kdcache/9", "\xff"])
    if name == "recipes" and rng.random() < 0.7:
        recipes = json.loads(_text(file, name))
        recipe = recipes[rng.choice(list(recipes))]
        key = rng.choice(["layout", "dtype", "stream", "quantised", "backbone", *recipe])
        recipe[key] = rng.choice(["fixed", "ragged", "jpeg", "float64", "O", "", 3, None, [], {}, "x" * 1000])
        value = json.dumps(recipes)
        digests = {s: _digest(r) for s, r in recipes.items()}
        file.attrs["recipe_digests"] = np.bytes_(json.dumps(digests))
    text = value.encode()
    file.attrs[name] = np.array(text, f"S{max(1, len(text))}")


def _digest(recipe: Any) -> str:
    from kdcache.recipe import digest

    return digest(recipe)


def _scales(file: Any, rng: random.Random) -> None:
    name = f"quantised/{CODES}/{rng.choice(('scale', 'offset', 'error'))}"
    values = np.array(file[name][()])
    values.reshape(-1)[0] = rng.choice((np.nan, np.inf, -1, 1e38))
    replace(
        file, name, values if rng.random() < 0.6 else values.astype("<f8") if rng.random() < 0.5 else values[..., 0]
    )


def _frames(file: Any, rng: random.Random) -> None:
    name = f"frames/{rng.choice((FEATURE, RAGGED, PICTURES, CODES))}"
    clips = len(file["clip"])
    replace(
        file, name, rng.choice((np.full((clips, 3), -5, "<i4"), np.zeros((clips, 0), "<i4"), np.zeros(clips, "<f4")))
    )


def _dropped(file: Any, rng: random.Random) -> None:
    names: list[str] = []
    file.visit(names.append)
    del file[rng.choice(names)]


def _values(file: Any, rng: random.Random) -> None:
    """Values that no computation gave, under digests of others."""
    file[FEATURE][0] = rng.choice((np.nan, np.inf, 7))


def _damage(path: Path, rng: random.Random) -> str:
    kind, data = damaged(path.read_bytes(), rng)
    path.write_bytes(data)
    return kind


def _no_file(path: Path, rng: random.Random) -> str:
    kind = rng.choice(("pipe", "folder", "link", "loop", "empty", "device"))
    os.rename(path, path.parent.parent / "outside.h5")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    else:
        outside = {"link": path.parent.parent / "outside.h5", "loop": path, "device": Path("/dev/zero")}
        path.symlink_to(outside[kind])
    return kind


CRAFTS: dict[str, Callable[[Any, random.Random], None] | None] = {
    "row texts": _strange_text, "key texts": _strange_names, "shapes": _shapes, "offsets": _offsets, "bomb": _bomb,
    "inflated": _inflated_stream, "pictures": _huge_picture, "groups": _groups, "links": _links,
    "attributes": _attributes, "scales": _scales, "frames": _frames, "dropped": _dropped, "values": _values,
    "damage": None, "no file": None,
}  # fmt: skip
WHOLE: dict[str, Callable[[Path, random.Random], str]] = {"damage": _damage, "no file": _no_file}

"""Opening an HDF5 file that may come from anywhere: only what the shard format uses is followed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdcache.errors import StoreError
from kdcache.store.layout import DTYPES, FORMATS, damaged

MALFORMED = (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError)  # what h5py raises on broken files
ZSTD = 32015  # registered number of the one filter that shards use
ATTRIBUTES = ("format", "recipes", "recipe_digests", "libraries")

_MAX_DEPTH = 12
_MAX_OBJECTS = 10_000
_ALLOWED = {np.dtype(name).newbyteorder("<") for name in DTYPES}


@contextmanager
def open_shard_file(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a shard for reading and refuse whatever could lead outside it or run code.

    Refused are soft and external links, external storage, virtual data sets, objects and variable-length types,
    compound types, filters other than zstd, named types, and files of another or an unfinished format.

    Yields:
        The ``h5py.File`` and all its data sets by path.

    Raises:
        StoreError: the file is unsafe, of another format, or damaged.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_attributes(path, file)
            datasets: dict[str, Any] = {}
            _collect(path, file, "", 0, datasets)
            yield file, datasets
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise damaged(path, "no such shard") from error
    except PermissionError as error:
        raise StoreError(f"{path}: may not be read ({error.strerror}); check its permissions.") from error
    except MALFORMED as error:
        raise damaged(path, f"cannot be read ({_short(error)})") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def text_attribute(path: Path, file: Any, name: str) -> str:
    """An attribute that is one fixed-length text; variable-length ones can make HDF5 hang when damaged."""
    found = file.attrs.get_id(name) if name in file.attrs else None
    if found is None or found.shape != () or found.dtype.kind != "S":
        raise damaged(path, f"its attribute {name!r} is missing or not fixed-length text")
    return str(bytes(file.attrs[name]).decode())


def _check_attributes(path: Path, file: Any) -> None:
    if "format" not in file.attrs:
        raise StoreError(f"{path}: not a kdcache shard (it has no format attribute); keep other HDF5 files elsewhere.")
    found = text_attribute(path, file, "format")
    if found not in FORMATS:
        known = " and ".join(map(repr, FORMATS))
        raise StoreError(
            f"{path}: its format is {found!r} and this kdcache reads {known}; use the version that wrote it."
        )
    complete = file.attrs.get_id("complete") if "complete" in file.attrs else None
    if complete is None or complete.shape != () or complete.dtype.kind != "i" or file.attrs["complete"] != 1:
        raise damaged(path, "it was not finished")


def _collect(path: Path, group: Any, prefix: str, depth: int, datasets: dict[str, Any]) -> None:
    """Walk the file without following any link but plain ones."""
    for name in group:
        full = f"{prefix}{name}"
        if depth > _MAX_DEPTH or len(datasets) > _MAX_OBJECTS:
            raise damaged(path, "it holds far more objects than a shard")
        if type(group.get(name, getlink=True)) is not h5py.HardLink:
            raise StoreError(f"{path}: {full!r} is a link, which could lead out of the file; do not use this shard.")
        found = group[name]
        if isinstance(found, h5py.Group):
            _collect(path, found, f"{full}/", depth + 1, datasets)
        elif isinstance(found, h5py.Dataset):
            problem = _unsafe(found)
            if problem:
                raise StoreError(f"{path}: {full!r} {problem}; do not use this shard.")
            if not all_there(found):
                raise damaged(path, f"{full!r} lacks some of its bytes")
            datasets[full] = found
        else:
            raise StoreError(f"{path}: {full!r} is neither data nor a group; do not use this shard.")


def _unsafe(dataset: Any) -> str | None:
    """Why a data set of a shard must not be read, or ``None``."""
    dtype = dataset.dtype
    text = dtype.kind == "S" and h5py.check_vlen_dtype(dtype) is None
    if not text and (dtype not in _ALLOWED or h5py.check_dtype(ref=dtype) is not None):
        return f"has dtype {dtype}, which shards do not use"
    if problem := leads_out(dataset):
        return problem
    filters = filters_of(dataset)
    if filters not in ([], [ZSTD]):
        return f"needs HDF5 filter(s) {filters}, which shards do not use"
    return None


def leads_out(dataset: Any) -> str | None:
    """Why reading a data set would open other files, or ``None``."""
    if dataset.external is not None:
        return "keeps its bytes in another file"
    if dataset.is_virtual:
        return "is assembled from other files"
    return None


def filters_of(dataset: Any) -> list[int]:
    """Registered numbers of the filters that a data set's bytes go through."""
    properties = dataset.id.get_create_plist()
    return [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]


def all_there(dataset: Any) -> bool:
    """Whether all bytes that a data set claims are in the file, so that reading it takes no more memory than it has."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() == dataset.nbytes)
    chunks = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return bool(dataset.id.get_num_chunks() == chunks)

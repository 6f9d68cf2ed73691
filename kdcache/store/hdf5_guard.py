"""Opening an HDF5 file that may come from anywhere: only what the shard format uses is followed."""

from __future__ import annotations

import itertools
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdcache.errors import StoreError
from kdcache.store.layout import DTYPES, FORMATS, damaged

MALFORMED = (
    OSError,
    LookupError,
    RuntimeError,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)  # what h5py and numpy raise on broken files
ZSTD = 32015  # registered number of the one filter that shards use
ATTRIBUTES = ("format", "recipes", "recipe_digests", "libraries")

_MAX_DEPTH = 12
_MAX_OBJECTS = 10_000
_MAX_TEXT = 16 * 2**20  # bytes of an attribute
_ALLOWED = {np.dtype(name).newbyteorder("<") for name in DTYPES}


@contextmanager
def open_shard_file(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a shard for reading and refuse whatever could lead outside it or run code.

    Refused are what is no regular file, soft and external links, second names of an object, external storage, virtual
    data sets, objects and variable-length types, compound types, filters other than zstd, named types, and files of
    another or an unfinished format.

    Yields:
        The ``h5py.File`` and all its data sets by path.

    Raises:
        StoreError: the file is unsafe, of another format, or damaged.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # opening a pipe would wait for ever, a link lead anywhere
            raise StoreError(f"{path}: not a regular file; put the shard itself there, or remove it.")
        with h5py.File(path, "r", locking=False) as file:
            _check_attributes(path, file)
            datasets: dict[str, Any] = {}
            _collect(path, file, "", 0, datasets, set())
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
    if found is None or found.shape != () or found.dtype.kind != "S" or found.dtype.itemsize > _MAX_TEXT:
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


def _collect(path: Path, group: Any, prefix: str, depth: int, datasets: dict[str, Any], seen: set[int]) -> None:
    """Walk the file without following any link but plain ones, and to no object (by its address) twice."""
    for name in group:
        full = f"{prefix}{name}"
        if depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
            raise damaged(path, "it holds far more objects than a shard")
        if type(group.get(name, getlink=True)) is not h5py.HardLink:
            raise StoreError(f"{path}: {full!r} is a link, which could lead out of the file; do not use this shard.")
        found = group[name]
        address = h5py.h5o.get_info(found.id).addr
        if address in seen:
            raise StoreError(f"{path}: {full!r} is a second name of another object; do not use this shard.")
        seen.add(address)
        if isinstance(found, h5py.Group):
            _collect(path, found, f"{full}/", depth + 1, datasets, seen)
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


def allocated(path: Path) -> int:
    """Bytes that a file takes on the disk, less than its size where most of it was never written; size if unknown."""
    found = os.stat(path)
    return min(found.st_size, found.st_blocks * 512) if found.st_blocks else found.st_size


def check_packed(path: Path, dataset: Any, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    """Refuse compressed pieces from that of element ``first`` to that of ``last`` which claim another size than theirs.

    The filter allocates what a piece claims before it looks further.

    Raises:
        ValueError: a piece that is not one zstd frame of its own size.
    """
    chunks, size = dataset.chunks, math.prod(dataset.chunks) * dataset.dtype.itemsize
    starts = [range(a // c * c, b + 1, c) for a, b, c in zip(first, last, chunks, strict=True)]
    with open(path, "rb") as file:
        for at in itertools.product(*starts):
            chunk = dataset.id.get_chunk_info_by_coord(at)
            file.seek(chunk.byte_offset)
            if _declared(file.read(18)) != size or chunk.filter_mask:
                raise ValueError("a compressed piece claims another size than its own")


def _declared(header: bytes) -> int | None:
    """The content size in the header of a zstd frame (RFC 8878, 3.1.1.1); ``None`` where there is none."""
    if len(header) < 6 or header[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = header[4]
    single, field = descriptor >> 5 & 1, descriptor >> 6
    width = (single, 2, 4, 8)[field]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(header[start : start + width], "little")
    return value + 256 * (field == 1) if width else None

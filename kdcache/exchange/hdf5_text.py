"""Texts of variable length in an HDF5 file, read without HDF5, which may loop for ever over a damaged heap of them.

On disk such a text is 16 bytes: its length, the address of a global heap collection and its number in that
(https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, III.E). h5py writes lists of ``str`` so.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])
_HEAD = struct.Struct("<4sB3xQ")  # signature, version, size of the collection
_OBJECT = struct.Struct("<HHIQ")  # number, references, reserved, size; the data, padded to 8 bytes, follows


def read_texts(path: Path, dataset: Any) -> list[str]:
    """The texts of a contiguous data set of variable-length strings, [n].

    Raises:
        ValueError: it is stored in another way, or damaged.
    """
    count = len(dataset)
    offset = dataset.id.get_offset()
    stored = dataset.id.get_storage_size() == count * _REFERENCE.itemsize
    if not count or offset is None or not stored or dataset.file.userblock_size:
        raise ValueError("its texts are compressed or in chunks; write them with numpy.array(names, 'S')")
    with open(path, "rb") as file:
        file.seek(offset)
        raw = file.read(count * _REFERENCE.itemsize)
        if len(raw) < count * _REFERENCE.itemsize:
            raise ValueError("it ends before its last text")
        references = np.frombuffer(raw, _REFERENCE)
        left = path.stat().st_size  # all collections together are no longer than the file
        heaps: dict[int, dict[int, bytes]] = {}
        texts = []
        for length, address, number in references.tolist():
            if length and address not in heaps:
                heaps[address], size = _collection(file, address, left)
                left -= size
            text = heaps[address].get(number) if length else b""
            if text is None or len(text) < length:
                raise ValueError("one of its texts is missing")
            texts.append(text[:length].rstrip(b"\0").decode())
    return texts


def _collection(file: IO[bytes], address: int, longest: int) -> tuple[dict[int, bytes], int]:
    """The objects of a global heap collection by number, and its size."""
    file.seek(min(address, file.seek(0, os.SEEK_END)))
    head = file.read(_HEAD.size)
    signature, version, size = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0)
    if (signature, version) != (b"GCOL", 1) or not _HEAD.size <= size <= longest:
        raise ValueError("the heap of its texts is damaged")
    body = file.read(size - _HEAD.size)
    found: dict[int, bytes] = {}
    at = 0
    while at + _OBJECT.size <= len(body):
        number, _, _, length = _OBJECT.unpack_from(body, at)
        start = at + _OBJECT.size
        if number == 0:  # free space
            break
        if start + length > len(body):
            raise ValueError("the heap of its texts is damaged")
        found[number] = body[start : start + length]
        at = start + -(-length // 8) * 8
    return found, size

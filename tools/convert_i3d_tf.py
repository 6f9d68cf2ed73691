"""Convert DeepMind's TensorFlow I3D checkpoints to PyTorch names, without TensorFlow.

    python tools/convert_i3d_tf.py rgb_imagenet/model.ckpt rgb_imagenet.safetensors

The checkpoints are in https://github.com/google-deepmind/kinetics-i3d, ``data/checkpoints/*/model.ckpt.*``
(Apache-2.0). ``model.ckpt.index`` is a LevelDB table of protocol buffers that say where each tensor lies in
``model.ckpt.data-00000-of-00001``; both are read here directly. Every tensor is held against the CRC-32C in the index
(a masked one, as in TFRecord files).

Kernels go from TensorFlow's [t, h, w, in, out] to [out, in, t, h, w]. Sonnet's batch norm there has an offset (beta)
and no scale, so the scale becomes one; its epsilon is the network's (1e-3).
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.backbones.checkpoint import fill
from kdcache.backbones.i3d import I3D
from kdcache.errors import KdcacheError, WeightsError
from kdcache.files import atomic

_MAGIC = 0xDB4775248B80FB57  # last 8 bytes of every LevelDB table
_FLOAT = 1  # DT_FLOAT
_BRANCHES = {
    ("Branch_0", "0a"): "b0",
    ("Branch_1", "0a"): "b1a",
    ("Branch_1", "0b"): "b1b",
    ("Branch_2", "0a"): "b2a",
    ("Branch_2", "0b"): "b2b",
    ("Branch_3", "0b"): "b3b",
}
_PARTS = {
    "conv_3d/w": "conv3d.weight",
    "conv_3d/b": "conv3d.bias",
    "batch_norm/beta": "bn.bias",
    "batch_norm/moving_mean": "bn.running_mean",
    "batch_norm/moving_variance": "bn.running_var",
}


@dataclass(frozen=True)
class Entry:
    """Where one float32 tensor lies in the data file, its shape and the masked CRC-32C of its bytes."""

    shape: tuple[int, ...]
    offset: int
    size: int
    crc: int


def read_index(path: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint's ``.index`` file; ``WeightsError`` if it is not one, or is damaged."""
    table = path.read_bytes()
    if len(table) < 48 or struct.unpack("<Q", table[-8:])[0] != _MAGIC:
        raise WeightsError(f"{path} is not a TensorFlow checkpoint index; name the checkpoint without its suffix.")
    entries: dict[str, Entry] = {}
    try:
        _, position = _handle(table, len(table) - 48)  # the metaindex comes first
        (start, size), _ = _handle(table, position)
        for _, value in _block(table, start, size):
            (start, size), _ = _handle(value, 0)
            for key, content in _block(table, start, size):
                if key:  # the empty key holds the header
                    entries[key.decode()] = _entry(content)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise WeightsError(f"{path} is a damaged checkpoint index ({error}); download it again.") from error
    return entries


def read_tensors(prefix: Path, verify: bool = True) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the checkpoint ``prefix`` (``….ckpt``), each checked against its CRC unless told not to."""
    data_path = prefix.with_name(prefix.name + ".data-00000-of-00001")
    entries = read_index(prefix.with_name(prefix.name + ".index"))
    data = np.memmap(data_path, np.uint8, "r")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, entry in entries.items():
        raw = data[entry.offset : entry.offset + entry.size]
        if len(raw) != entry.size or entry.size != 4 * int(np.prod(entry.shape)):
            raise WeightsError(f"{data_path} is cut short at {name}; download it again.")
        if verify and masked_crc32c(raw) != entry.crc:
            raise WeightsError(f"{data_path} is damaged at {name} (its CRC-32C differs); download it again.")
        tensors[name] = np.frombuffer(raw.tobytes(), "<f4").reshape(entry.shape)
    return tensors


def torch_name(name: str) -> str:
    """The PyTorch name of a TensorFlow variable, as in ``RGB/inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w``.

    In the original ``Mixed_5b`` the second convolution of branch 2 is called ``Conv3d_0a_3x3`` by mistake.
    """
    scope = name.split("/inception_i3d/")[-1].split("/")
    part = _PARTS.get("/".join(scope[-2:]))
    block, inner = scope[0], scope[1:-2]
    if part is None:
        raise WeightsError(f"{name} is not a variable of I3D; name a checkpoint of DeepMind's kinetics-i3d.")
    if block == "Logits":
        return f"logits.{part}"
    if not inner:
        return f"{block}.{part}"
    place = inner[1].split("_")[1]
    if inner[0] == "Branch_2" and inner[1].endswith("3x3"):
        place = "0b"
    return f"{block}.{_BRANCHES[inner[0], place]}.{part}"


def convert(tensors: dict[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """A PyTorch state dict of I3D from TensorFlow's variables."""
    state: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        target = torch_name(name)
        value = value.transpose(4, 3, 0, 1, 2) if target.endswith("conv3d.weight") else value.reshape(-1)
        state[target] = torch.from_numpy(np.array(value, np.float32, order="C"))
        if target.endswith("bn.bias"):
            state[target.replace("bn.bias", "bn.weight")] = torch.ones_like(state[target])
            state[target.replace("bn.bias", "bn.num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    return state


def masked_crc32c(data: NDArray[np.uint8]) -> int:
    """CRC-32C (Castagnoli) of ``data``, masked as LevelDB and TensorFlow store it."""
    crc = int(_crc32c(np.ascontiguousarray(data), _CRC_TABLE))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_CRC_TABLE = _crc_table()


@numba.njit()
def _crc32c(data: NDArray[np.uint8], table: NDArray[np.uint32]) -> int:
    crc = np.uint32(0xFFFFFFFF)
    for byte in data:
        crc = np.uint32(table[(crc ^ byte) & np.uint32(0xFF)] ^ (crc >> np.uint32(8)))
    return int(crc ^ np.uint32(0xFFFFFFFF))


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """A block handle, (offset, size), and the position behind it."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; each key shares a prefix with the one before it."""
    content, (kind, crc) = table[start : start + size], struct.unpack("<BI", table[start + size : start + size + 5])
    if kind != 0:
        raise ValueError("a block is compressed, which checkpoints are not")
    if masked_crc32c(np.frombuffer(table, np.uint8, size + 1, start)) != crc:
        raise ValueError("the checksum of a block differs")
    end = size - 4 * (struct.unpack("<I", content[-4:])[0] + 1)  # restart points and their number
    key, position = b"", 0
    while position < end:
        shared, position = _varint(content, position)
        fresh, position = _varint(content, position)
        length, position = _varint(content, position)
        key = key[:shared] + content[position : position + fresh]
        position += fresh + length
        yield key, content[position - length : position]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one protocol buffer message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
        elif wire == 2:
            length, position = _varint(message, position)
            yield number, message[position : position + length]
            position += length
        elif wire == 5:
            yield number, struct.unpack_from("<I", message, position)[0]
            position += 4
        else:
            raise ValueError(f"field {number} has wire type {wire}, which checkpoints do not use")


def _entry(message: bytes) -> Entry:
    """A ``BundleEntryProto``: dtype 1, shape 2 (dimensions 2, each of size 1), shard 3, offset 4, size 5, crc 6."""
    fields = dict(_fields(message))
    if fields.get(1) != _FLOAT or fields.get(3, 0) != 0:
        raise ValueError("a tensor is not float32 or lies in a second data file")
    shape = fields.get(2, b"")
    assert isinstance(shape, bytes)
    dims = [dict(_fields(dim)).get(1, 0) for number, dim in _fields(shape) if number == 2 and isinstance(dim, bytes)]
    numbers = [int(fields.get(n, 0)) for n in (4, 5, 6)]
    return Entry(tuple(int(d) for d in dims), *numbers)


def main() -> None:
    """Convert one checkpoint; it must fill an I3D exactly."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description="Convert a TensorFlow I3D checkpoint to PyTorch names.")
    parser.add_argument("checkpoint", type=Path, help="model.ckpt: the path without .index or .data-00000-of-00001")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    try:
        state = convert(read_tensors(arguments.checkpoint))
        stem = state["Conv3d_1a_7x7.conv3d.weight"]
        with torch.device("meta"):
            net = I3D(int(state["logits.conv3d.bias"].shape[0]), int(stem.shape[1]))
        fill(net, state, arguments.checkpoint)
        with atomic(arguments.output) as partial:
            save_file(state, partial)
    except (KdcacheError, OSError, KeyError) as error:
        sys.exit(f"Error: {error}")
    print(f"{arguments.output}: {len(state)} tensors, {'flow' if stem.shape[1] == 2 else 'RGB'}")


if __name__ == "__main__":
    main()

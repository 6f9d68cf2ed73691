"""The TensorFlow converter: the original index is read, and every value lands where it belongs."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from golden_weights import WEIGHTS

from kdcache import backbones
from kdcache.backbones.checkpoint import fill
from kdcache.backbones.i3d import I3D
from kdcache.errors import WeightsError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_i3d_tf", ROOT / "tools" / "convert_i3d_tf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def index() -> bytes:
    return (WEIGHTS / "i3d_rgb_imagenet.ckpt.index").read_bytes()


@pytest.fixture
def prefix(tmp_path: Path, index: bytes) -> Path:
    """The original index beside a data file in which every float32 is its own position."""
    (tmp_path / "model.ckpt.index").write_bytes(index)
    np.arange(50818176 // 4, dtype=np.float32).tofile(tmp_path / "model.ckpt.data-00000-of-00001")
    return tmp_path / "model.ckpt"


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def write_index(tool: ModuleType, path: Path, entries: dict, data: np.ndarray) -> None:
    """A checkpoint index as TensorFlow writes it, with the CRCs of ``data``: an independent writer."""

    def block(pairs) -> bytes:
        body, last = b"", b""
        for key, value in pairs:
            shared = next((i for i, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), 0)
            body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            last = key
        return body + struct.pack("<II", 0, 1) + b"\0"

    def place(content: bytes) -> bytes:
        nonlocal table
        handle = varint(len(table)) + varint(len(content) - 1)
        table += content + struct.pack("<I", tool.masked_crc32c(np.frombuffer(content, np.uint8)))
        return handle

    def proto(entry) -> bytes:
        dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in entry.shape))
        crc = tool.masked_crc32c(data[entry.offset : entry.offset + entry.size])
        offset = b"\x20" + varint(entry.offset) + b"\x28" + varint(entry.size)
        return b"\x08\x01\x12" + varint(len(dims)) + dims + offset + b"\x35" + struct.pack("<I", crc)

    table = b""
    rows = [(b"", b"\x08\x01\x1a\x02\x08\x01")] + [(name.encode(), proto(e)) for name, e in sorted(entries.items())]
    content = place(block(rows))
    meta = place(block([]))
    top = place(block([(b"~", content)]))
    path.write_bytes(table + (meta + top).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def test_crc32c_is_castagnolis(tool: ModuleType) -> None:
    # RFC 3720 B.4: CRC-32C of "123456789" is E3069283; the mask is LevelDB's rotation and offset
    expected = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tool.masked_crc32c(np.frombuffer(b"123456789", np.uint8)) == expected


def test_every_value_lands_where_it_belongs(tool: ModuleType, prefix: Path) -> None:
    entries = tool.read_index(prefix.with_name("model.ckpt.index"))
    state = tool.convert(tool.read_tensors(prefix, verify=False))
    fill(I3D(), state, prefix)  # names and shapes are the network's
    assert len(entries) == 230
    for name, entry in entries.items():
        value = state[tool.torch_name(name)]
        start = entry.offset // 4
        if len(entry.shape) == 5:
            t, h, w, i, o = (n - 1 for n in entry.shape)
            for corner in ((0, 0, 0, 0, 0), (t, 0, 0, i, o), (t, h // 2, w, i // 3, 0), (0, h, w, 0, o // 2)):
                expected = start + np.ravel_multi_index(corner, entry.shape)
                assert value[corner[4], corner[3], corner[0], corner[1], corner[2]] == expected
        else:
            assert torch.equal(value, torch.arange(start, start + len(value), dtype=torch.float32))
    second = entries["RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/batch_norm/beta"]
    assert state["Mixed_5b.b2b.bn.bias"][0] == second.offset // 4
    assert torch.equal(state["Mixed_3c.b3b.bn.weight"], torch.ones(64))


def test_damage_is_named(tool: ModuleType, prefix: Path, index: bytes) -> None:
    with pytest.raises(WeightsError, match=r"damaged at RGB/inception_i3d/Conv3d_1a_7x7/batch_norm/beta"):
        tool.read_tensors(prefix)  # the index knows the published values' CRCs
    data = prefix.with_name("model.ckpt.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"cut short at RGB/inception_i3d/Mixed_5c"):
        tool.read_tensors(prefix, verify=False)
    path = prefix.with_name("model.ckpt.index")
    for content, words in (
        (index[:100], "is not a TensorFlow checkpoint index"),
        (index[:50] + bytes([index[50] ^ 1]) + index[51:], "damaged"),
        (index[:-48] + b"\xff" * 10 + index[-38:], "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=words):
            tool.read_index(path)
    with pytest.raises(WeightsError, match="is not a variable of I3D"):
        tool.torch_name("RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w/Adam")


def test_the_command_writes_what_build_loads(tool, prefix, tmp_path, monkeypatch, capsys) -> None:
    data = np.fromfile(prefix.with_name("model.ckpt.data-00000-of-00001"), np.uint8)
    path = prefix.with_name("model.ckpt.index")
    write_index(tool, path, tool.read_index(path), data)
    output = tmp_path / "rgb.safetensors"
    monkeypatch.setattr(sys, "argv", ["convert", str(prefix), str(output)])
    tool.main()
    assert "RGB" in capsys.readouterr().out
    net = backbones.build("i3d-rgb", weights=output)
    assert net.layers["logits"] == (400, 3)
    path.unlink()
    with pytest.raises(SystemExit, match=r"Error: .*model\.ckpt\.index"):
        tool.main()

"""Weights, skeletons, pictures, archives and arrays of strangers: made whole, then spoilt."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from torture import videos
from torture.materials import Tiny
from torture.texts import spoil_bytes, spoil_csv


def weights(folder: Path) -> None:
    """The same network as ``torch.save`` writes it, new and old, and as safetensors."""
    torch.manual_seed(0)
    state = Tiny(3).state_dict()
    torch.save(state, folder / "new.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")


class _Calls:
    """A pickle that runs a command when it is opened."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/kdcache-torture-ran",))


def spoil_weights(path: Path, rng: random.Random) -> str:
    """Bytes, code, shapes that are too large, numbers that are none."""
    kind = rng.choice(("bytes", "bytes", "bytes", "code", "header", "numbers", "names", "things", "bomb"))
    state = {name: value.clone() for name, value in Tiny(3).state_dict().items()}
    if kind == "bytes":
        return spoil_bytes(path, rng)
    if kind == "code":
        path.write_bytes(pickle.dumps(_Calls(), protocol=rng.choice((0, 2, 4))))
    elif kind == "header":
        size = rng.choice((2**62, 10**8, 8, 0))
        text = b'{"conv.weight":{"dtype":"F32","shape":[%d,9],"data_offsets":[0,%d]}}' % (10**10, 36 * 10**10)
        path.write_bytes(struct.pack("<Q", size or len(text)) + text)
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(2**22))
            archive.writestr("archive/data/0", bytes(2**24))
    else:
        name = rng.choice(list(state))
        value = state[name].float()
        strange = {"numbers": value * float("nan"), "names": torch.zeros(10**6), "things": value.to_sparse()}[kind]
        torch.save({**state, name if kind != "names" else "x" * 10_000: strange}, path)
    return kind


def skeletons(folder: Path) -> None:
    """MSR Action3D's text, NTU's text, arrays."""
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(12, 20, 3)).astype(np.float32)
    lines = (" ".join(f"{v:.5f}" for v in (*xyz, 1.0)) for frame in joints for xyz in frame)
    (folder / "a01_s01_e01_skeleton3D.txt").write_text("\n".join(lines) + "\n")
    body = ["1", "72057594037931101 0 1 1 1 1 0 0.0 0.0 2", "25"]
    body += [" ".join(f"{v:.4f}" for v in rng.normal(size=11)) + " 2" for _ in range(25)]
    (folder / "S001C001P001R001A001.skeleton").write_text("\n".join(["6", *(body * 6)]) + "\n")
    np.save(folder / "joints.npy", joints)
    np.savez(folder / "joints.npz", joints=joints)


def spoil_skeleton(path: Path, rng: random.Random) -> str:
    """Numbers of texts, headers of arrays, bytes of both."""
    if path.suffix in (".npy", ".npz") and rng.random() < 0.6:
        return spoil_array(path, rng)
    if path.suffix in (".txt", ".skeleton") and rng.random() < 0.7:
        cells = path.read_text().split(" ")
        cells[rng.randrange(len(cells))] = rng.choice(("nan", "1e400", "x", "", "-1", "999999999", "٣", "1e38", "0\n0"))
        path.write_text(" ".join(cells))
        return "number"
    return spoil_bytes(path, rng)


def spoil_array(path: Path, rng: random.Random) -> str:
    """An array of another type or shape, of objects, or whose header promises more than there is."""
    kind = rng.choice(("objects", "promise", "type", "shape", "archive", "bomb"))
    strange: Any = rng.choice((np.zeros((0, 3)), np.zeros(3, "S5"), np.zeros((1,) * 30), np.full((4, 20, 3), np.nan)))
    buffer = io.BytesIO()
    if kind == "objects":
        np.save(buffer, np.array([{}, []], object), allow_pickle=True)
    elif kind in ("type", "shape"):
        np.save(buffer, strange if kind == "shape" else np.zeros((5, 20, 3), rng.choice(("M8[s]", "c16", "?", "i8"))))
    else:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rng.choice((10**11, -1, 2**63))}, 20, 3), }}"
        text = header.encode().ljust(117) + b"\n"
        buffer.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text)
        if kind == "bomb":
            buffer.write(bytes(2**25))
    data = buffer.getvalue()
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("joints.npy" if kind != "archive" else "../joints.npy", data)
    else:
        path.write_bytes(data)
    return kind


def pictures(folder: Path) -> None:
    """A folder of frames in three formats, and a tar of frames."""
    rng = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".bmp"):
        place = folder / f"frames{suffix}"
        place.mkdir()
        for i in range(4):
            cv2.imwrite(str(place / f"{i:03d}{suffix}"), rng.integers(0, 255, (36, 44, 3), np.uint8))
    modes: dict[str, Any] = {"frames.tar": "w", "frames.tar.gz": "w:gz"}
    for name, mode in modes.items():
        with tarfile.open(folder / name, mode) as archive:
            for path in sorted((folder / "frames.png").iterdir()):
                archive.add(path, path.name)


def spoil_picture(path: Path, rng: random.Random) -> str:
    """Bytes, or a size in the header that nothing backs."""
    kind = rng.choice(("bytes", "bytes", "size", "pipe", "loop", "other", "bomb"))
    data = bytearray(path.read_bytes())
    side = rng.choice((0, 1, 30_000, 65_500, 2**31 - 1))
    if kind == "bytes":
        return spoil_bytes(path, rng)
    if kind in ("pipe", "loop"):
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to(path)
        return kind
    if kind == "bomb":
        lines = zlib.compress(bytes(32_000 * 8), 9) * 10
        body = b"IHDR" + struct.pack(">IIBBBBB", 32_000, 32_000, 1, 0, 0, 0, 0)
        chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, b"IDAT" + lines)]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        return kind
    if kind == "other":
        cv2.imwrite(str(path), np.zeros((rng.randrange(1, 90), 44, 3), np.uint8))
        return kind
    if data[:4] == b"\x89PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif data[:2] == b"BM":
        data[18:26] = struct.pack("<ii", side, rng.choice((side, -side)))
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side % 65536, side % 65536)
    path.write_bytes(data)
    return kind


def spoil_tar(path: Path, rng: random.Random) -> str:
    """Members that lead outside, devices, sizes that are not there; or bytes."""
    kind = rng.choice(("bytes", "bytes", "outside", "link", "device", "size", "bomb"))
    if kind == "bytes":
        return spoil_bytes(path, rng)
    mode: Any = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as archive:
        member = tarfile.TarInfo("../../000.png" if kind == "outside" else "000.png")
        member.type = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}.get(kind, tarfile.REGTYPE)
        member.linkname = "/etc/passwd"
        member.size = 2**26 if kind == "bomb" else 0
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    if kind == "size":
        data = bytearray(path.read_bytes())
        data[124:136] = b"77777777777\0"
        path.write_bytes(data)
    return kind


def vectors(folder: Path) -> None:
    """Features of other tools: one npy a clip, and an LMDB of frames, with their manifest."""
    import lmdb

    rng = np.random.default_rng(0)
    lines = ["clip_id,source,start_s,stop_s,label,split"]
    (folder / "npy").mkdir()
    with lmdb.open(str(folder / "lmdb"), map_size=2**22) as environment, environment.begin(write=True) as writing:
        for clip in range(3):
            lines.append(f"clip{clip},v{clip}.mp4,1.0,3.0,{clip},train")
            np.save(folder / "npy" / f"clip{clip}.npy", rng.normal(size=(4, 8)).astype(np.float32))
            for frame in range(120):
                key = f"v{clip}_frame_{frame:010d}.jpg"
                writing.put(key.encode(), rng.normal(size=8).astype("<f4").tobytes())
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")


def spoil_vectors(path: Path, rng: random.Random) -> str:
    """Arrays, pages of the database, rows of the manifest."""
    if path.suffix == ".csv":
        return spoil_csv(path, rng)
    return spoil_array(path, rng) if path.suffix == ".npy" and rng.random() < 0.7 else spoil_bytes(path, rng)


def spoil_video(path: Path, rng: random.Random) -> str:
    """As in the class ``videos``."""
    kind, data = videos.damaged(path.read_bytes(), rng)
    path.write_bytes(data)
    return kind

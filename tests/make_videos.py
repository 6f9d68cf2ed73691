"""Small video files written on the fly: frames that can be told apart, in any container that PyAV writes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd


def pictures(count: int, width: int = 96, height: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Textured RGB pictures [H, W, 3] that move, with the frame's number as eight blocks of black or white."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(40, 216, (height // 4 + 2, width // 4 + count + 2, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    made = []
    for i in range(count):
        picture = texture[:height, 2 * i : 2 * i + width].copy()
        for bit in range(8):
            picture[:8, 8 * bit : 8 * bit + 8] = 255 if i >> bit & 1 else 0
        made.append(picture)
    return made


def number(picture: np.ndarray) -> int:
    """The number that ``pictures`` drew on a frame."""
    return sum(1 << bit for bit in range(8) if picture[2:6, 8 * bit + 2 : 8 * bit + 6].mean() > 128)


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    rate: int = 25,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: int = 0,
    audio_s: float = 0.0,
    **attributes: object,
) -> Path:
    """Encode ``frames`` at ``rate``, or at the presentation times ``ticks`` in units of ``time_base`` seconds."""
    if codec == "libx264":
        options = {"preset": "veryfast", "g": "12", "bf": "2", "x264-params": "scenecut=0:log-level=none"} | (
            options or {}
        )
    with av.open(str(path), "w", container_options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.codec_context.thread_count = 1  # the same file on every machine, whatever its cores
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        if time_base is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        sound = out.add_stream("aac", rate=16000) if audio_s else None
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * audio_s)), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            for packet in [*sound.encode(silence), *sound.encode(None)]:
                out.mux(packet)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if ticks is not None:
                frame.pts = ticks[i]
                frame.time_base = time_base or Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def pack_b_frames(source: Path, path: Path) -> Path:
    """An MPEG-4 AVI with each B-frame moved into the packet before it, and an empty one in its place, as DivX did."""
    mark = b"\0\0\1\xb6"  # the start of a picture, whose kind is in the next two bits: I, P, B
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [(bytes(p), p.is_keyframe) for p in old.demux(video=0) if p.size]
        kinds = [data[data.index(mark) + 4] >> 6 for data, _ in packets]
        packed = []
        for i, (data, key) in enumerate(packets):
            if kinds[i] == 2:
                packed.append((mark + b"\x51\x10\0", False))
            elif kinds[i + 1 : i + 2] == [2]:
                packed.append((data + packets[i + 1][0], key))
            else:
                packed.append((data, key))
        head = packed[0][0]
        at = head.index(b"\0\0\1\xb3") if b"\0\0\1\xb3" in head else head.index(mark)
        packed[0] = (head[:at] + b"\0\0\1\xb2DivX503b1393p" + head[at:], True)
        for i, (data, key) in enumerate(packed):
            packet = av.Packet(data)
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, stream, key
            new.mux(packet)
    return path


def sound_only(path: Path) -> Path:
    """An mp4 that holds half a second of silence and nothing else."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        for packet in [*stream.encode(silence), *stream.encode(None)]:
            out.mux(packet)
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """Every frame through PyAV's plainest loop, turned as its metadata says: what the sources are compared with."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            found.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    return found


def write_moving_squares(root: Path) -> None:
    """Six clips of two classes, a texture over which a square goes right or down, and their manifest ``clips.csv``."""
    rng, rows = np.random.default_rng(0), []
    texture = rng.integers(40, 216, (18, 24, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    patch = rng.integers(0, 255, (6, 6, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    for i, split in enumerate(("train", "train", "train", "validation", "test", "test")):
        frames = []
        for t in range(20):
            frame = texture.copy()
            y, x = (10 + 2 * t, 20) if i % 2 else (20, 10 + 2 * t)
            frame[y : y + 24, x : x + 24] = patch[: 72 - y, : 96 - x]
            frames.append(frame)
        write(root / f"v{i}.mp4", frames)
        rows.append((f"v{i}", f"v{i}.mp4", np.nan, np.nan, split, str(3 * (i % 2))))
    table = pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "split", "label"])
    table.to_csv(root / "clips.csv", index=False)

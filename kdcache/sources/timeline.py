"""When each frame of a video is shown: read from the container's packets, so that nearly nothing is decoded.

Both backends find frames by their index on this timeline; which of them decodes changes speed and nothing else.

Time zero is where players put it: the earliest time stamp of the container's video and audio. A video track that starts
0.3 s after the sound has its first frame at 0.3 s; a file whose clock starts at 0.5 s (MPEG program streams do) has it
at 0 s. Sound that starts before zero is encoder padding, is not played, and does not move it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from numpy.typing import NDArray

from kdcache.errors import SourceError
from kdcache.picture_size import MOST_PIXELS
from kdcache.sources.avi_index import contradiction
from kdcache.sources.truncation import find_truncation

# Containers that hold video in one local file; playlists, which can name other files and addresses, are not among them.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,h264,hevc,m4v,ivf,obu,rm,dv,mxf,nut,"
    "gif,yuv4mpegpipe,swf,wtv"
)
OPEN = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
BOUNDS = {"max_pixels": str(MOST_PIXELS)}  # of decoders, should a stream change its size midway
_DECLARE_DURATION = ("mov", "matroska", "asf")  # their headers say how long the file is when it is whole
_SYNC_POINTS = ("mov", "matroska")  # their key frames are marked by the file, not guessed from the bitstream


@dataclass(frozen=True)
class Key:
    """A frame from which decoding can start: its index in display order, its time stamp and the one to seek to."""

    index: int
    pts: int
    seek: int


@dataclass(frozen=True)
class VideoTimeline:
    """The frames of one video stream in display order, and what a decoder needs to know about them.

    Attributes:
        times: float64 [N], seconds.
        pts: the time stamp that each decoded frame must carry, or ``None`` where the container has none to check by
            (AVI) and frames are counted instead.
        keys: where decoding can start; empty where that cannot be checked.
        width, height: of the stored frames, before rotation.
        rotation: degrees clockwise.
        quirks: in words, what is unusual about the file; readers that make assumptions refuse such files.
    """

    path: str
    container: str
    codec: str
    stream: int
    times: NDArray[np.float64]
    pts: NDArray[np.int64] | None
    keys: tuple[Key, ...]
    fps: float
    duration_s: float
    width: int
    height: int
    rotation: int
    pix_fmt: str
    quirks: tuple[str, ...]


@dataclass
class _Packets:
    """What one pass over the packets found."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)
    length: int = 0  # duration of the last packet in ticks
    stored: int = 0  # packets of the stream, whether shown or not
    skipped: bool = False  # some packets are decoded and not shown
    changed: bool = False  # new codec parameters midway
    first: av.VideoFrame | None = None
    end: Fraction = Fraction(0)  # where the last packet of any stream ends, in seconds


def damaged(path: str, what: str) -> SourceError:
    """The error for a file whose content is damaged or incomplete."""
    return SourceError(f"{path}: the file is damaged: {what}; copy it again from its origin or leave it out.")


def open_container(path: str) -> Any:
    """Open a local video file with PyAV; every failure becomes a ``SourceError`` naming the file."""
    try:
        if os.path.getsize(path) == 0:
            raise SourceError(f"{path}: the file is empty; copy it again from its origin.")
        missing = find_truncation(path)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); check that it exists and may be read."
        ) from error
    if missing:
        raise damaged(path, missing)
    try:
        return av.open(path, container_options=OPEN, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(
            f"{path}: not a video that can be opened ({reason}); check that it is one and that it was copied whole."
        ) from error


def read_timeline(path: str) -> VideoTimeline:
    """Read the timeline of the video at ``path`` (absolute).

    Every packet of the file passes by once; only those up to the first shown frame are decoded.

    Raises:
        SourceError: missing, unreadable, empty, cut short, damaged, or without video.
    """
    with open_container(path) as container:
        stream, only = _video_stream(container, path)
        try:
            packets = _demux(container, stream)
        except av.FFmpegError as error:
            raise damaged(path, f"{error.strerror} on reading its packets") from error
        if packets.first is None:
            raise damaged(path, "none of its frames can be decoded")
        name = container.format.name.split(",")[0]
        if name == "avi" and (wrong := contradiction(path, stream.index, stream.frames, packets.stored)) is not None:
            raise damaged(path, wrong)
        _check_duration(container, name, packets, path)
        return _timeline(path, name, container, stream, packets, only)


def _video_stream(container: Any, path: str) -> tuple[Any, bool]:
    """The video stream that players show, and whether there is no other; cover pictures are not video."""
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise SourceError(f"{path}: holds no video, only {' and '.join(kinds)}; take it out of the manifest.")
    best = container.streams.best("video")
    chosen = best if best in videos else videos[0]
    if chosen.codec_context is None:
        raise SourceError(f"{path}: its codec is not one that FFmpeg decodes; re-encode it, for example as H.264.")
    width, height = chosen.codec_context.width, chosen.codec_context.height
    if width * height > MOST_PIXELS:
        raise SourceError(
            f"{path}: its header says {width}×{height} pixels, and frames have up to {MOST_PIXELS:,}; check the file."
        )
    return chosen, len(container.streams.video) == 1


def _demux(container: Any, stream: Any) -> _Packets:
    found = _Packets()
    codec = stream.codec_context
    codec.thread_type, codec.thread_count = "FRAME", 1
    codec.options = BOUNDS
    ends: dict[int, int] = {}  # stream → where its last packet ends, in its ticks
    for packet in container.demux():
        stamp, index = packet.dts if packet.pts is None else packet.pts, packet.stream_index
        if stamp is not None:
            ends[index] = max(ends.get(index, 0), stamp + (packet.duration or 0))
        if index != stream.index:
            continue
        if found.first is None:
            found.first = next(iter(packet.decode()), None)
        if packet.size == 0:  # AVI's way to say "show the last frame again", and PyAV's end of stream
            continue
        found.stored += 1
        if packet.is_corrupt:
            raise av.InvalidDataError(0, f"corrupt packet after {len(found.pts)} frames")
        if packet.is_discard or (codec.codec.canonical_name == "vp8" and not bytes(packet)[0] & 0x10):
            found.skipped = True  # cut away by an edit list; or a reference that is never shown (RFC 6386 §9.1)
            continue
        # has_sidedata would take half of the time of the pass
        found.changed |= any(data.data_type == "new_extradata" for data in packet.iter_sidedata())
        found.pts.append(packet.pts)
        found.dts.append(packet.dts)
        found.key.append(packet.is_keyframe)
        found.length = packet.duration or found.length
    found.end = max(end * container.streams[index].time_base for index, end in ends.items()) if ends else found.end
    return found


def _check_duration(container: Any, name: str, packets: _Packets, path: str) -> None:
    """Compare where the packets end with the duration in the header, for containers where that is reliable."""
    if name not in _DECLARE_DURATION or not container.duration:
        return
    declared = (container.duration + (container.start_time or 0)) / av.time_base
    if declared - packets.end > max(0.5, 0.02 * declared):
        raise damaged(path, f"its header says {declared:.2f} s and its frames end at {float(packets.end):.2f} s")


def _increasing(stamps: list[int | None]) -> NDArray[np.int64] | None:
    """Sorted stamps, if all are there and none repeats."""
    if None in stamps:
        return None
    ordered = np.sort(np.array(stamps, np.int64))
    return ordered if (np.diff(ordered) > 0).all() else None


def _timeline(path: str, name: str, container: Any, stream: Any, packets: _Packets, only: bool) -> VideoTimeline:
    assert packets.first is not None
    tick = Fraction(stream.time_base)
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    # AVI stores no time stamps: its packets' places in the file are the frames' places in time, once put in order.
    pts = None if name == "avi" else _increasing(packets.pts)
    shown = pts if pts is not None else _increasing(packets.dts)
    if shown is None:
        shown, tick = np.arange(len(packets.pts)), 1 / rate
    if pts is not None:
        pts = shown = _without_orphans(path, pts, packets)
    start = int(shown[0]) * tick
    sounds = [max(Fraction(0), s.start_time * s.time_base) for s in container.streams.audio if s.start_time is not None]
    zero = min([start, *sounds])
    times = (shown - shown[0]) * tick.numerator / tick.denominator + float(start - zero)
    fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float(rate)
    codec = stream.codec_context
    rotation = _rotation(path, packets.first)
    return VideoTimeline(
        path=path,
        container=name,
        codec=codec.codec.canonical_name,
        stream=stream.index,
        times=times,
        pts=pts,
        keys=_keys(name, pts, packets) if pts is not None else (),
        fps=float(fps),
        duration_s=float(times[-1] + (float(packets.length * stream.time_base) or 1 / fps)),
        width=packets.first.width,
        height=packets.first.height,
        rotation=rotation,
        pix_fmt=packets.first.format.name,
        quirks=tuple(_quirks(name, codec, packets, pts, rotation, only)),
    )


def _without_orphans(path: str, pts: NDArray[np.int64], packets: _Packets) -> NDArray[np.int64]:
    """Drop pictures at the start that refer to ones which a cut removed: no decoder can show them."""
    first = packets.first.pts if packets.first is not None else None
    lost = int(np.searchsorted(pts, first)) if first is not None else 0
    if lost == 0:
        return pts
    keys = [p for p, key in zip(packets.pts, packets.key, strict=True) if key and p is not None]
    if first not in keys[:1] or pts[lost] != first:
        raise damaged(path, f"its first {lost} frame(s) cannot be decoded")
    return pts[lost:]


def _keys(name: str, pts: NDArray[np.int64], packets: _Packets) -> tuple[Key, ...]:
    if name not in _SYNC_POINTS or packets.skipped or packets.changed:
        return ()
    place = {int(p): i for i, p in enumerate(pts)}
    # mov finds places by decoding time, Matroska by presentation time
    seek = packets.dts if name == "mov" else packets.pts
    found = [
        Key(place[p], p, s)
        for p, s, key in zip(packets.pts, seek, packets.key, strict=True)
        if key and p is not None and s is not None and p in place
    ]
    return tuple(sorted(found, key=lambda k: k.index))


def _rotation(path: str, frame: av.VideoFrame) -> int:
    """Degrees clockwise; a mirrored or skewed display matrix is refused."""
    turned = -frame.rotation % 360
    attached: Any = frame.side_data
    matrix = attached.get(SideData.DISPLAYMATRIX)
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(np.int64)
        if a * d - b * c <= 0 or turned % 90:
            raise SourceError(
                f"{path}: its display matrix mirrors or skews the picture, which is not supported; re-encode it."
            )
    return int(turned)


def _quirks(
    name: str, codec: Any, packets: _Packets, pts: NDArray[np.int64] | None, rotation: int, only: bool
) -> Iterator[str]:
    frame = packets.first
    assert frame is not None
    if not only:
        yield "several video streams or a cover picture"
    if rotation:
        yield f"rotation by {rotation} degrees"
    if packets.skipped:
        yield "frames that are decoded and not shown"
    if packets.changed:
        yield "codec parameters that change midway"
    if name != "avi" and (pts is None or len(pts) != len(packets.pts) or pts[0] != packets.pts[0]):
        yield "time stamps that are missing, repeated or not led by a key frame"
    if not packets.key[0]:
        yield "a first frame that is no key frame"
    if frame.format.name != "yuv420p" or frame.color_range == 2 or frame.colorspace not in (1, 2, 5, 6):
        yield f"colours stored as {frame.format.name}, range {frame.color_range}, matrix {frame.colorspace}"
    if frame.height % 2 or frame.width % 2:
        yield "an odd width or height"
    if frame.interlaced_frame or (codec.codec.canonical_name == "h264" and codec.field_order != 1):
        yield "interlaced pictures"

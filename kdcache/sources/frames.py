"""Frames stored as images, in a folder or a tar, read one by one where they lie."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from kdcache.errors import SourceError
from kdcache.picture_size import MOST_PIXELS, picture_size
from kdcache.sources.base import Source, SourceInfo, ascending, check_rate

if TYPE_CHECKING:
    from kdcache.sources.base import Frame, Indices

IMAGES = (".jpg", ".jpeg", ".png")
MOST_BYTES = 2**28  # of one picture's file
MOST_HEADER = 2**20  # bytes of a tar's extended header
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Member:
    """One image: its name, and where its bytes are (``offset`` is 0 for a file of its own)."""

    name: str
    offset: int
    size: int


class FrameSource(Source):
    """Images of one size as a video of a given rate: frame ``i`` is shown at ``i / fps`` seconds."""

    def __init__(self, path: str, members: Sequence[Member], fps: float | None, backend: str) -> None:
        """Check names, rate and the first image of ``members`` of the folder or tar at ``path``."""
        members = in_order(path, members)
        if fps is None:
            raise SourceError(
                f"{path}: images carry no clock; give their rate in the manifest's fps column, to predict and idt as "
                "--fps, or as open_source(fps=…)."
            )
        check_rate(path, fps)
        self._members = members
        self._folder = backend == "frames"
        self._path = path
        self.times = np.arange(len(members)) / fps
        height, width = self._decode(members[0]).shape[:2]
        self.info = SourceInfo(
            path=path,
            width=width,
            height=height,
            fps=float(fps),
            duration_s=len(members) / fps,
            codec=os.path.splitext(members[0].name)[1].lower().lstrip("."),
            container="folder" if self._folder else "tar",
            rotation=0,
            backend=backend,
            backend_version=f"opencv {cv2.__version__}",
        )

    def read(self, indices: Indices) -> Iterator[Frame]:
        """See ``Source.read``."""
        return self._read(ascending(indices, len(self.times), self._path))

    def _read(self, indices: list[int]) -> Iterator[Frame]:
        for index in indices:
            member = self._members[index]
            frame = self._decode(member)
            if frame.shape != (self.info.height, self.info.width, 3):
                raise SourceError(
                    f"{self._path}/{member.name}: the image is {frame.shape[1]}×{frame.shape[0]}, the first "
                    f"{self.info.width}×{self.info.height}; all frames of a source must have one size."
                )
            yield frame

    def _decode(self, member: Member) -> Frame:
        name = f"{self._path}/{member.name}"
        if member.size > MOST_BYTES:
            raise SourceError(f"{name}: {member.size:,} bytes are no picture of a video; take it out.")
        try:
            with open(name if self._folder else self._path, "rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise SourceError(f"{name}: cannot be read ({error.strerror}); check it.") from error
        size = picture_size(data)
        if size is not None and size[0] * size[1] > MOST_PIXELS:
            raise SourceError(
                f"{name}: its header says {size[1]}×{size[0]} pixels, and frames have up to {MOST_PIXELS:,}; make it "
                "smaller."
            )
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if ends_well(data) else None
        except cv2.error as error:
            raise SourceError(
                f"{name}: cannot be decoded ({error.err or error}); copy it again from its origin."
            ) from error
        if picture is None:
            raise SourceError(f"{name}: the image is empty, cut short or damaged; copy it again from its origin.")
        return np.ascontiguousarray(picture[:, :, ::-1], np.uint8)

    def close(self) -> None:
        """See ``Source.close``; nothing stays open between frames."""


def ends_well(data: bytes) -> bool:
    """Whether a JPEG has its end marker after its last scan, a PNG its end chunk; OpenCV fills in what is missing."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0
    return data[:4] == b"\x89PNG" and b"IEND\xaeB`\x82" in data[-4096:]


def in_order(path: str, members: Sequence[Member]) -> list[Member]:
    """Members in natural order (``frame_2`` before ``frame_10``), held to be one series of numbers without holes.

    Raises:
        SourceError: no images, several series mixed, or numbers missing.
    """
    images = [m for m in members if m.name.lower().endswith(IMAGES) and not hidden(m.name)]
    if not images:
        raise SourceError(f"{path}: holds no images (jpg, jpeg, png); give a folder or tar of frames, or a video.")
    images.sort(key=lambda m: [(int(t), t) if t.isdigit() else (-1, t) for t in _NUMBER.split(m.name)])
    named = [re.fullmatch(r"(.*?)(\d+)\.[A-Za-z]+", m.name) for m in images]
    if all(named):
        series = sorted({n[1] for n in named if n})
        if len(series) > 1:
            raise SourceError(
                f"{path}: holds several series of images ({series[0]}…, {series[1]}…); give each a place of its own."
            )
        _without_holes(path, [int(n[2]) for n in named if n])
    return images


def _without_holes(path: str, numbers: list[int]) -> None:
    steps = np.diff(numbers)
    if len(steps) and (steps != steps.min()).any():
        at = int(np.argmax(steps != steps.min()))
        raise SourceError(
            f"{path}: frames are missing or doubled between numbers {numbers[at]} and {numbers[at + 1]}, which would "
            "shift all later ones in time; complete the folder or renumber it."
        )


def hidden(name: str) -> bool:
    """Whether any part of a path is a system's hidden file or folder (``.DS_Store``, ``.AppleDouble``, ``._x.jpg``)."""
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def open_folder(path: str, fps: float | None) -> FrameSource:
    """The images directly in a folder, as a source."""
    try:
        with os.scandir(path) as entries:
            members = [
                Member(e.name, 0, e.stat().st_size)
                for e in entries
                if e.name.lower().endswith(IMAGES) and not hidden(e.name) and e.is_file()
            ]
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check that it may be read.") from error
    return FrameSource(path, members, fps, "frames")


def open_tar(path: str, fps: float | None) -> FrameSource:
    """The images in an uncompressed tar, as a source; read by offset, never unpacked to disk.

    Raises:
        SourceError: compressed, damaged, or with members whose names leave it or which are links.
    """
    members: list[Member] = []
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            for member in tar:
                _safe(path, member)
                if member.isfile():
                    members.append(Member(member.name, member.offset_data, member.size))
                if member.offset_data + member.size > size:
                    raise SourceError(f"{path}: the tar ends inside {member.name}; copy it again from its origin.")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:  # numbers in a damaged header
        raise SourceError(
            f"{path}: not a whole, uncompressed tar ({error}); decompress it or copy it again."
        ) from error
    return FrameSource(path, members, fps, "tar")


class _Headers(io.BufferedReader):
    """A tar of which only headers are read; one may say that gigabytes of names follow."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file.raw)

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, of which a header has few."""
        if size is None or not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _safe(path: str, member: tarfile.TarInfo) -> None:
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        raise SourceError(f"{path}: member {member.name!r} leaves the tar; pack it again with relative names.")
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise SourceError(f"{path}: member {member.name!r} is a link or no plain file; pack the files themselves.")

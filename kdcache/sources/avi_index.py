"""AVI files whose index and chunks contradict each other: decoders skip what they cannot find, and go on after it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

MOST_INDEX = 2**26  # bytes of an index that is looked into: four million frames
_FLAGS, _HAS_INDEX = 44, 0x10  # byte of the main header's flags; the one that says that there is an index
_HEADER = 8  # bytes of a chunk's: its name and the length of what follows


def contradiction(path: str, stream: int, declared: int, found: int) -> str | None:
    """What an AVI file says of its frames and does not hold, in words; ``None`` where all is there.

    Each entry of the index (``idx1``) must point at a chunk of its name and length, and as many frames must have been
    found as it lists. Nothing is said of an index whose first entry follows neither way of counting bytes that is in
    use (from the list of frames, or from the start of the file). Where the header says that there is an index and none
    is found, frames must be as many as the header says; of other files its number is often wrong.

    Args:
        path: the file.
        stream: index of the video stream.
        declared: frames by the stream's header; 0 where it does not say.
        found: frames that a reader found; without empty chunks, which show the frame before again.
    """
    with open(path, "rb") as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        chunks = {name: (at, length) for name, at, length in _chunks(fd, size)}
        if b"idx1" not in chunks:
            flags = int.from_bytes(os.pread(fd, 4, _FLAGS), "little")
            if flags & _HAS_INDEX and declared and found != declared:
                return f"its index is not to be found, and {found} of {declared} frames are"
            return None
        if b"movi" not in chunks:
            return None
        at, length = chunks[b"idx1"]
        index = np.frombuffer(os.pread(fd, min(length, MOST_INDEX) // 16 * 16, at), "<u4").reshape(-1, 4)
        entries = [entry for entry in index.tolist() if entry[0] != int.from_bytes(b"rec ", "little")]
        if not entries:
            return None
        for base in (chunks[b"movi"][0], 0):
            if _is_there(fd, base, entries[0]):
                break
        else:
            return None
        for number, entry in enumerate(entries):
            if not _is_there(fd, base, entry):
                return f"chunk {number} of {len(entries)} is not where its index says, at byte {base + entry[2]:,}"
    names = {int.from_bytes(b"%02d" % stream + kind, "little") for kind in (b"dc", b"db")}
    listed = sum(entry[0] in names and entry[3] > 0 for entry in entries)
    return f"its index lists {listed} frames, and {found} can be found" if listed and listed != found else None


def _is_there(fd: int, base: int, entry: list[int]) -> bool:
    name, _, offset, length = entry
    return os.pread(fd, _HEADER, base + offset) == name.to_bytes(4, "little") + length.to_bytes(4, "little")


def _chunks(fd: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of the chunks of the first RIFF; of a list the name of its kind, and where that stands."""
    at = 12
    while at + _HEADER <= size:
        head = os.pread(fd, 12, at)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] == b"RIFF":
            return
        yield (head[8:12] if head[:4] == b"LIST" else head[:4]), at + _HEADER, length
        at += _HEADER + length + length % 2

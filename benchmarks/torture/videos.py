"""Real videos with damaged bytes: refused by name, or decoded to the frames of the undamaged file."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from functools import cache
from pathlib import Path

from common import SHARED
from kdcache.errors import KdcacheError
from kdcache.sources import open_source
from torture import isolation
from torture.cases import FAILED, SILENT, SKIPPED, SURVIVED, Outcome, Table, generator

COUNT = 1_000
ABOUT = "Videos are cut, spliced and changed: each must be refused, or decode to the frames that it had."

FILES = (
    "weizmann/bend/*_bend.avi",
    "weizmann/walk/*_walk.avi",
    "fight/*/*.mp4",
    "fight/*/*.avi",
    "videos/*.mp4",
    "videos/*.mkv",
    "videos/v_*.avi",
    "videos/person01_*.avi",
    "videos/awkward/*",
)
LARGEST = 4_000_000  # bytes of a file: larger ones take too long to decode
LONGEST = 450  # frames
KINDS = {
    "truncate": 15,
    "bit": 15,
    "bits": 15,
    "header": 10,
    "splice": 5,
    "insert": 10,
    "delete": 10,
    "swap": 5,
    "zeros": 15,
}
"""Kind of damage → how often, of a hundred."""
LEFT_OUT = {"corrupted.mp4"}  # which is damaged already


def run(count: int, seed: int, seconds: float, folder: Path) -> Table:
    """See ``torture.cases``."""
    files = videos()
    if not files:
        return Table("videos", seed, count, [Outcome(n, "no videos", SKIPPED) for n in range(count)])
    folder.mkdir(parents=True, exist_ok=True)

    def case(number: int) -> Outcome:
        rng = generator("videos", seed, number)
        return tried(number, rng.choice(rng.choice(files)), rng, folder)

    limits = isolation.Limits(seconds=30.0, cases=20)
    table = isolation.run_cases("videos", count, seed, seconds, folder, case, limits)
    table.notes["silent by codec"] = by_codec(table)
    return table


def by_codec(table: Table) -> dict[str, str]:
    """Codec → silent cases of all."""
    tried, silent = Counter[str](), Counter[str]()
    for outcome in table.outcomes:
        tried[outcome.kind] += outcome.verdict != SKIPPED
        silent[outcome.kind] += outcome.verdict == SILENT
    return {codec: f"{silent[codec]} of {tried[codec]}" for codec in sorted(tried)}


@cache
def videos() -> tuple[tuple[Path, ...], ...]:
    """The files that are damaged, in groups that are drawn equally often: data sets, and odd files one by one."""
    groups = []
    for pattern in FILES:
        found = [path for path in sorted(SHARED.glob(pattern)) if path.name not in LEFT_OUT]
        groups.append(tuple(path for path in found if path.is_file() and path.stat().st_size <= LARGEST))
    *sets, odd = groups
    return tuple(group for group in [*sets, *((path,) for path in odd)] if group)


def tried(number: int, path: Path, rng: random.Random, folder: Path) -> Outcome:
    """One file, damaged once."""
    try:
        codec, expected = decoded(path)
    except KdcacheError as error:
        return Outcome(number, path.name, SKIPPED, str(error))
    if len(expected) > LONGEST:
        return Outcome(number, codec, SKIPPED, "too long")
    kind, data = damaged(path.read_bytes(), rng)
    copy = folder / f"{os.getpid()}{path.suffix}"
    copy.write_bytes(data)
    what = f"{kind} in {path.name}"
    try:
        found = frames(copy)
    except KdcacheError:
        return Outcome(number, codec, SURVIVED, "named")
    except Exception as error:
        return Outcome(number, codec, FAILED, f"{what}: {type(error).__name__}: {error}")
    finally:
        copy.unlink(missing_ok=True)
    if found == expected:
        return Outcome(number, codec, SURVIVED, "equal")
    return Outcome(number, codec, SILENT, f"{what}: {difference(expected, found)}")


Frames = list[tuple[float, str]]  # time in seconds and digest of each


@cache
def decoded(path: Path) -> tuple[str, Frames]:
    """Codec in container, and frames, of an undamaged file."""
    with open_source(path) as source:
        kind = f"{source.info.codec} in {source.info.container}"
        return kind, frames(path) if len(source.times) <= LONGEST else [(0.0, "")] * len(source.times)


def frames(path: Path) -> Frames:
    """All frames of a file."""
    with open_source(path) as source:
        pictures = source.read(range(len(source.times)))
        digests = [hashlib.sha1(picture.tobytes()).hexdigest() for picture in pictures]
        return list(zip((round(t, 4) for t in source.times.tolist()), digests, strict=True))


def difference(expected: Frames, found: Frames) -> str:
    """In words."""
    if len(expected) != len(found):
        return f"{len(found)} frames of {len(expected)}"
    other = sum(a[1] != b[1] for a, b in zip(expected, found, strict=True))
    return f"{other} of {len(found)} frames differ" if other else "frames at other times"


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A kind of damage, and the file with it."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    size = len(data)
    at, length = rng.randrange(size), min(size // 4, rng.choice((1, 16, 512, 4096, 65536)))
    piece = data[at : at + length]
    if kind == "truncate":
        return kind, data[:at]
    if kind in ("bit", "bits", "header"):
        changed = bytearray(data)
        for _ in range(1 if kind == "bit" else rng.randrange(2, 20)):
            place = rng.randrange(min(size, 2000)) if kind == "header" else rng.randrange(size)
            changed[place] ^= 1 << rng.randrange(8)
        return kind, bytes(changed)
    if kind == "zeros":
        return kind, data[:at] + bytes(len(piece)) + data[at + len(piece) :]
    if kind == "delete":
        return kind, data[:at] + data[at + length :]
    if kind == "insert":
        return kind, data[:at] + rng.randbytes(length) + data[at:]
    other = rng.randrange(size)
    if kind == "splice":  # what lies elsewhere in the file
        return kind, data[:at] + data[other : other + length] + data[at + length :]
    first, second = sorted((at, other))
    length = min(length, second - first, size - second)
    swapped = data[second : second + length] + data[first + length : second] + data[first : first + length]
    return kind, data[:first] + swapped + data[second + length :]

"""Export a stream of vectors from a cache to an LMDB as RULSTM reads it: one float32 vector a frame.

    python tools/export_lmdb.py out --stream rulstm/rgb lmdb/rgb

Beside the LMDB lies ``manifest.csv``: the clips, with a column ``frames`` that lists the source frames of each.
``import_lmdb.py --key '{clip_id}_frame_{frame:010d}.jpg' --at frames`` reads the same numbers back.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import click
import lmdb
import numpy as np
from numpy.typing import NDArray

from exchange import Export, Row
from frame_keys import FrameKeys
from kdcache.cli.common import sentences
from kdcache.errors import OptionError, StoreError

_PAGE = 4096
_BATCH = 32 * 2**20  # bytes of one transaction


def vectors(array: NDArray[Any], frames: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """One view of a clip, [d] or [N, d], as N vectors, float32 [N, d], and the frame that each stands for.

    Where a vector is computed from several frames, that is the last of them: frames are taken to be N groups of equal
    length, in order.

    Raises:
        OptionError: its frames are not known, or do not divide into N.
    """
    array = array.reshape(-1, array.shape[-1])
    count = len(array)
    if not len(frames) or len(frames) % count:
        raise OptionError(f"it has {count} vectors but {len(frames)} frame numbers; use export_npy.py.")
    group = len(frames) // count
    return array.astype("<f4"), frames[group - 1 :: group]


class Writer:
    """An LMDB to which vectors are added in whole transactions; a killed run leaves those committed until then."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.folder = folder
        size = nbytes + 256 * 2**20 + sum(p.stat().st_size for p in folder.glob("data.mdb"))
        self._environment = lmdb.open(str(folder), map_size=-(-size // _PAGE) * _PAGE)
        self._waiting: dict[bytes, bytes] = {}
        self._held = 0
        self.counts: Counter[str] = Counter()

    def put(self, key: bytes, value: bytes) -> None:
        """Add a vector; the same one again is nothing new.

        Raises:
            StoreError: the key holds another vector.
        """
        if self._waiting.setdefault(key, value) != value:
            raise self._clash(key)
        self._held += len(key) + len(value)
        if self._held >= _BATCH:
            self.commit()

    def commit(self) -> None:
        """Write what waits, to the disk."""
        with self._environment.begin(write=True) as transaction:
            for key, value in sorted(self._waiting.items()):
                if transaction.put(key, value, overwrite=False):
                    self.counts["written"] += 1
                elif transaction.get(key) == value:
                    self.counts["there"] += 1
                else:
                    raise self._clash(key)
        self._waiting, self._held = {}, 0

    def close(self) -> None:
        """Close the LMDB; what waits is dropped."""
        self._environment.close()

    def _clash(self, key: bytes) -> StoreError:
        return StoreError(
            f"{self.folder}: two different vectors for {key.decode()!r}; give clips keys of their own with {{clip_id}} "
            "in --key, or a new folder, and where one clip uses a frame twice use export_npy.py."
        )


@click.command()
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path))
@click.option("--stream", required=True, help="A stream of vectors, [V, N, d] or [V, d].")
@click.option("--view", default=0, show_default=True, type=click.IntRange(0))
@click.option("--first", default=1, show_default=True, type=click.IntRange(0), help="Number of a source's first frame.")
@click.option(
    "--key", default="{clip_id}_frame_{frame:010d}.jpg", show_default=True, help="Manifest columns in braces."
)
def main(shards: Path, output: Path, stream: str, view: int, first: int, key: str) -> None:
    """Export a stream of vectors to an LMDB in FOLDER, float32, with a manifest.csv beside it.

    The same command again goes on where it was stopped.
    """
    with sentences():
        export = Export.open(shards, stream, output)
        export.check_view(view)
        keys = FrameKeys(key, list(export.rows.columns), first)
        _, *inner, size = export.cache.shape(stream)
        if len(inner) > 1:
            raise OptionError(f"Stream {stream!r} holds maps, not vectors [V, N, d] or [V, d]; use export_npy.py.")
        export.claim(to="lmdb", view=view, key=key, first=first)
        page = -(-4 * size // _PAGE) * _PAGE + _PAGE  # of a vector and its key, at most
        writer = Writer(output, page * len(export.rows) * math.prod(inner))
        try:
            for row, array in export.arrays(view):
                for name, value in _entries(row, array, export, keys):
                    writer.put(name, value)
            writer.commit()
        finally:
            writer.close()
        export.finish(writer.counts, "vectors")


def _entries(row: Row, array: NDArray[Any], export: Export, keys: FrameKeys) -> list[tuple[bytes, bytes]]:
    try:
        values, frames = vectors(array, export.frames[row["clip_id"]])
    except OptionError as error:
        raise OptionError(f"Stream {export.stream!r}, clip {row['clip_id']!r}: {error}") from error
    return [(keys.of(row, f), value.tobytes()) for f, value in zip(frames.tolist(), values, strict=True)]


if __name__ == "__main__":
    main()

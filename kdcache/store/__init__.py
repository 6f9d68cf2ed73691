"""The store: shards of cached arrays, their index, reading and verifying.

A cache is a folder of shards ``shard-%05d.h5`` and ``manifest.csv``, its index (``kdcache.store.index``), which can be
rebuilt from the shards alone; ``manifest.csv.sha256`` has its digest (``kdcache.store.index_digest``). A shard is one
HDF5 file, written once and never changed. Format ``kdcache/1``, with quantised streams ``kdcache/2``:

Attributes of the file, all but the last fixed-length UTF-8 (``bytes`` in h5py):

- ``format``: ``kdcache/1`` or ``kdcache/2``
- ``recipes``: JSON, stream → recipe, which has at least ``stream``, ``layout`` and ``dtype``
- ``recipe_digests``: JSON, stream → first 32 hex digits of the SHA-256 of the recipe's canonical JSON (sorted keys, no
  spaces)
- ``libraries``: JSON, library → version, of whatever had a hand in the bytes
- ``tables_digest``: digest of the four texts above and of all small tables (``kdcache.store.layout.tables_digest``)
- ``complete``: 1

Tables, contiguous and uncompressed, one entry for each of ``n`` clips, fixed-length UTF-8 padded with zeros where text;
readers refuse a file that holds anything else:

- ``/clip`` [n]: ids
- ``/row`` [n]: the manifest row as JSON
- ``/origin`` [n]: JSON of provenance: source fingerprint, decoder …
- ``/key/<stream>`` [n]: digest of (recipe, source fingerprint, span), the name of the array
- ``/digest/<stream>`` [n]: first 32 hex digits of the SHA-256 of the array: ``dtype|shape|`` in ASCII (as in
  ``<f2|1,480,8,14,14|``), then its little-endian bytes; for JPEG ``jpeg|lengths|``, then the files
- ``/checksum/<stream>``: int64 [n, V], of a ``fixed`` stream one for each clip-view, else [n, 1]: what is compared when
  the bytes are first read in a process, see below. Shards of version 0.1 have none: there a clip, with all its views,
  is held against its ``/digest`` instead, which takes longer, once
- ``/frames/<stream>``: source frames used, int32 [n, T]; or, when clips differ in T, a group with ``data`` and
  ``offset`` [n + 1], clip ``i`` being ``data[offset[i]:offset[i + 1]]``

Data, in one of three layouts (``layout`` in the recipe):

- ``fixed``: the data set ``/<stream>`` [n, V, …], clip by clip; contiguous, uncompressed and, from 4096 bytes on,
  aligned to 4096 (so it can be mapped into memory at ``dataset.id.get_offset()``), or chunked one clip-view a chunk
  through zstd (HDF5 filter 32015, ``import hdf5plugin``)
- ``ragged``: a group with flat ``data``, ``offset`` [n + 1] in elements, and ``shape`` [n, ndim]
- ``jpeg``: a group with flat uint8 ``data``, ``frame_offset`` in bytes, one more than there are frames, and ``offset``
  [n + 1] in frames; frame ``j`` of clip ``i`` is the file
  ``data[frame_offset[offset[i] + j]:frame_offset[offset[i] + j + 1]]``

A ``fixed`` stream whose recipe has ``quantised`` (``kdcache extract --dtype uint8``) holds uint8 codes; the array is
``codes × scale + offset``. Beside the codes lie float32 tables ``/quantised/<stream>/scale`` and ``offset``
[n, V, …], of as many axes as the codes and 1 long along those that share a scale (``quantised.shared`` in the recipe
names them), and ``error`` [n], the norm of what was lost over the norm of the clip. The ``/digest`` of such a row is
over ``quantised|shape of the codes|shape of the scales|``, the codes, the scales and the offsets.

The checksum of a clip or a view is that of its bytes as ``/digest`` orders them, without the text before them (of a
quantised view its scales, its offsets, its codes; of JPEG all files of the clip), with this function::

    def checksum(data: bytes) -> int:
        total = len(data)
        for i in range(0, len(data), 8):
            z = int.from_bytes(data[i : i + 8], "little") + i // 8 * 0x9E3779B97F4A7C15 & 2**64 - 1
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            z = (z ^ z >> 27) * 0x94D049BB133111EB & 2**64 - 1
            total += z ^ z >> 31
        total &= 2**64 - 1
        return total - 2**64 if total >> 63 else total  # as int64

It finds damage, at the speed of memory; against forgery nothing in a shard protects.

With plain h5py::

    with h5py.File("out/shard-00000.h5") as f:
        ids = [c.decode() for c in f["clip"]]
        features = f["i3d-rgb/mixed4a"][ids.index("clip-1")]                  # [V, 480, 8, 14, 14]
        scale, offset = (f[f"quantised/tsm/pool/{name}"][0] for name in ("scale", "offset"))
        pooled = f["tsm/pool"][0] * scale + offset                            # of a quantised stream
        a, b = f["flow/offset"][0:2]
        flow = f["flow/data"][a:b].reshape(f["flow/shape"][0])                # [T − 1, H, W, 2]

Beside the shards may lie ``shards.json`` (what each holds: ``kdcache.store.shard_list``), ``failures.csv`` (clips
that could not be extracted), ``damaged.csv`` (arrays that ``verify --repair`` took out of use), ``*.damaged`` (shards
that it renamed), ``fitted/<sha256>.json`` (what backbone weights were fitted on: ``kdcache.store.fitted``) and
``.*.partial`` (files being written; the next extraction removes those of writers that died).
"""

from __future__ import annotations

from kdcache.store.cache import Cache
from kdcache.store.commit import clean
from kdcache.store.describe import describe, inspect
from kdcache.store.index import load_index, load_places, update_index
from kdcache.store.integrity import VerifyReport, verify
from kdcache.store.layout import Record
from kdcache.store.scan import reindex, scan
from kdcache.store.writer import Committed, commit_shard

__all__ = [
    "Cache",
    "Committed",
    "Record",
    "VerifyReport",
    "clean",
    "commit_shard",
    "describe",
    "inspect",
    "load_index",
    "load_places",
    "reindex",
    "scan",
    "update_index",
    "verify",
]

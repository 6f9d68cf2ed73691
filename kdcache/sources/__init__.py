"""Sources of frames: videos, folders and tars of images, read forward with a time for each frame.

``open_source(path)`` gives a ``Source``: ``.info``, ``.times`` (seconds, one a frame), ``.read(indices)`` (RGB frames).
"""

from __future__ import annotations

from kdcache.sources.base import Source, SourceInfo
from kdcache.sources.content import content_digest, signature
from kdcache.sources.fetched import SourceCache, at_hand, remote_fingerprint
from kdcache.sources.opening import DECODERS, check, check_decoder, open_source
from kdcache.sources.paths import Finder, find, fingerprint, inside

__all__ = [
    "DECODERS",
    "Finder",
    "Source",
    "SourceCache",
    "SourceInfo",
    "at_hand",
    "check",
    "check_decoder",
    "content_digest",
    "find",
    "fingerprint",
    "inside",
    "open_source",
    "remote_fingerprint",
    "signature",
]

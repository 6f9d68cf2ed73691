"""Features of a source, one observation level after the other, as extraction would cache them.

Nothing after part n is decoded before its features were handed on. What is known of a file from the start is its
length, which is what observation levels are shares of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from kdcache.errors import ClipError
from kdcache.extraction.features import Backbones
from kdcache.runtime import cores
from kdcache.store.quantised import Quantised
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import ClipSpan


@dataclass(frozen=True)
class StreamingFeature:
    """What is known after part n: the vector ``[d]`` of that level as it would be cached, and when it was complete."""

    features: NDArray[Any]
    seconds: float


def load_networks(stream: BackboneStream, device: str) -> Backbones:
    """The network of a stream, for ``stream_features``."""
    return Backbones([stream.first_view()], device, batch=1)


def stream_features(stream: BackboneStream, clip: ClipSpan, nets: Backbones) -> Iterator[StreamingFeature]:
    """The first view of each level of a clip in turn.

    Raises:
        SourceError: a source that cannot be read.
        ClipError: a span that it does not have, or features that are not finite.
    """
    one = stream.first_view()
    for seconds, inputs in stream.level_inputs(clip, cores(), nets.device):
        features = nets.features([inputs], one)[0]
        if isinstance(features, ClipError):
            raise features
        features = features.decoded() if isinstance(features, Quantised) else features
        yield StreamingFeature(features[0, 0], seconds)

"""What every stream is: made of settings or of a recipe, computed clip by clip. A kind of stream is one subclass.

A subclass says which names and recipes are its own (``accepts``, ``owns``), how settings and recipes lead to it
(``from_settings``, ``from_recipe``, ``to_recipe``), how clips of its medium are read (``read``), what it computes of
one (``compute``), what that takes on disk (``nbytes``), what its axes and views are (``axes_in``, ``views_in``) and how
it looks on a contact sheet (``strips``). ``kdcache.streams.registry`` lists the kinds.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from kdcache.backbones.weights import Choice
from kdcache.errors import ClipError
from kdcache.recipe import Recipe, digest
from kdcache.streams.settings import StreamSettings

Array = NDArray[Any]
Payload = Array | list[bytes]
"""One clip of a stream as shards hold it: an array, or JPEG files one a frame."""
Choose = Callable[[str], Choice]
"""Backbone → its weights, each resolved once."""

COLUMNS = 8  # thumbnails in a row of a contact sheet


@dataclass(frozen=True)
class ClipSpan:
    """A span of a source: seconds, half-open, NaN for its start or end; ``fps`` of folders and tars of images."""

    path: Path | str
    start_s: float
    stop_s: float
    fps: float | None = None
    fingerprint: str = ""
    """Of the source's content."""


@dataclass
class ClipData:
    """What was read of a clip; each medium adds what its streams compute from."""

    span: ClipSpan
    origin: dict[str, Any]
    """Provenance, as shards keep it: fingerprint, decoder …"""


@dataclass(frozen=True)
class Strip:
    """One row of a contact sheet: a stream over time."""

    title: str
    images: NDArray[np.uint8]
    """RGB, [T, H, W, 3]."""
    frames: NDArray[np.int32]
    """Source frame of each image; empty where it is not known."""
    order: int
    """Rows are sorted by it: what was seen first, what was computed of it last."""
    note: str = ""
    legend: NDArray[np.uint8] | None = None
    """Picture at the right end, [h, w, 3]."""
    curve: NDArray[np.float32] | None = field(default=None, repr=False)
    """A value for each time step, for the diagram below the rows."""


class CachedKind(ABC):
    """A kind of cached arrays: what a recipe alone says of them. Nothing here needs weights or sources."""

    @classmethod
    @abstractmethod
    def owns(cls, recipe: Mapping[str, Any]) -> bool:
        """Whether a recipe is of this kind."""

    @classmethod
    @abstractmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """Axes of one clip's array, see ``kdcache.streams.axes``; ``None`` where they are not known."""

    @classmethod
    def views_in(cls, recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Names of the views; empty where there is no axis of views, ``None`` where they are not known."""
        return ()

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Array, frames: NDArray[np.int32]) -> list[Strip]:
        """A cached clip as rows of a contact sheet; none where it is no picture."""
        return []

    @classmethod
    def undrawn(cls, clip: str, names: str) -> str:
        """Why a contact sheet would be empty, where these streams are all that a clip has."""
        return (
            f"of clip {clip!r} there is only {names}, which is no picture; "
            "extract rgb, flow, idt or a feature map such as i3d-rgb/mixed4a too."
        )


@dataclass(frozen=True, kw_only=True)
class Stream(CachedKind):
    """One stream with everything a worker needs to compute it."""

    name: str
    """As it was asked for; an alias stays."""

    medium: ClassVar[str]
    """What it reads, in words for messages. All streams of one extraction read the same medium."""
    column: ClassVar[str] = "source"
    """Manifest column that names what is read, where a clip has one; else its ``source`` is read."""
    version: ClassVar[int] = 1
    """Raised when a change of the code changes the stream's bytes: old arrays then count as another recipe's."""

    @classmethod
    @abstractmethod
    def accepts(cls, name: str) -> bool:
        """Whether a stream of that name is of this kind."""

    @classmethod
    @abstractmethod
    def examples(cls) -> list[str]:
        """Names, for messages."""

    @classmethod
    def owns(cls, recipe: Mapping[str, Any]) -> bool:
        """Whether a recipe is of this kind."""
        return cls.accepts(str(recipe.get("stream")))

    @classmethod
    @abstractmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        """The stream that settings lead to.

        Raises:
            OptionError: settings that it cannot honour, or a layer that does not exist.
            WeightsError: a checkpoint that is missing.
        """

    def check_sources(self, paths: Sequence[str]) -> None:
        """Refuse, before any work, sources that the stream's settings do not suffice to read; ``OptionError``."""
        return

    @classmethod
    @abstractmethod
    def from_recipe(cls, name: str, recipe: Recipe, choose: Choose) -> Self:
        """The stream that wrote a recipe. ``kdcache.streams.registry.restore`` checks that it would write it again."""

    @classmethod
    def check(cls, name: str, settings: StreamSettings) -> None:
        """Refuse settings that no stream of this medium honours; ``OptionError``."""
        return

    @classmethod
    @abstractmethod
    def read(
        cls, spans: Sequence[ClipSpan], streams: Sequence[Any], threads: int, device: str = "cpu"
    ) -> Iterator[tuple[int, ClipData | ClipError]]:
        """Read clips of one source, which all streams share, forward and once.

        Yields:
            The position of a clip in ``spans`` with what was read, or why its span cannot be had; in any order.

        Raises:
            SourceError: the source is missing or damaged; clips yielded before are whole.
        """

    @abstractmethod
    def to_recipe(self) -> Recipe:
        """All that determines the stream's bytes."""

    @functools.cached_property
    def recipe(self) -> Recipe:
        """``to_recipe``, made once."""
        return self.to_recipe()

    @functools.cached_property
    def digest(self) -> str:
        """Of the recipe."""
        return digest(self.recipe)

    def digest_of(self, clip_id: str) -> str:
        """Digest of all that determines a clip's bytes but its source and span; it names the clip's array."""
        return self.digest

    def digests_of(self, clip_ids: Iterable[str]) -> Iterable[str]:
        """``digest_of`` each clip; may go on without end."""
        return itertools.repeat(self.digest)

    @functools.cached_property
    def alike(self) -> list[Self]:
        """Streams of other recipes whose arrays are as good as its own, where ``takes`` agrees."""
        return []

    def takes(self, other: Stream, origin: Callable[[], Mapping[str, Any]]) -> bool:
        """Whether an array by ``other``, one of ``alike``, counts as its own; ``origin`` gives the array's."""
        return True

    @functools.cached_property
    def enlarging(self) -> Self | None:
        """The stream that differs only in enlarging the frames of small sources; ``None`` where there is no such."""
        return None

    @functools.cached_property
    def shape(self) -> tuple[int, ...] | None:
        """Of one clip, [V, …] or [V, N, …]; ``None`` for whole-clip streams, whose clips differ."""
        return None

    @abstractmethod
    def nbytes(self, start_s: float, stop_s: float) -> int:
        """Bytes that a clip of that span takes, estimated where they depend on its source."""

    @abstractmethod
    def frames(self, clip: Any) -> NDArray[np.int32]:
        """Source frame indices that were used of a clip, int32 [T]."""

    @abstractmethod
    def compute(self, clip: Any) -> Payload:
        """The array that is cached of a clip; of a ``BackboneStream`` the input of its network.

        Args:
            clip: what ``read`` yielded, a ``ClipData`` of the stream's medium.

        Raises:
            KdcacheError: it cannot be computed (frames too small, for example).
        """


def thumbnails(count: int) -> NDArray[np.int64]:
    """Which of so many images a contact sheet shows: up to ``COLUMNS``, spread evenly."""
    return np.unique(np.linspace(0, count - 1, COLUMNS).round().astype(np.int64))


def level_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Features of one level: those of its segment, less the axis of clips of a network that counts them (TSM's 1)."""
    return shape[1:] if shape[0] == 1 else shape

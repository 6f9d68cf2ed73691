"""Collections of arrays, one a clip or one a source, and how they become a stream."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.exchange.recipes import check_levels
from kdcache.frame_rate import is_rate

Where = TypeVar("Where", bound=Hashable)
Per = Literal["clip", "source"]


class ArrayHeader(NamedTuple):
    """What is known of an array before it is read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}"

    @property
    def name(self) -> str:
        """The dtype whatever its byte order."""
        return str(self.dtype.newbyteorder("=").name)


class ArrayFiles(Protocol[Where]):
    """A folder or file with arrays by name; ``find``, ``header`` and ``read`` raise ``ClipError``."""

    source: str
    """Kind of files, as recipes say it."""
    one: str
    several: str
    """What one array is kept in, and several: file, data set …"""

    def find(self, names: Sequence[str]) -> Where: ...
    def shown(self, where: Where) -> str: ...
    def header(self, where: Where) -> ArrayHeader: ...
    def read(self, where: Where, rows: slice = ...) -> NDArray[Any]: ...
    def others(self, used: Collection[Where]) -> Iterable[str]: ...


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """How arrays become a stream; ``kdcache.exchange.import_npy`` says what each means.

    Raises:
        OptionError: options that contradict each other.
    """

    views: bool = False
    axes: str | None = None
    levels: bool = False
    dtype: str | None = None
    at: str | None = None
    key: str | None = None
    per: Per = "clip"
    fps: float | None = None
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in (None, "float16", "float32"):
            raise OptionError(f"--dtype {self.dtype}: choose float16 or float32, or leave it out.")
        check_levels(self.axes, self.levels)
        if self.per not in ("clip", "source"):
            raise OptionError(f"--per {self.per}: choose clip or source.")
        if self.per == "clip":
            if self.fps is not None or self.offset:
                raise OptionError("--fps and --offset cut clips out of their sources' arrays: add --per source.")
        elif self.fps is None or not is_rate(self.fps) or not math.isfinite(self.offset):
            raise OptionError(
                "--per source needs --fps, the rows a second of the arrays (which may be below 1); --offset is in "
                "seconds."
            )
        elif self.views or self.levels or self.at is not None or (self.axes or "T")[0] != "T":
            raise OptionError(
                "--per source: clips become as long as they last, one view each; leave out --views, --levels and --at, "
                "and write --axes with T first, as in TD."
            )
        if self.ragged and (self.views or self.axes == "T"):
            raise OptionError(f"--axes {self.axes}: clips that differ in length have no views and more than one axis.")

    @property
    def ragged(self) -> bool:
        """Whether the stream is to be ragged whatever the arrays' lengths."""
        return self.per == "source" or (self.axes or "").startswith("T")

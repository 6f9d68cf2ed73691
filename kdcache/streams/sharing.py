"""Which numbers of features share a scale and an offset when they are stored as uint8."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdcache.errors import OptionError

FEWEST_SHARING = 32  # numbers of a scale and an offset, which take 8 bytes


def shared_axes(axes: str | None, shape: Sequence[int]) -> str:
    """Along which axes the numbers of a clip share a scale and an offset when they are stored as uint8.

    Maps and tokens share within a channel, over time and positions, where that are enough numbers; small maps and
    vectors share over all but views, levels and time steps. Views and levels never share. [reconstructed]

    Args:
        axes: of one clip's array, views first.
        shape: of one clip.

    Returns:
        Letters of ``axes``.

    Raises:
        OptionError: axes that are not known, or too few numbers in a vector.
    """
    if axes is None:
        raise OptionError("dtype=uint8: the order of these features' axes is not known; use float16.")
    size = dict(zip(axes, shape, strict=True))
    for shared in ("THWP", "CHWDP"):
        letters = [letter for letter in axes if letter in shared]
        enough = math.prod(size[letter] for letter in letters) >= FEWEST_SHARING
        if enough and (set("CP") & set(axes) or "D" in letters):
            return "".join(letters)
    raise OptionError(f"dtype=uint8: {list(shape)} has too few numbers that could share a scale; use float16.")

"""The weights of ``kdcache fit --cross-fit``: networks that each left a part of the clips out, and one of all clips.

A folder holds ``crossfit.json``, which says in which part a clip lies, and the weights files ``all/NAME.safetensors``
and ``part-0/NAME.safetensors`` …; the network of a part is the one that has not seen its clips. Nothing here needs
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.backbones.metadata import file_name
from kdcache.errors import OptionError, WeightsError
from kdcache.recipe import digest
from kdcache.seals import read_json, write_json

FILE = "crossfit.json"
ALL = "all"
_FORMAT = "kdcache crossfit 1"


def part_folder(number: int) -> str:
    """The folder of the fit that leaves a part out."""
    return f"part-{number}"


@dataclass(frozen=True)
class CrossFitWeights:
    """Which network computes which clip; a clip of no part is computed by the one of all."""

    parts: tuple[str, ...]
    """Of each part the SHA-256 of the weights that were fitted without it."""
    assignment: str
    """Digest of ``clips``."""
    random_start: bool = field(default=False, compare=False)
    """Whether the networks were trained from random weights, so that hidden layers need not be comparable."""
    clips: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """Clip → its part; empty where only the network of all is at hand."""
    files: tuple[Path, ...] = field(default=(), compare=False, repr=False)
    """Of each part its weights file."""

    def identity(self) -> dict[str, Any]:
        """As recipes have it."""
        return {"parts": list(self.parts), "clips": self.assignment}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> CrossFitWeights:
        """What ``identity`` wrote; no clip can be computed with a part's network from it."""
        return cls(tuple(recipe["parts"]), str(recipe["clips"]))

    def lists(self) -> list[list[str]]:
        """The clips of each part."""
        return lists_of(self.clips, len(self.parts))


def assignment_digest(clips: Mapping[str, int]) -> str:
    """Digest of which clip lies in which part, 32 hex digits."""
    return digest(clips)


def lists_of(clips: Mapping[str, int], parts: int) -> list[list[str]]:
    """Clip → part, as the clips of each part in order."""
    return [sorted(clip for clip, its in clips.items() if its == part) for part in range(parts)]


def save(
    folder: Path, backbone: str, sha256: str, parts: Sequence[str], clips: Mapping[str, int], random_start: bool
) -> None:
    """Write ``crossfit.json``.

    Args:
        folder: of the fits.
        backbone: its name.
        sha256: of the weights that were fitted on all clips.
        parts: of those that were fitted without each part.
        clips: clip → part.
        random_start: see ``CrossFitWeights``.
    """
    content = {
        "format": _FORMAT,
        "backbone": backbone,
        "random_start": random_start,
        "all": sha256,
        "parts": [{"weights": its, "clips": ids} for its, ids in zip(parts, lists_of(clips, len(parts)), strict=True)],
    }
    write_json(folder / FILE, content)


def is_cross_fit(folder: Path) -> bool:
    """Whether a folder is of a finished ``kdcache fit --cross-fit``."""
    return (folder / FILE).is_file()


def load(folder: Path) -> tuple[Path, str, CrossFitWeights]:
    """The weights file of all clips, its SHA-256 as it was recorded, and which network computes which clip.

    Files are where ``kdcache fit`` puts them, whatever the text says.

    Raises:
        WeightsError: no such folder, a damaged ``crossfit.json``, or weights files that are missing.
    """
    if not is_cross_fit(folder):
        raise WeightsError(
            f"{folder} is a folder without {FILE}: name a weights file, or the folder of a finished "
            "`kdcache fit --cross-fit`."
        )
    remedy = "delete it and repeat the `kdcache fit --cross-fit` that made it"
    try:
        content = read_json(folder / FILE, remedy)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        name = file_name(str(content["backbone"]))
        shas = tuple(str(part["weights"]) for part in content["parts"])
        clips = {str(clip): number for number, part in enumerate(content["parts"]) for clip in part["clips"]}
        if len(shas) < 2 or len(clips) != sum(len(part["clips"]) for part in content["parts"]):
            raise ValueError("a clip lies in two parts, or there is but one part")
        whole, random_start = str(content["all"]), bool(content["random_start"])
    except OptionError as error:
        raise WeightsError(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / FILE} is damaged ({error}): {remedy}.") from error
    files = [folder / ALL / name, *(folder / part_folder(number) / name for number in range(len(shas)))]
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{file} is missing: copy it there, or repeat the `kdcache fit --cross-fit`.")
    cross = CrossFitWeights(shas, assignment_digest(clips), random_start, clips, tuple(files[1:]))
    return files[0], whole, cross

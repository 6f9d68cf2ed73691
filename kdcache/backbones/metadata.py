"""Weights that ``kdcache fit`` wrote: a safetensors file that also records what the network was fitted on.

The state dict has the names of the published checkpoint; the file's header holds a ``FitMetadata`` as JSON under
``kdcache``. It is read without torch, so that planning can ask for it.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.errors import WeightsError
from kdcache.files import atomic
from kdcache.seals import BLANK, KEY, seal

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
_KEY = "kdcache"
_LONGEST_HEADER = 100_000_000  # bytes; what the safetensors library accepts, too


def file_name(backbone: str) -> str:
    """Of the weights that ``kdcache fit`` writes: the backbone's name, signs that lead to folders as ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", backbone) + SUFFIX


@dataclass(frozen=True, kw_only=True)
class FitMetadata:
    """What a fitted weights file says of itself."""

    backbone: str
    """Name in ``kdcache.backbones.names()``."""
    num_classes: int
    classes: tuple[int, ...]
    """The manifest's label of every output, in order."""
    limits: tuple[float, float] | None = None
    """c_min and c_max of the training skeletons; None for networks that see no skeletons."""
    fitted_on: tuple[str, ...] = ()
    """Clips whose labels moved the weights, in this fit or in one that it began from."""
    validated_on: tuple[str, ...] = ()
    """Clips whose labels chose the epoch."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was fitted, every ``auto`` resolved."""
    version: str = ""
    """Of kdcache."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file; ``from_json`` gives an equal one back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FitMetadata:
        """From the JSON of ``to_json``; fields that are not known here are left out. ``TypeError``, ``KeyError`` or
        ``ValueError`` where it is none of them.
        """
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        limits = known.get("limits")
        return cls(
            backbone=str(known["backbone"]),
            num_classes=int(known["num_classes"]),
            classes=tuple(int(c) for c in known["classes"]),
            limits=None if limits is None else (float(limits[0]), float(limits[1])),
            fitted_on=tuple(str(c) for c in known.get("fitted_on", ())),
            validated_on=tuple(str(c) for c in known.get("validated_on", ())),
            options=dict(known.get("options", {})),
            version=str(known.get("version", "")),
        )


def write(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: FitMetadata) -> None:
    """Write a state dict and its metadata, atomically; the name must end in ``.safetensors``."""
    from safetensors.torch import save

    if Path(path).suffix != SUFFIX:
        raise WeightsError(f"{os.fspath(path)}: fitted weights are safetensors; give a name that ends in {SUFFIX}.")
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    about = json.dumps({KEY: BLANK, **metadata.to_json()}, sort_keys=True)
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, {_KEY: about}))
        seal(temporary)


def read_metadata(path: str | os.PathLike[str]) -> FitMetadata | None:
    """What a fitted weights file says of itself; None for every other file, published checkpoints among them.

    Raises:
        WeightsError: the file is missing or cannot be read, or it says that it is fitted but its metadata is damaged.
    """
    try:
        with open(path, "rb") as file:
            length = file.read(8)
            size = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
            header = file.read(size) if 2 <= size <= _LONGEST_HEADER and os.fstat(file.fileno()).st_size > size else b""
    except OSError as error:
        raise WeightsError(f"{os.fspath(path)} cannot be read ({error.strerror or error}); check the path.") from error
    if not header.startswith(b"{"):
        return None
    try:
        stored = json.loads(header).get("__metadata__")
    except (ValueError, RecursionError):  # not JSON: another kind of file
        return None
    text = stored.get(_KEY) if isinstance(stored, dict) else None
    if text is None:
        return None
    try:
        return FitMetadata.from_json(json.loads(text))
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{os.fspath(path)}: what it says of its fit is damaged ({error}); fit it again or copy it again."
        ) from error

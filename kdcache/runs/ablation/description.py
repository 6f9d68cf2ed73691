"""``ablation.json``: what a comparison trained and how, which its reports are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError
from kdcache.seals import digest_of_file, read_json, write_json

DESCRIPTION = "ablation.json"

_FILES = "files"
"""SHA-256 of the tables that reports read as well."""


def write_description(folder: Path, content: Mapping[str, Any], tables: Sequence[str]) -> None:
    """Write it, after the tables that it names the digests of."""
    digests = {name: digest_of_file(folder / name) for name in tables}
    write_json(folder / DESCRIPTION, {**content, _FILES: digests} if digests else content)


def read_description(folder: Path) -> dict[str, Any]:
    """Read it; its tables are held against their digests.

    Raises:
        OptionError: it is not there or damaged, or one of the tables is.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise OptionError(
            f"{folder} holds no finished comparison: it has no {DESCRIPTION}; run `kdcache ablate` first."
        )
    content = read_json(path, REMEDY)
    for name, known in content.pop(_FILES, {}).items():
        if not (folder / name).exists() or digest_of_file(folder / name) != known:
            raise OptionError(f"{folder / name} is not as it was written: {REMEDY}.")
    return content


REMEDY = "restore it, or repeat the `kdcache ablate` that made it, which trains nothing again and writes it anew"

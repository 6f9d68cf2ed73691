"""What commands print: reports as text or as JSON, on standard output or into a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import click

from kdcache.cli.common import Command, out_option
from kdcache.files import atomic

STDOUT = "-"
_STREAMS = [Path(folder) for folder in ("/dev", "/dev/fd", "/proc/self/fd")]

json_option: Callable[[Command], Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print plain data as JSON."
)


def report_options(command: Command) -> Command:
    """``--json`` and ``-o/--out FILE`` of a command that reports; they arrive as ``as_json`` and ``out``."""
    file = out_option(default=STDOUT, show_default=True, metavar="FILE", help="Text file to write; - is stdout.")
    return file(json_option(command))


def report(content: object, as_json: bool, out: str = STDOUT) -> None:
    """Print a report, as text or as JSON (see ``plain``), or write it into a file."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) if as_json else str(content)
    write_text(text, out)


def report_training(content: object, as_json: bool) -> None:
    """As ``report``; of several processes that ``torchrun`` has started, the first alone prints."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0":
        report(content, as_json)


def write_text(text: str, out: str) -> None:
    """Text and a line break on standard output for ``-``, else into a file that appears only as a whole.

    A device or a pipe is written to.
    """
    if out == STDOUT:
        click.echo(text)
        return
    path = Path(out)
    if path.parent in _STREAMS or (path.exists() and not path.is_file() and not path.is_dir()):
        with open(out, "w", encoding="utf-8") as stream:  # /dev/stdout, /dev/null, a pipe: nothing to replace
            stream.write(f"{text}\n")
        return
    with atomic(out) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def plain(content: Any) -> Any:
    """A report as JSON has it: numbers, texts, lists and objects.

    An object with ``to_json()`` is what that returns, a data class its fields, a data frame a list of its rows, an
    array a list, a path its text; numbers that JSON lacks (NaN, infinities) are null.

    Raises:
        TypeError: anything else.
    """
    if content is None or isinstance(content, (bool, int, str)):
        return content
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if hasattr(content, "to_json") and not hasattr(content, "columns"):
        return plain(content.to_json())
    if is_dataclass(content) and not isinstance(content, type):
        return {field.name: plain(getattr(content, field.name)) for field in fields(content)}
    if hasattr(content, "_asdict"):  # a named tuple
        return plain(content._asdict())
    if isinstance(content, Mapping):
        return {str(name): plain(value) for name, value in content.items()}
    if isinstance(content, (list, tuple, set, frozenset)):
        return [plain(value) for value in content]
    if hasattr(content, "columns"):  # a data frame; pandas need not be loaded to ask
        return [plain(row) for row in content.to_dict("records")]
    if hasattr(content, "tolist"):  # an array or a number of numpy
        return plain(content.tolist())
    if isinstance(content, PathLike):
        return str(content)
    raise TypeError(f"a report holds a {type(content).__name__}, which JSON has not")

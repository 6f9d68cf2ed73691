"""A dataset's options: the keyword arguments of its ``manifest`` function, with their types."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kdcache.errors import OptionError, unknown
from kdcache.frame_rate import is_rate

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    tuple: "names separated by commas",
}


@dataclass(frozen=True)
class Option:
    """One option: its name, type and default value."""

    name: str
    type: Any
    default: Any
    text: str = ""
    """What it does: its entry in the docstring of the function."""

    @property
    def choices(self) -> str:
        """What may be given, in words."""
        kind, _ = _required(self.type)
        if get_origin(kind) is Literal:
            return " | ".join(str(c) for c in get_args(kind))
        return _WORDS[get_origin(kind) or kind]

    @property
    def shown(self) -> str:
        """The default as one would type it."""
        if isinstance(self.default, tuple):
            return ",".join(self.default) or "none"
        return "none" if self.default is None else str(self.default)

    def convert(self, value: Any) -> Any:
        """``value`` as the option's type; text is read.

        Raises:
            OptionError: it does not fit.
        """
        kind, optional = _required(self.type)
        if optional and (value is None or value == "none"):
            return None
        try:
            found = _read(value, kind)
            if isinstance(found, float) and not (is_rate(found) if self.name == "fps" else math.isfinite(found)):
                raise ValueError(value)
            return found
        except (TypeError, ValueError, OverflowError) as error:
            what = "frames a second, like 25 or 29.97" if self.name == "fps" else self.choices
            raise OptionError(f"{self.name} is {value!r}: give {what}.") from error


def options(function: Callable[..., Any]) -> dict[str, Option]:
    """Name → option, in the order of the signature."""
    hints, texts = get_type_hints(function), argument_texts(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: Option(p.name, hints[p.name], p.default, texts.get(p.name, "")) for p in parameters}


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Argument → its entry below ``Args:`` in the docstring, on one line; those without one are left out."""
    _, _, below = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section = re.split(r"^\S", below, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "") for name, text in entries}


def coerce(function: Callable[..., Any], given: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """The given options with their right types.

    Raises:
        OptionError: a name that the dataset does not have, or a value of another type.
    """
    known = options(function)
    for name in given:
        if name not in known:
            raise unknown(f"option of {dataset}", name, list(known))
    return {name: known[name].convert(value) for name, value in given.items()}


def _required(hint: Any) -> tuple[Any, bool]:
    """``X | None`` → ``X`` and True."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (a for a in get_args(hint) if a is not type(None))
        return inner, True
    return hint, False


def _read(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return next(_raising(c for c in get_args(kind) if str(c) == str(value)))
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(p).strip() for p in parts if str(p).strip())
    if kind is bool:
        if isinstance(value, bool):
            return value
        return next(_raising(v for k, v in _BOOLEANS.items() if k == str(value).lower()))
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise TypeError(value)
    return kind(value)


def _raising(matches: Any) -> Any:
    """The matches, or a ``ValueError`` where there is none."""
    found = list(matches)
    if not found:
        raise ValueError
    return iter(found)

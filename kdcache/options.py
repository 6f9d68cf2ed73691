"""Options as data classes: checked by type and name, from texts and tables and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdcache.errors import OptionError, unknown

T = TypeVar("T")
NONE = "none"  # TOML has no null


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A data class from values by name; ``OptionError`` for an unknown name or a value of another type."""
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise unknown("option", name, list(hints))
    return kind(**{name: _checked(name, value, hints[name]) for name, value in values.items()})


def parse_texts(hints: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """``name=value`` texts as values of the annotated types; ``OptionError`` for an unknown name or a wrong value."""
    parsed: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--set {text}: write name=value, for example --set {list(hints)[-1]}=….")
        if name not in hints:
            raise unknown("option", name, list(hints))
        parsed[name] = _parsed(name, value, hints[name])
    return parsed


def _parsed(name: str, text: str, hint: Any) -> Any:
    """The value that a text stands for."""
    kinds = _kinds(hint)
    if NoneType in kinds and text.lower() == NONE:
        return None
    value: Any = text
    if bool in kinds and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif of := next((get_args(k)[0] for k in kinds if get_origin(k) is tuple), None):
        parts = [part.strip() for part in text.split(",") if part.strip() and text.lower() != NONE]
        value = tuple(int(p) if of is int and p.lstrip("-").isdecimal() else p for p in parts)
    elif int in kinds or float in kinds:
        try:
            value = int(text) if int in kinds else float(text)
        except ValueError:
            value = text  # refused below, with the name of the option
    return _checked(name, value, hint)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the annotated type; whole numbers pass as floats, lists as tuples, ``"none"`` as None."""
    kinds = _kinds(hint)
    if NoneType in kinds and (value is None or value == NONE):
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
            raise unknown(f"value of {name}:", str(value), [str(choice) for choice in get_args(kind)])
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            if all(isinstance(part, get_args(kind)[0]) for part in value):
                return tuple(value)
        elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif isinstance(kind, type) and type(value) is kind:
            return value
        elif kind is str and isinstance(value, Path):
            return str(value)
    raise OptionError(f"{name}={value!r}: give {' or '.join(_says(kind) for kind in kinds)}.")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _says(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "whole numbers such as 15,25" if get_args(kind)[0] is int else "names such as a,b"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: NONE}[kind]


def to_table(instance: Any) -> dict[str, Any]:
    """A data class as TOML can hold it: None as ``"none"``, tuples as lists."""
    return {k: NONE if v is None else list(v) if isinstance(v, tuple) else v for k, v in asdict(instance).items()}

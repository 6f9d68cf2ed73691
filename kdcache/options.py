"""Options as data classes: checked by type and name, from texts and tables and back."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdcache.errors import OptionError, unknown
from kdcache.text import short

T = TypeVar("T")
NONE = "none"  # TOML has no null
LARGEST = 2**63 - 1  # whole number that an option may be
LARGEST_FLOAT = 1e30  # other number; torch refuses what float32 does not hold


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
    elif (int in kinds or float in kinds) and text.isascii():
        try:
            value = int(text) if int in kinds else float(text)
        except ValueError:
            value = text  # refused below, with the name of the option
    return _checked(name, value, hint)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the annotated type; whole numbers pass as floats, lists as tuples, ``"none"`` as None.

    Numbers are finite and not vast, and whole ones have 64 bits; texts, which may be paths, hold no NUL."""
    kinds = _kinds(hint)
    for part in value if isinstance(value, (list, tuple)) else (value,):
        _check_part(name, part)
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
    raise OptionError(f"{name}={short(value)}: give {' or '.join(_says(kind) for kind in kinds)}.")


def _check_part(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(f"{name}={value}: give a finite number.")
    for kind, largest in ((int, LARGEST), (float, LARGEST_FLOAT)):
        if isinstance(value, kind) and abs(value) > largest:
            raise OptionError(f"{name} is beyond {largest}: give a smaller number.")
    if isinstance(value, str) and "\0" in value:
        raise OptionError(f"{name}={short(value)}: a text holds no NUL.")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _says(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "whole numbers such as 15,25" if get_args(kind)[0] is int else "names such as a,b"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: NONE}[kind]


def to_table(instance: Any) -> dict[str, Any]:
    """A data class as TOML can hold it: None as ``"none"``, tuples as lists."""
    return {k: NONE if v is None else list(v) if isinstance(v, tuple) else v for k, v in asdict(instance).items()}


@dataclass(frozen=True)
class OptionDescription:
    """One option, for those who look for it."""

    name: str
    values: str
    """What may be given, in words."""
    default: str | None
    """As one would type it; None: it has to be given."""
    text: str
    """What it does."""

    @property
    def term(self) -> str:
        """``name=default``."""
        return self.name if self.default is None else f"{self.name}={self.default}"

    @property
    def explanation(self) -> str:
        """The text, and what may be given."""
        return f"{self.text} ({self.values})".strip()


def described(kind: type, names: Sequence[str] | None = None) -> list[OptionDescription]:
    """The options of a data class, inherited ones included: those of its own source first; of ``names`` alone."""
    hints, docs = get_type_hints(kind), field_docs(kind)
    own = list(inspect.get_annotations(kind))
    known = {field.name: field for field in fields(kind)}
    order = [*own, *(name for name in known if name not in own)]
    return [
        OptionDescription(
            name,
            " or ".join(_choices(part) for part in _kinds(hints[name])),
            None if known[name].default is MISSING else shown(known[name].default),
            docs.get(name, "").replace("``", ""),
        )
        for name in (order if names is None else names)
    ]


def field_docs(kind: type) -> dict[str, str]:
    """Field → the string below it in the class, on one line, or in the class that it inherits it from; those without
    one are left out.

    Python keeps no such strings, so they are read from the source.
    """
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        file = getattr(sys.modules.get(each.__module__), "__file__", None)
        if file is None:
            continue
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
        body = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == each.__name__), None)
        for before, node in itertools.pairwise(body.body if body else []):
            match before, node:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(kind: Any) -> str:
    return " | ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else _says(kind)

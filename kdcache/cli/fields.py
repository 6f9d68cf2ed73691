"""Command-line options from the fields of a dataclass: name, type, choices, default and help are written once."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from kdcache.cli.common import Command
from kdcache.options import field_docs, shown

_DEFAULT = re.compile(r"``None``: (?P<default>.*?)\.?$")


def field_options(settings: type) -> Callable[[Command], Command]:
    """A decorator that adds ``--name`` for each field; one that is not given arrives as ``None``.

    Args:
        settings: a dataclass of numbers, strings, ``Literal`` and tuples of strings (written a,b), each of them or
            ``None``. The string below a field is its help; there, ``None``: … at the end says what its default is.
    """
    hints, docs = get_type_hints(settings), field_docs(settings)

    def add(command: Command) -> Command:
        for field in reversed(fields(settings)):
            command = _option(field, _without_none(hints[field.name]), docs.get(field.name, ""))(command)
        return command

    return add


def _option(field: Field[Any], kind: Any, doc: str) -> Callable[[Command], Command]:
    default = "" if field.default is None else shown(field.default)
    if match := _DEFAULT.search(doc):
        default, doc = match["default"], doc[: match.start()].strip()
    text = f"{doc}  [default: {default}]" if default else doc
    name = f"--{field.name.replace('_', '-')}"
    plain = text.replace("``", "")
    if get_origin(kind) is Literal:
        return click.option(name, type=click.Choice(list(get_args(kind))), help=plain)
    if get_origin(kind) is tuple:
        return click.option(name, metavar="A,B,…", callback=_split, help=plain)
    return click.option(name, type=kind, help=plain)


def _without_none(kind: Any) -> Any:
    """``int`` for ``int | None``."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    return kind


def _split(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value.split(","))

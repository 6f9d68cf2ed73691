"""Settings of a run and options of a method: checked by type and name, to TOML and back."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdcache.errors import OptionError, unknown
from kdcache.files import atomic
from kdcache.methods import method as method_module

T = TypeVar("T")
NONE = "none"  # TOML has no null


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is made, whatever its method."""

    method: str
    """Name in ``kdcache.methods.METHODS``."""
    shards: str
    """Folder of the cache."""
    seed: int = 0
    """Of initialisation, order, views, dropout and which labels are kept."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """fp32, bf16 or fp16; ``auto``: fp32 on a CPU, bf16 on a GPU."""
    stream: str | None = None
    """Which cached features; needed where there are several. ``a,b`` joins vectors of two streams."""
    recipe: str | None = None
    """Digest of the recipe to read, where clips of a stream were extracted under more than one."""
    weights: str | None = None
    """Checkpoint of the backbone that made the stream, where it is not found by the recipe."""
    hold: float = 0.6
    """Share of the free memory that the stream may fill; 0 reads every batch from the shards."""
    split: str = "split"
    """Column of the manifest that says which clips train, validate and test, where there are several such columns."""
    validation: float = 0.2
    """Share of the labelled training clips to hold out where the manifest has none; 0 holds nothing out."""
    save_every: float = 30.0
    """Seconds between checkpoints, taken at the end of an epoch; 0 takes one after every epoch."""

    def __post_init__(self) -> None:
        if not 0 <= self.hold <= 1:
            raise OptionError(f"hold={self.hold}: give a share of the free memory, 0 to 1.")
        if not 0 <= self.validation < 1:
            raise OptionError(f"validation={self.validation}: give a share of the training clips, 0 to below 1.")


SETTABLE = ("recipe", "weights", "hold", "split", "validation", "save_every")
"""Settings that parse_set takes beside a method's options."""


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A data class from values by name; ``OptionError`` for an unknown name or a value of another type."""
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise unknown("option", name, list(hints))
    return kind(**{name: _checked(name, value, hints[name]) for name, value in values.items()})


def parse_set(method: str, sets: Sequence[str]) -> dict[str, Any]:
    """``["lam=0.1", "loss_d=both"]`` → ``{"lam": 0.1, "loss_d": "both"}``, typed by the method's ``Options``.

    Besides these, those in ``SETTABLE`` can be set. Sequences are written ``15,25``,
    absence ``none``.
    """
    options = get_type_hints(method_module(method).Options)
    return parse_texts({name: get_type_hints(Settings)[name] for name in SETTABLE} | options, sets)


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
    elif any(get_origin(k) is tuple for k in kinds):
        value = tuple(int(part) if part.strip().lstrip("-").isdecimal() else part for part in text.split(",") if part)
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
            if all(isinstance(part, int) for part in value):
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
        return "whole numbers such as 15,25"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: NONE}[kind]


def to_table(instance: Any) -> dict[str, Any]:
    """A data class as TOML can hold it: None as ``"none"``, tuples as lists."""
    return {k: NONE if v is None else list(v) if isinstance(v, tuple) else v for k, v in asdict(instance).items()}


def write_config(path: Path, settings: Any, options: Any, resolved: Mapping[str, Any]) -> None:
    """``config.toml``: the settings, ``[options]`` as given or by default, ``[resolved]`` what ``auto`` came to."""
    import tomli_w

    content = {**to_table(settings), "options": to_table(options), "resolved": dict(resolved)}
    with atomic(path) as temporary:
        temporary.write_bytes(tomli_w.dumps(content).encode())


def read_config(path: str | Path) -> tuple[Settings, Any, dict[str, Any]]:
    """Settings, the method's options, and what was resolved, from a ``config.toml``."""
    path = Path(path)
    if not path.exists():
        raise OptionError(f"{path.parent} is no run: it has no {path.name}; name a folder that `kdcache train` made.")
    content = tomllib.loads(path.read_text())
    resolved = content.pop("resolved", {})
    options = content.pop("options", {})
    settings = build(Settings, content)
    return settings, build(method_module(settings.method).Options, options), resolved


def load_config(path: str | Path) -> dict[str, Any]:
    """The arguments of ``train`` that a ``config.toml`` stands for: ``train(**load_config(path), out=...)``."""
    settings, options, _ = read_config(path)
    return {f.name: getattr(settings, f.name) for f in fields(settings)} | {
        f.name: getattr(options, f.name) for f in fields(options)
    }

"""Networks that are not of this package: of libraries, by import path or entry point, registered in a notebook.

    >>> def build():
    ...     return Custom(net=MyNet(), takes="CTHW", frames=16, size=112, axes={"blocks.*": "PD"}, pooled="blocks.11")
    >>> kdcache.backbones.register("mynet", build)

``my_package.nets:build`` names the same function by import path, and a package may offer it under the entry point group
``kdcache.backbones``. Code is imported because a user names it, never because a shard or a run's folder does.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

from kdcache.backbones.spec import InputSpec
from kdcache.errors import OptionError, raised

if TYPE_CHECKING:
    from torch import nn

    from kdcache.backbones.external import External, Takes

LIBRARIES = {"torchvision": "torchvision_models", "timm": "timm_models", "hf": "hf_models"}
"""Prefix of a name → module of ``kdcache.backbones.libraries``."""
GROUP = "kdcache.backbones"
"""Of entry points."""

Builder = Callable[[], "Custom"]


@dataclass(frozen=True, kw_only=True)
class Custom:
    """A network of one's own, and all that must be stated of it; what a builder returns."""

    net: nn.Module
    """With the weights that it is to have; any Python code, any device that it is moved to."""
    takes: Takes
    """Order of one input's axes: ``CTHW``, ``TCHW``, or ``CHW`` for a network that sees images one by one."""
    frames: int
    """T of a segment."""
    size: int
    """Side of the crop in pixels."""
    axes: Mapping[str, str]
    """Pattern of layers → axes of their output without that of clips: T time, C channels, H rows, W columns, P
    positions, D numbers of a vector; with T in front for images. ``output`` is what the network returns."""
    resize: int | None = None
    """Short side in pixels before cropping; none: 8/7 of ``size``."""
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    """Of each channel for values from 0 to 1; the default is ImageNet's."""
    pooled: str = "output"
    """Layer whose mean over positions and time is the layer ``pool``."""
    modality: Literal["rgb", "flow"] = "rgb"
    stack: int = 1
    """Flow fields that make up one frame."""


_builders: dict[str, Builder] = {}
_allowed: set[str] = set()
_trusted: set[str] = set()


def add(name: str, build: Builder) -> None:
    """Make a network known in this process; see ``kdcache.backbones.register``."""
    _builders[name] = build
    _external.cache_clear()


def allow(name: str) -> str:
    """Let ``my_package.nets:build`` be imported, because the user named it; any other name is returned as it is."""
    if _is_path(name):
        _allowed.add(name)
    return name


def import_modules(modules: Sequence[str]) -> None:
    """Import modules that the user names, which may register networks; functions in them may then be named by path.

    Raises:
        OptionError: one that cannot be imported.
    """
    for module in modules:
        _imported(module, module)
        _trusted.add(module)


def registered() -> list[str]:
    """Names that were registered, and those of entry points."""
    return [*_builders, *_entry_points()]


def is_external(name: str) -> bool:
    """Whether a name is of a network from elsewhere, whether or not there is one."""
    return ":" in name or name in _builders or name in _entry_points()


def external(name: str) -> External:
    """The network of that name, with what is stated of it.

    Raises:
        OptionError: there is none, its library is not installed, or its code was not named by the user.
    """
    return _external(name)


def in_workers(names: Sequence[str]) -> bytes:
    """What makes these networks known in another process, for ``known_here``.

    Raises:
        OptionError: a builder that cannot be sent there.
    """
    builders = {name: _builders[name] for name in names if name in _builders}
    allowed = [name for name in names if _is_path(name)]
    try:
        if builders:
            import cloudpickle  # functions of notebooks and scripts, by value

            return bytes(cloudpickle.dumps((builders, allowed)))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(
            f"{', '.join(builders)} cannot be sent to worker processes ({error}): put the builder into a module and "
            "name it my_module:build, or use workers=1."
        ) from error
    return pickle.dumps((builders, allowed))


def known_here(sent: bytes) -> None:
    """Take what ``in_workers`` gave, in a process that this program started."""
    builders, allowed = pickle.loads(sent)
    _builders.update(builders)
    _allowed.update(allowed)


@functools.lru_cache(maxsize=16)
def _external(name: str) -> External:
    prefix, colon, rest = name.partition(":")
    if colon and prefix in LIBRARIES:
        module = importlib.import_module(f"kdcache.backbones.libraries.{LIBRARIES[prefix]}")
        found: External = module.external(rest)
        return found
    return _stated(name, _builder(name))


def _builder(name: str) -> Builder:
    """The function that makes a network of one's own."""
    if name in _builders:
        return _builders[name]
    points = _entry_points()
    if name in points:
        build: Builder = points[name].load()
        return build
    path, _, function = name.partition(":")
    if name not in _allowed and path not in _trusted:
        raise OptionError(
            f"{name} names Python code, which is not imported because a file says so: if you trust it, run kdcache "
            f"--import {path} COMMAND …, or call kdcache.backbones.allow({name!r}) first."
        )
    found = getattr(_imported(path, name), function, None)
    if not callable(found):
        raise OptionError(f"{name}: {path} has no function {function!r}; write package.module:function.")
    return cast(Builder, found)


def _imported(module: str, named: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; the command line lacks it
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise OptionError(f"{named} cannot be imported ({error}): check its name, and where you are.") from error
    except Exception as error:  # whatever the user's code raises; named, and kept as the cause
        raise OptionError(f"{named} cannot be imported: {raised(error)}.") from error


def _stated(name: str, build: Builder) -> External:
    """What a builder's network states."""
    from kdcache.backbones.external import BUILT, External

    def made() -> Custom:
        try:
            found = build()
        except Exception as error:  # whatever the user's code raises; named, and kept as the cause
            raise OptionError(f"{name}: its builder failed with {raised(error)}.") from error
        if not isinstance(found, Custom):
            raise OptionError(
                f"{name} returned a {type(found).__name__}: it must return kdcache.backbones.Custom(net=…, takes=…, "
                "frames=…, size=…, axes=…), which states what a module does not say."
            )
        return found

    custom = made()
    spec = InputSpec(
        custom.modality,
        frames=custom.frames,
        size=custom.size,
        resize=custom.resize or round(custom.size * 8 / 7),
        stack=custom.stack,
    )
    if len(custom.mean) != spec.channels or len(custom.std) != spec.channels:
        raise OptionError(f"{name}: mean and std need {spec.channels} numbers each, one for each channel.")
    patterns = {p: a.removeprefix("T") if custom.takes == "CHW" else a for p, a in custom.axes.items()}

    def axes(layer: str, dimensions: int) -> str | None:
        fitting = (a for p, a in patterns.items() if fnmatchcase(layer, p) and len(a) == dimensions)
        return next(fitting, None)

    return External(
        name=name,
        library=(build.__module__ or "").partition(".")[0],
        version=_version(build, custom.net),
        takes=custom.takes,
        input=spec,
        mean=tuple(custom.mean),
        std=tuple(custom.std),
        make=lambda origin: made().net.eval(),
        axes=axes,
        pooled=custom.pooled,
        origin=BUILT,
        on_meta=False,
    )


def _version(build: Builder, net: nn.Module) -> str:
    """Digest of the code of a builder and its network, as far as Python knows it, and of their plain settings.

    These are the values that a builder encloses, and the numbers and texts that modules keep beside their parameters.
    """
    total = hashlib.sha256()
    classes = {type(m) for m in net.modules() if not type(m).__module__.startswith("torch")}
    code: list[Any] = [build, *sorted(classes, key=lambda c: (c.__module__, c.__qualname__))]
    for each in code:
        try:
            total.update(inspect.getsource(each).encode())
        except (OSError, TypeError):  # typed into an interpreter
            continue
    enclosed = [c.cell_contents for c in getattr(build, "__closure__", None) or ()]
    enclosed += [*(getattr(build, "__defaults__", None) or ()), *(getattr(build, "args", ()))]
    total.update(repr([value for value in enclosed if _is_plain(value)]).encode())
    for name, module in net.named_modules():
        plain = {k: v for k, v in sorted(vars(module).items()) if k != "training" and _is_plain(v)}
        total.update(f"{name}|{type(module).__qualname__}|{plain!r}".encode())
    return f"source {total.hexdigest()[:12]}"


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _is_path(name: str) -> bool:
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix not in LIBRARIES


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}

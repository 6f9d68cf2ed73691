"""Names of methods; each module is imported only when it is asked for, for it needs torch.

A method of one's own gets a name in one of four ways: ``register(name, module)``; an entry point of an installed
package (group ``kdcache.methods``); or by being named where something is trained, by import path
(``my_package.my_method``) or as a file (``path/to/my_method.py``), see ``load_method``. A name that only stands in a
file, such as a run's ``config.toml``, imports nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from kdcache.errors import OptionError, unknown
from kdcache.methods.checks import check_module

if TYPE_CHECKING:
    from kdcache.methods import anticipation, early, egornn, imprint, pmrd, recognition, relation, rulstm
    from kdcache.methods.contract import Method
    from kdcache.methods.pictures import Explained
    from kdcache.methods.search import Knob, Searched, Taught, TeacherRun

    # A type checker holds each to the contract; one by one, so that it names what does not fit.
    _ANTICIPATION: Method = anticipation
    _EARLY: Method = early
    _IMPRINT: Method = imprint
    _RECOGNITION: Method = recognition
    _RELATION: Method = relation
    _EGORNN: Method = egornn
    _PMRD: Method = pmrd
    _RULSTM: Method = rulstm
    _EXPLAINED: list[Explained] = [egornn, imprint, pmrd, relation]
    _SEARCHED: list[Searched] = [anticipation, early, egornn, imprint, pmrd, recognition, relation, rulstm]
    _TAUGHT: list[Taught] = [anticipation, early]

METHODS = {
    "anticipation": "kdcache.methods.anticipation",
    "early": "kdcache.methods.early",
    "imprint": "kdcache.methods.imprint",
    "recognition": "kdcache.methods.recognition",
    "egornn": "kdcache.methods.egornn",
    "pmrd": "kdcache.methods.pmrd",
    "relation": "kdcache.methods.relation",
    "rulstm": "kdcache.methods.rulstm",
}
"""Name of each method and where it is: the module that holds it, or a file. ``register`` adds to it."""

BUILT_IN = frozenset(METHODS)
"""Those of this package."""

GROUP = "kdcache.methods"
"""Entry points of installed packages: ``my-method = "my_package.my_method"``."""

_OF_FILE = "_kdcache_method_"  # and the name of the file: what its module is called
_OBJECTS: dict[str, Method] = {}  # registered as they are, without a module that another process could import


def method(name: str) -> Method:
    """The module of a method; ``OptionError`` with the nearest name for one that does not exist."""
    if name in _OBJECTS:
        return _OBJECTS[name]
    where = METHODS.get(name) or _entry_points().get(name)
    if where is None:
        raise _not_here(name)
    module = _from_file(where) if where.endswith(".py") else import_module(where)
    if name not in BUILT_IN:
        check_module(module, name)
    return cast("Method", module)


def names() -> list[str]:
    """Every method that has a name: those of this package first, then registered ones and entry points."""
    return list(dict.fromkeys([*METHODS, *_OBJECTS, *sorted(_entry_points())]))


def register(name: str, module: Any) -> None:
    """Give a method of one's own a name, for ``train``, ``ablate``, ``Run`` and everything else in this process.

    Args:
        name: as ``train(name, …)`` and ``config.toml`` have it.
        module: its import path, a file ``….py``, a module, or any object with what ``contract.Method`` lists, such as
            a ``types.SimpleNamespace`` of functions in a notebook. Several worker processes need one of the first
            three.

    Raises:
        OptionError: the name is a method of this package, or the module does not provide what a method must.
    """
    if name in BUILT_IN:
        raise OptionError(f"{name} is a method of kdcache: choose another name for yours.")
    _OBJECTS.pop(name, None)
    METHODS.pop(name, None)
    where = module if isinstance(module, str) else _importable(module)
    if where is None:
        check_module(module, name)
        _OBJECTS[name] = module
        return
    METHODS[name] = str(Path(where).resolve()) if where.endswith(".py") else where
    try:
        method(name)
    except BaseException:
        del METHODS[name]
        raise


def load_method(text: str) -> str:
    """The name of a method that the user names on purpose, which may import its module.

    Args:
        text: a name; an import path with a dot, ``my_package.my_method``, which is then its name; or a file
            ``path/to/my_method.py``, whose name is that of the file, ``my_method``.

    Raises:
        OptionError: nothing of that name, a file with the name of another method, or a module that does not provide
            what a method must.
    """
    if text in METHODS or text in _OBJECTS or text in _entry_points():
        return text
    if text.endswith(".py"):
        path = Path(text)
        if not path.is_file():
            raise OptionError(f"{text}: there is no such file; name the one that holds your method.")
        name = path.stem
        if METHODS.get(name, str(path.resolve())) != str(path.resolve()) or name in _OBJECTS:
            raise OptionError(f"{text}: there is another method {name!r}, so give the file another name.")
        register(name, str(path))
        return name
    if "." not in text or not all(part.isidentifier() for part in text.split(".")):
        raise unknown("method", text, names())
    try:
        register(text, text)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{text}.".startswith(f"{error.name}."):  # a module that it needs
            raise
        raise OptionError(
            f"Method {text}: there is no module {error.name!r}; install it, set PYTHONPATH, or name its file: "
            "path/to/my_method.py."
        ) from error
    return text


def origins() -> dict[str, str]:
    """Name → import path or file of each registered or named method, for ``register`` in another process."""
    return {name: where for name, where in METHODS.items() if name not in BUILT_IN}


def check_portable(name: str) -> None:
    """``OptionError`` for a method that other processes cannot import."""
    if name in _OBJECTS:
        raise OptionError(
            f"Method {name} was registered as an object of this process, which workers cannot import: put it into a "
            "file and register that, or set workers=1."
        )


def explained(name: str) -> Explained | None:
    """The module of a method that draws pictures of clips, None for one that does not."""
    module = method(name)
    return cast("Explained", module) if hasattr(module, "explain") else None


def knobs_of(name: str) -> tuple[Knob, ...]:
    """What a comparison may search of a method; empty where it declares nothing."""
    found: tuple[Knob, ...] = getattr(method(name), "KNOBS", ())
    return found


def teacher_of(name: str) -> TeacherRun | None:
    """How a method's teacher is trained alone; None where it does not say."""
    found: TeacherRun | None = getattr(method(name), "TEACHER", None)
    return found


def _not_here(name: str) -> OptionError:
    if "." in name:
        return OptionError(
            f"Method {name} is not of this package, and nothing is imported because a file names it: name it yourself "
            f"(--method {name}, kdcache.methods.load_method), or register it."
        )
    error = unknown("method", name, names())
    return OptionError(f"{error!s} A method of your own is named by its file or import path.")


@cache
def _entry_points() -> dict[str, str]:
    """Methods of installed packages that do not take a name of this one's."""
    return {point.name: point.value for point in metadata.entry_points(group=GROUP) if point.name not in BUILT_IN}


@cache
def _from_file(path: str) -> Any:
    """The module in a file, run once."""
    name = _OF_FILE + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _importable(module: Any) -> str | None:
    """How another process would import a module; None where it could not."""
    name = str(getattr(module, "__name__", ""))
    if not isinstance(module, ModuleType) or sys.modules.get(name) is not module or name == "__main__":
        return None
    return str(module.__file__) if name.startswith(_OF_FILE) else name

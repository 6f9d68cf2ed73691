"""What a method says of itself, read from its source: its module is not imported, for that takes torch and seconds."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

from kdcache.methods.registry import METHODS, method, names

OPTIONS = "Options"


def check_method(name: str) -> None:
    """``OptionError`` with the nearest name for a method that does not exist; nothing is imported."""
    if name not in names():
        method(name)  # says what is wrong


def summary(name: str) -> str:
    """The first sentence of a method's docstring, most often its paper; empty where there is none."""
    tree = _source(METHODS.get(name, ""))
    text = (tree and ast.get_docstring(tree)) or ""
    return " ".join(text.partition("\n\n")[0].replace("``", "").split())


def option_names(name: str) -> list[str] | None:
    """Fields of a method's ``Options``, inherited ones first; None where the source does not tell."""
    return _fields(METHODS.get(name, ""), OPTIONS)


def _source(module: str) -> ast.Module | None:
    """The source of a module, or of a file; None for one that is made elsewhere, such as in a notebook."""
    if not module:
        return None
    if module.endswith(".py"):
        file: str | None = module
    elif module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        spec = find_spec(module)
        file = spec.origin if spec else None
    if file is None or not file.endswith(".py"):
        return None
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _fields(module: str, name: str) -> list[str] | None:
    """Fields of the data class that ``name`` stands for in a module."""
    tree = _source(module)
    for node in tree.body if tree else []:
        match node:
            case ast.ClassDef(name=found) if found == name:
                inherited = [_fields(module, base.id) if isinstance(base, ast.Name) else None for base in node.bases]
                own = [
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                ]
                if any(names is None for names in inherited):
                    return None
                return list(dict.fromkeys([*(n for names in inherited for n in names or ()), *own]))
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Name(id=value)) if found == name:
                return _fields(module, value)
            case ast.ImportFrom(module=str(origin), level=0):
                if imported := next((a.name for a in node.names if (a.asname or a.name) == name), None):
                    return _fields(origin, imported)
    return None

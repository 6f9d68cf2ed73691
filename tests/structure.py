"""What the package's imports and names look like: ``python tests/structure.py [FOLDER]`` prints the counts.

FOLDER is the package (default: this checkout's ``kdcache``); of the layout of version 0.1 its own layers are used.
``tests/test_layers.py`` holds the package to the rules.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "kdcache"

LAYERS = [
    ["errors", "files", "csv_text", "seals", "log", "progress", "text", "device_errors", "runtime", "numerics",
     "stopwatch", "workers", "cluster", "prefetch", "manifest", "manifest_forms", "manifest_numbers",
     "plain_csv", "toml_text", "remote", "roots", "splits", "frame_rate", "sampling", "views", "levels",
     "recipe", "options", "picture_size", "replay"],
    ["backbones", "motion", "sources", "skeletons", "losses", "metrics"],
    ["streams", "store"],
    ["methods", "data"],
    ["engine", "datasets", "extraction", "exchange"],
    ["runs"],
    ["report", "demo"],
    ["cli", "__main__"],
]  # fmt: skip
"""Rooms (packages and modules directly under kdcache) from the bottom up: a room may import its own layer's and lower
ones. Within a layer, rooms may import each other as long as they form no circle."""

LAYERS_0_1 = [
    ["errors", "files", "manifest", "sampling", "views", "device", "processes", "ahead"],
    ["sources", "motion", "backbones", "store", "recipe", "losses", "methods", "streams", "sheet"],
    ["datasets", "extraction", "training", "evaluation"],
    ["fitting", "ablation", "inference"],
    ["cli", "demo", "__main__"],
]
"""Those that CONTRIBUTING.md of version 0.1 names, and the rooms that it leaves out where they fit."""

HEAVY = {
    "torch", "torchvision", "h5py", "hdf5plugin", "cv2", "decord", "av", "pandas", "numpy", "numba", "llvmlite",
    "triton", "matplotlib", "scipy", "tensorboard", "lmdb", "safetensors", "PIL", "ray", "tqdm", "urllib",
    "fsspec", "s3fs", "aiohttp",
}  # fmt: skip
"""Libraries that take long to import: what is kept off the start by importing it within a function."""


@dataclass(frozen=True)
class Import:
    """One import of one module."""

    importer: str
    target: str
    line: int
    local: bool
    """Within a function."""
    typing: bool
    """Under ``if TYPE_CHECKING``."""


@dataclass
class Package:
    """Modules by name, their imports of the package's own modules and of other libraries, and their classes."""

    root: Path
    trees: dict[str, ast.Module] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    imports: list[Import] = field(default_factory=list)
    others: list[Import] = field(default_factory=list)
    """``target`` is the library's top name."""

    @property
    def layers(self) -> list[list[str]]:
        """Those of the design, or of version 0.1."""
        return LAYERS_0_1 if f"{PACKAGE}.training" in self.trees else LAYERS

    def runtime(self) -> list[Import]:
        """Imports that are carried out."""
        return [i for i in self.imports if not i.typing]


def read(root: Path) -> Package:
    """Parse every file of a package."""
    package = Package(root)
    for path in sorted(root.rglob("*.py")):
        name = ".".join([PACKAGE, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        text = path.read_text()
        package.trees[name] = ast.parse(text)
        package.paths[name] = str(path.relative_to(root.parent))
        package.lines += text.count("\n")
    for name, tree in package.trees.items():
        for node, local, typing in _statements(tree):
            for target in _targets(node, package.trees):
                inside = target.split(".")[0] == PACKAGE
                found = Import(name, target if inside else target.split(".")[0], node.lineno, local, typing)
                (package.imports if inside else package.others).append(found)
    return package


def _statements(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Every import statement, whether it stands in a function, and whether for types alone."""
    stack: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while stack:
        node, local, typing = stack.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, local, typing
            continue
        inner = local or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        body = set(map(id, node.body)) if isinstance(node, ast.If) else set()
        for child in ast.iter_child_nodes(node):
            stack.append((child, inner, typing or (checked and id(child) in body)))


def _targets(node: ast.Import | ast.ImportFrom, modules: dict[str, ast.Module]) -> list[str]:
    """The modules that a statement imports: ``from package import module`` is the module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert not node.level, "relative import"
    base = node.module or ""
    return list(dict.fromkeys(n if (n := f"{base}.{a.name}") in modules else base for a in node.names))


def room(module: str) -> str:
    """``kdcache.store.shard`` → ``store``; the package itself is ``""``."""
    return [*module.split("."), ""][1]


def upward(package: Package) -> list[Import]:
    """Imports of a higher layer, or of a room in no layer."""
    level = {name: i for i, names in enumerate(package.layers) for name in names} | {"": -1}
    top = len(package.layers)
    return [
        i
        for i in package.runtime()
        if room(i.importer) and level.get(room(i.target), top) > level.get(room(i.importer), -1)
    ]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        stack = list(edges[start])
        while stack:
            if (node := stack.pop()) not in seen:
                seen.add(node)
                stack += edges.get(node, ())
        reach[start] = seen
    found = {tuple(sorted({a, *(b for b in reach[a] if a in reach.get(b, ()))})) for a in edges if a in reach[a]}
    return [list(nodes) for nodes in sorted(found) if len(nodes) > 1]


def module_circles(package: Package) -> list[list[str]]:
    """Modules that import each other, function-local imports included."""
    edges: dict[str, set[str]] = defaultdict(set)
    for i in package.runtime():
        if i.target != i.importer:
            edges[i.importer].add(i.target)
    return circles(edges)


def room_circles(package: Package) -> list[list[str]]:
    """Rooms that import each other."""
    edges: dict[str, set[str]] = defaultdict(set)
    for i in package.runtime():
        if room(i.target) != room(i.importer) and room(i.target) and room(i.importer):
            edges[room(i.importer)].add(room(i.target))
    return circles(edges)


def loaded(package: Package) -> dict[str, set[str]]:
    """For each module the modules of the package and the heavy libraries that importing it loads."""
    edges: dict[str, set[str]] = {name: set() for name in package.trees}
    for i in (*package.imports, *package.others):
        if not i.local and not i.typing and (i.target in HEAVY or i.target.split(".")[0] == PACKAGE):
            edges[i.importer].add(i.target)
    for name in package.trees:  # a module is loaded after the packages it lies in
        if "." in name:
            edges[name].add(name.rpartition(".")[0])
    result = {}
    for start in edges:
        seen = {start}
        stack = [start]
        while stack:
            new = edges.get(stack.pop(), set()) - seen
            seen |= new
            stack += new
        result[start] = seen
    return result


def needless(package: Package) -> list[Import]:
    """Function-local imports of the package's own modules that keep no heavy library off: all is loaded already.

    What a package hands out by ``__getattr__`` is loaded by name and counts as heavy. A command may import within
    itself whatever it needs: ``kdcache --help`` loads all of ``cli``.
    """
    loads = loaded(package)
    lazy = {n for n, tree in package.trees.items() if any(getattr(s, "name", "") == "__getattr__" for s in tree.body)}
    local = [i for i in package.runtime() if i.local and i.target not in lazy and room(i.importer) != "cli"]
    return [i for i in local if not ((loads[i.target] - loads[i.importer]) & HEAVY)]


def logic(tree: ast.Module) -> list[ast.stmt]:
    """What an ``__init__`` holds besides a docstring, imports, literals, ``__getattr__`` and ``__dir__``."""
    return [node for node in tree.body if not _plain(node)]


def _plain(node: ast.stmt) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test) and not node.orelse
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        try:
            ast.literal_eval(node.value)
        except ValueError:
            return False
        return True
    return False


def classes(package: Package) -> dict[str, list[str]]:
    """The modules that define a class of each name."""
    found = defaultdict(list)
    for name, tree in package.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return found


def counts(package: Package) -> dict[str, int]:
    """The numbers of the structure."""
    arrows = {(room(i.importer), room(i.target)) for i in package.runtime() if room(i.importer) != room(i.target)}
    local = [i for i in package.imports if i.local and not i.typing]
    return {
        "files": len(package.trees),
        "lines": package.lines,
        "files of more than 300 lines": sum(
            len((package.root.parent / path).read_text().splitlines()) > 300 for path in package.paths.values()
        ),
        "rooms": len({room(name) for name in package.trees} - {""}),
        "arrows between rooms": len(arrows),
        "upward imports": len(upward(package)),
        "circles of modules": len(module_circles(package)),
        "circles of rooms": len(room_circles(package)),
        "function-local imports of kdcache": len(local),
        "of these, needless": len(needless(package)),
        "function-local imports of other libraries": sum(i.local and not i.typing for i in package.others),
        "__init__ files with logic": sum(
            bool(logic(tree)) for name, tree in package.trees.items() if package.paths[name].endswith("__init__.py")
        ),
        "class names defined more than once": sum(len(where) > 1 for where in classes(package).values()),
    }


def main() -> None:
    """Print the counts, and below them what they count where the rules forbid it."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / PACKAGE
    package = read(root.resolve())
    for name, count in counts(package).items():
        print(f"{count:7,}  {name}")
    for title, found in (("upward", upward(package)), ("needless", needless(package))):
        for where, number in sorted(Counter(f"{package.paths[i.importer]} → {i.target}" for i in found).items()):
            print(f"{title}: {where}" + (f" ({number} ×)" if number > 1 else ""))
    for nodes in (*module_circles(package), *room_circles(package)):
        print("circle:", ", ".join(nodes))
    for name, tree in package.trees.items():
        if package.paths[name].endswith("__init__.py"):
            for node in logic(tree):
                print(f"logic: {package.paths[name]}:{node.lineno}")
    for name, where in sorted(classes(package).items()):
        if len(where) > 1:
            print(f"class {name}: {', '.join(where)}")


if __name__ == "__main__":
    main()

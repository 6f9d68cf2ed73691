"""The layers of the package and the rules of its imports and names (``structure.py`` prints the counts)."""

from __future__ import annotations

from pathlib import Path

import pytest
import structure

FORBIDDEN = {
    "methods": {"h5py", "hdf5plugin", "click", "pandas", "kdcache.store", "kdcache.sources"},
    "losses": {"h5py", "click", "pandas"},
    "metrics": {"torch", "h5py", "click"},
    "store": {"torch", "kdcache.sources", "decord", "av"},
    "skeletons": {"h5py"},
    "sources": {"torch", "h5py"},
}
"""Room → what it knows nothing of, not even within a function."""


@pytest.fixture(scope="module")
def package() -> structure.Package:
    return structure.read(Path(__file__).parents[1] / "kdcache")


def listed(package, imports):
    return sorted({f"{package.paths[i.importer]}:{i.line} imports {i.target}" for i in imports})


def test_every_room_has_its_layer(package):
    rooms = {structure.room(name) for name in package.trees} - {""}
    assert rooms <= {room for layer in structure.LAYERS for room in layer}


def test_imports_point_down(package):
    assert not listed(package, structure.upward(package)), (
        "a lower layer knows nothing of a higher one; see LAYERS in tests/structure.py"
    )


def test_no_modules_import_each_other(package):
    assert not structure.module_circles(package)


def test_no_rooms_import_each_other(package):
    assert not structure.room_circles(package)


def test_function_local_imports_keep_something_heavy_off(package):
    found = structure.needless(package)
    assert not listed(package, found), "what loads nothing heavy that is not loaded already is imported at the top"


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_what_a_room_knows_nothing_of(package, room):
    found = [
        i
        for i in (*package.runtime(), *package.others)
        if structure.room(i.importer) == room
        and any(i.target == name or i.target.startswith(f"{name}.") for name in FORBIDDEN[room])
    ]
    assert not listed(package, found)


def test_init_files_hold_no_logic(package):
    found = [
        f"{path}:{node.lineno}"
        for name, path in package.paths.items()
        if path.endswith("__init__.py")
        for node in structure.logic(package.trees[name])
    ]
    assert not found, "an __init__ holds a docstring, imports, __all__ and a lazy __getattr__"


def test_class_names_are_unique(package):
    found = {name: where for name, where in structure.classes(package).items() if len(where) > 1}
    assert not found


def test_the_rules_find_what_they_forbid(tmp_path):
    """A package in which everything is wrong."""
    root = tmp_path / "kdcache"
    files = {
        "__init__.py": "import os\n\n\ndef run():\n    return os\n",
        "errors.py": "def f():\n    from kdcache.store import a\n",
        "store/__init__.py": "",
        "store/a.py": "from __future__ import annotations\nfrom kdcache.store import b\n\n\nclass Same: ...\n",
        "store/b.py": "class Same: ...\n\n\ndef f():\n    from kdcache.store.a import Same\n",
        "store/c.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from kdcache.cli import main\n",
        "cli.py": "import torch\nfrom kdcache.store import a\n\n\ndef f():\n    import kdcache.store.b\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    package = structure.read(root)
    assert listed(package, structure.upward(package)) == ["kdcache/errors.py:2 imports kdcache.store.a"]
    assert structure.module_circles(package) == [["kdcache.store.a", "kdcache.store.b"]]
    assert structure.room_circles(package) == []
    assert [node.lineno for node in structure.logic(package.trees["kdcache"])] == [4]
    assert structure.classes(package)["Same"] == ["kdcache.store.a", "kdcache.store.b"]
    assert len(structure.needless(package)) == 2
    assert structure.counts(package)["function-local imports of kdcache"] == 3

"""Annotations as distributed → manifest: one module a dataset, named in ``registry.MODULES``.

A dataset module has a function ``manifest(root, *, options…)`` returning the rows and a ``DatasetReport`` of what was
and was not found, a ``LAYOUT`` string that shows how its files lie below the root, and a docstring whose first line
says what it is. Its options are the keyword arguments of ``manifest``; ``SETTINGS`` are the extraction settings it
asks for.
"""

from __future__ import annotations

from kdcache.datasets.registry import (
    describe,
    description,
    explain,
    layout,
    manifest_for,
    names,
    pairs_option,
    settings,
    status,
)

__all__ = [
    "describe",
    "description",
    "explain",
    "layout",
    "manifest_for",
    "names",
    "pairs_option",
    "settings",
    "status",
]

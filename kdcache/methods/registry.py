"""Names of methods; each module is imported only when it is asked for, for it needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from kdcache.errors import unknown

if TYPE_CHECKING:
    from kdcache.methods import anticipation, early, egornn, imprint, pmrd, recognition, relation, rulstm
    from kdcache.methods.contract import Method
    from kdcache.methods.pictures import Explained

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
"""Name of each method and the module that holds it."""


def method(name: str) -> Method:
    """The module of a method; ``OptionError`` with the nearest name for one that does not exist."""
    if name not in METHODS:
        raise unknown("method", name, sorted(METHODS))
    return cast("Method", import_module(METHODS[name]))


def explained(name: str) -> Explained | None:
    """The module of a method that draws pictures of clips, None for one that does not."""
    module = method(name)
    return cast("Explained", module) if hasattr(module, "explain") else None

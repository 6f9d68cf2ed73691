"""What the author of a method may have got wrong, named before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from kdcache.errors import OptionError
from kdcache.streams.axes import LETTERS

if TYPE_CHECKING:
    from kdcache.methods.contract import Input, Predictor

FUNCTIONS = ("inputs", "resolve", "stages", "predictor")
ROLES = ("clip", "observed", "action")


def check_module(module: Any, name: str) -> None:
    """``OptionError`` where a module does not provide what ``contract.Method`` lists."""
    lacking = [each for each in ("Options", *FUNCTIONS) if not hasattr(module, each)]
    if lacking:
        raise OptionError(
            f"Method {name} lacks {', '.join(lacking)}: a method provides Options, {', '.join(FUNCTIONS)}; see "
            "kdcache/methods/contract.py."
        )
    for each in FUNCTIONS:
        if not callable(getattr(module, each)):
            raise OptionError(f"Method {name}: {each} is no function.")
    options = module.Options
    if not (isinstance(options, type) and is_dataclass(options)):
        raise OptionError(f"Method {name}: Options is no data class; write @dataclass(frozen=True, kw_only=True).")
    known = fields(options)
    if "target" not in {field.name for field in known}:
        raise OptionError(
            f"Method {name}: Options has no target, the column of the labels: derive it from "
            "kdcache.methods.options.LabelOptions."
        )
    for field in known:
        if field.default is MISSING and field.default_factory is MISSING:
            raise OptionError(f"Method {name}: option {field.name} has no default; give it one.")


def check_inputs(inputs: Sequence[Input], name: str) -> None:
    """``OptionError`` for inputs that no cache could serve."""
    of = f"Method {name}"
    if not inputs:
        raise OptionError(f"{of} has no input: inputs(options) returns what it reads.")
    for one in inputs:
        if not hasattr(one, "accepts"):
            raise OptionError(f"{of}: inputs(options) holds {one!r}; it holds kdcache.methods.contract.Input objects.")
        for axes in one.accepts:
            wrong = [letter for letter in axes if letter not in LETTERS]
            if wrong or not axes or len(set(axes)) < len(axes) or "V" in axes:
                known = ", ".join(f"{letter} {meaning}" for letter, meaning in LETTERS.items() if letter != "V")
                raise OptionError(
                    f"{of}: input {one.name} has axes {axes!r}; write each letter once, without views: {known}."
                )
        if one.role not in ROLES:
            raise OptionError(f"{of}: input {one.name} has role {one.role!r}; it is one of {', '.join(ROLES)}.")
        if one.when not in ("always", "train"):
            raise OptionError(f"{of}: input {one.name} is read {one.when!r}; it is always or train.")
    twice = [one.name for i, one in enumerate(inputs) if one.name in {other.name for other in inputs[:i]}]
    if twice:
        raise OptionError(f"{of} has two inputs {twice[0]!r}: give each a name of its own.")
    if len({one.role == "clip" for one in inputs}) > 1:
        raise OptionError(f"{of} has inputs of clips and of pairs: give all the role clip, or observed and action.")
    if all(one.when == "train" for one in inputs):
        raise OptionError(f"{of} reads every input in training only, so it has none to answer from.")


def check_predictor(predictor: Predictor, inputs: Sequence[Input], name: str) -> None:
    """``OptionError`` for a predictor that reads what is there in training only, or nothing that is declared."""
    when = {one.name: one.when for one in inputs}
    if privileged := sorted(one for one in predictor.inputs if when.get(one) == "train"):
        raise OptionError(
            f'{name} predicts from {privileged[0]}, which it reads in training only: read inputs with when="always".'
        )
    if unknown := sorted(set(predictor.inputs) - set(when)):
        raise OptionError(f"{name} predicts from {unknown[0]!r}, which is no input of it; it has {', '.join(when)}.")
    if not predictor.inputs:
        raise OptionError(f"{name} predicts from nothing: name the inputs that its predictor reads.")

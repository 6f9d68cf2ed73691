"""What there is to train: methods with their papers, inputs, tables, presets and options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcache.methods import load_method, names
from kdcache.methods import method as method_module
from kdcache.methods.declared import summary
from kdcache.options import OptionDescription, described, shown
from kdcache.runs import presets
from kdcache.runs.config import SETTABLE, RunSettings
from kdcache.text import terms

Section = tuple[str, list[tuple[str, str]]]
"""Title, and terms with what they mean."""


@dataclass(frozen=True)
class MethodSummary:
    """One method in a line."""

    name: str
    text: str
    """The first sentence of its module: what it is, whose paper."""
    tables: list[str]
    presets: list[str]

    def __str__(self) -> str:
        return terms([(self.name, self.text)])


@dataclass(frozen=True)
class MethodList:
    """All methods."""

    methods: list[MethodSummary]

    def __str__(self) -> str:
        lines = terms([(one.name, one.text) for one in self.methods])
        return f"{lines}\n\n`kdcache methods NAME` lists inputs, tables, presets and options."

    def to_json(self) -> list[MethodSummary]:
        """As a list."""
        return self.methods


@dataclass(frozen=True)
class InputDescription:
    """What a method reads under one name, with its default options."""

    name: str
    stream: str
    """Pattern of the streams that will do."""
    axes: str
    role: str
    when: str
    """``always``, or ``train``: in training only."""
    extract: list[str]
    """What ``kdcache extract --for METHOD`` computes for it."""


@dataclass(frozen=True)
class TableSummary:
    """One table of a paper."""

    name: str
    caption: str
    rows: list[str]
    """Those that can be trained: ``kdcache ablate METHOD TABLE --only ROW``."""
    quoted: list[str]
    """Those that the paper only quotes."""


@dataclass(frozen=True)
class MethodDescription:
    """All of one method."""

    name: str
    text: str
    inputs: list[InputDescription]
    tables: list[TableSummary]
    presets: list[str]
    options: list[OptionDescription]
    """Fields of its ``Options``."""
    settings: list[OptionDescription]
    """Those of every run that ``--set`` takes too."""

    def __str__(self) -> str:
        read = [(one.name, _reading(one)) for one in self.inputs]
        sections = [("Inputs", read), *self.option_sections(), *self.table_sections()]
        return "\n\n".join([self.text, *(f"{title}:\n{terms(content)}" for title, content in sections)])

    def option_sections(self) -> list[Section]:
        """Options and settings."""
        return [
            (f"Options of {self.name} (--set NAME=VALUE)", _terms(self.options)),
            ("Settings of every run (--set NAME=VALUE)", _terms(self.settings)),
        ]

    def table_sections(self, rows: bool = True) -> list[Section]:
        """Tables, with their rows unless they are not wanted, and presets."""
        return _table_sections(self.tables, _preset_terms(self.name), rows)


def methods() -> MethodList:
    """Every method in a line; torch is not imported."""
    found = [MethodSummary(n, summary(n), list(presets.tables(n, check=False)), presets.names(n)) for n in names()]
    return MethodList(found)


def describe_method(name: str) -> MethodDescription:
    """All of one method: options with defaults and what their docstrings say.

    Raises:
        OptionError: an unknown method.
    """
    name = load_method(name)
    module = method_module(name)
    inputs = [
        InputDescription(one.name, one.stream, one.axes, one.role, one.when, list(one.extract))
        for one in module.inputs(module.Options())
    ]
    settings = described(RunSettings, SETTABLE)
    return MethodDescription(
        name=name,
        text=summary(name) or (module.__doc__ or "").partition("\n")[0],
        inputs=inputs,
        tables=table_summaries(name),
        presets=presets.names(name),
        options=_method_options(module.Options),
        settings=settings,
    )


def _method_options(kind: type) -> list[OptionDescription]:
    """The options of a method; where it completes them itself, with those defaults, and what is not used last."""
    options, made = described(kind), kind()
    if not hasattr(made, "completed"):
        return options
    its, unused = made.completed(), made.unused()
    decided = {one.name for one in options if getattr(made, one.name) is None and getattr(its, one.name) is not None}
    found = [
        replace(one, default=shown(getattr(its, one.name)), text=f"{one.text} Of a backbone: what its recipe says.")
        if one.name in decided
        else one
        for one in options
    ]
    return sorted(found, key=lambda one: one.name in unused)


def table_summaries(method: str) -> list[TableSummary]:
    """The tables of a method's paper; torch is not imported."""
    return [
        TableSummary(
            table.name,
            table.caption,
            [row.name for row in table.rows if not row.quoted],
            [row.name for row in table.rows if row.quoted],
        )
        for table in presets.tables(method, check=False).values()
    ]


def table_sections(method: str) -> list[Section]:
    """The tables of a method's paper with their rows, and its presets; torch is not imported."""
    return _table_sections(table_summaries(method), _preset_terms(method))


def fit_options(backbone: str | None = None) -> list[OptionDescription]:
    """What ``kdcache fit BACKBONE --set`` takes; with a backbone, the defaults of its recipe.

    Raises:
        OptionError: an unknown backbone, or one that cannot be fitted.
    """
    from kdcache import backbones
    from kdcache.methods.recognition_options import RECIPES, RecognitionOptions, with_recipe

    recipe: dict[str, Any] = {}
    if backbone is not None:
        with_recipe(RecognitionOptions(backbone=backbone))
        recipe = dict(RECIPES[backbones.canonical(backbone)])
    found = [one for one in described(RecognitionOptions) if one.name != "backbone"]
    return [
        replace(one, default=shown(recipe[one.name])) if one.default == "none" and one.name in recipe else one
        for one in found
    ]


def _terms(options: Iterable[OptionDescription]) -> list[tuple[str, str]]:
    return [(one.term, one.explanation) for one in options]


def _table_sections(
    tables: Sequence[TableSummary], named: Sequence[tuple[str, str]], rows: bool = True
) -> list[Section]:
    found: list[Section] = []
    if tables:
        found.append(("Tables", [(t.name, _table_text(t) if rows else t.caption) for t in tables]))
    if named:
        found.append(("Presets (--preset NAME)", list(named)))
    return found


def _preset_terms(method: str) -> list[tuple[str, str]]:
    """Each preset with what it sets."""
    found = []
    for name in presets.names(method):
        values = presets.preset(method, name) | presets.settings(method, name)
        said = [" ".join(f"{key}={shown(value)}" for key, value in values.items())]
        said += ["trains on all training clips"] * presets.retrains(method, name)
        found.append((name, "; ".join(filter(None, said)) or "the defaults"))
    return found


def _reading(one: InputDescription) -> str:
    when = "in training only" if one.when == "train" else "always"
    made = f"; extract computes {', '.join(one.extract)}" if one.extract else ""
    return f"{one.axes} of the clip {one.role!r}, {when}, from {one.stream}{made}"


def _table_text(table: TableSummary) -> str:
    text = f"{table.caption}. Rows: {'; '.join(table.rows)}"
    return text + (f". Quoted only: {'; '.join(table.quoted)}" if table.quoted else "")

"""Commands whose help also lists what belongs to an argument that is given: ``kdcache train METHOD --help``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

Section = tuple[str, Sequence[tuple[str, str]]]
"""Title, and terms with what they mean."""
_GIVEN = "kdcache.given"


class ExplainedCommand(click.Command):
    """A command with further sections in its help.

    Args:
        explain: the arguments as typed, by parameter (those not given are left out) → sections; it is called when help
            is asked for.
    """

    def __init__(self, *args: Any, explain: Callable[[Mapping[str, str]], Sequence[Section]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._explain = explain

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what was typed: ``--help`` is answered before anything else is parsed."""
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_GIVEN] = {name: value for name, value in typed.items() if isinstance(value, str)}
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The further sections."""
        super().format_epilog(ctx, formatter)
        for title, terms in self._explain(ctx.meta.get(_GIVEN, {})):
            with formatter.section(title):
                formatter.write_dl([(term, meaning) for term, meaning in terms])


def of_method(given: Mapping[str, str]) -> Sequence[Section]:
    """Options, tables and presets of the method that is to be trained."""
    if "method" not in given:
        return []
    from kdcache.runs.catalog import describe_method

    its = describe_method(given["method"])
    return [*its.option_sections(), *its.table_sections(rows=False)]


def of_tables(given: Mapping[str, str]) -> Sequence[Section]:
    """Tables of the method whose rows are to be compared."""
    if "method" not in given:
        return []
    from kdcache.methods import load_method
    from kdcache.runs.catalog import table_sections

    return table_sections(load_method(given["method"]))


def of_fit(given: Mapping[str, str]) -> Sequence[Section]:
    """Options of a fit, and of the dataset that it is made on."""
    if "backbone" not in given:
        return of_dataset(given)
    from kdcache.runs.catalog import fit_options

    found = [(one.term, one.explanation) for one in fit_options(given["backbone"])]
    return [(f"Options of a fit of {given['backbone']} (--set NAME=VALUE)", found), *of_dataset(given)]


def of_dataset(given: Mapping[str, str]) -> Sequence[Section]:
    """Options and layout of a dataset."""
    if "dataset" not in given:
        return []
    from kdcache import datasets

    its = datasets.description(given["dataset"])
    return [
        (f"Options of {its.name} (--set NAME=VALUE)", [(one.term, one.explanation) for one in its.options]),
        (f"Layout of {its.name} below --root", [(line.strip(), "") for line in its.layout.splitlines()]),
    ]

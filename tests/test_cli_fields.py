"""Options of the command line come from the fields of a dataclass, each written once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import click
import pytest
from click.testing import CliRunner

from kdcache.cli import main
from kdcache.cli.extract import extract
from kdcache.cli.fields import field_docs, field_options
from kdcache.streams.settings import StreamSettings, choices


@dataclass
class Made:
    """Every type that there is."""

    count: int = 3
    """How many
    of them."""
    rate: float | None = None
    """Per second. ``None``: as ``count`` says."""
    mode: Literal["fast", "slow"] | None = None
    """How. ``None``: fast where it can be."""
    names: tuple[str, ...] = ("a", "b")
    """Which."""
    under_score: str = "x"


@pytest.fixture
def command() -> click.Command:
    @click.command()
    @field_options(Made)
    def command(**options: Any) -> None:
        click.echo(repr(options))

    return command


def invoke(command: click.Command, *arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def test_values_arrive_in_their_types(command: click.Command) -> None:
    nothing = {"count": None, "rate": None, "mode": None, "names": None, "under_score": None}
    assert invoke(command) == repr(nothing)
    given = ["--count", "4", "--rate", "2", "--mode", "slow", "--names", "c,d", "--under-score", "y"]
    found = {"count": 4, "rate": 2.0, "mode": "slow", "names": ("c", "d"), "under_score": "y"}
    assert invoke(command, *given) == repr(found)
    assert "'quick' is not one of 'fast', 'slow'" in invoke(command, "--mode", "quick", status=2)


def test_help_is_the_string_below_the_field(command: click.Command) -> None:
    assert field_docs(Made)["count"] == "How many of them."
    assert "under_score" not in field_docs(Made)
    text = invoke(command, "--help")
    for line in (
        "--count INTEGER How many of them. [default: 3]",
        "--rate FLOAT Per second. [default: as count says]",
        "--mode [fast|slow] How. [default: fast where it can be]",
        "--names A,B,… Which. [default: a,b]",
        "--under-score TEXT [default: x]",
    ):
        assert line in text


def test_extract_has_an_option_for_each_setting() -> None:
    options = {p.name: p for p in extract.params}
    hints = get_type_hints(StreamSettings)
    for field in fields(StreamSettings):
        option = options[field.name]
        assert isinstance(option, click.Option)
        assert option.opts == [f"--{field.name.replace('_', '-')}"]
        assert option.help, field.name
        assert "[default: " in option.help, field.name
        assert "`" not in option.help
        if allowed := choices(hints[field.name]):
            assert isinstance(option.type, click.Choice)
            assert tuple(option.type.choices) == allowed
        elif int in (hints[field.name], *get_args(hints[field.name])):
            assert option.type is click.INT


def test_options_reach_the_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips.csv").write_text("clip_id,source,start_s,stop_s\n")
    given: dict[str, Any] = {}
    monkeypatch.setattr("kdcache.extraction.run.extract", lambda rows, **options: given.update(options) or Done())
    call = ["extract", "--manifest", str(tmp_path / "clips.csv"), "--root", str(tmp_path), "--stream", "rgb"]
    more = ["--short-side", "64", "--views", "centre,tl", "--bound", "10", "--rgb", "raw"]
    result = CliRunner().invoke(main, [*call, *more])
    assert result.exit_code == 0, result.output
    names = {f.name for f in fields(StreamSettings)}
    settings = {name: value for name, value in given.items() if name in names}
    assert settings == {"short_side": 64, "views": ("centre", "tl"), "bound": 10.0, "rgb": "raw"}


class Done:
    """A report of nothing."""

    stopped = False
    failures = ()

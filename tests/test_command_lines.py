"""Every command line in the documentation, in help texts and in messages is one that kdcache understands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kdcache import datasets
from kdcache.cli import main
from kdcache.methods import METHODS
from kdcache.methods.declared import option_names
from kdcache.runs.config import SETTABLE
from kdcache.runs.fit import SETTABLE as FIT_SETTABLE

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "manifests").glob("*.md")),
]
SOURCES = [*sorted((ROOT / "kdcache").rglob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
INLINE = re.compile(r"`(kdcache [^`]+)`")
ENDS = {"|", "&&", ";", "#", ">", "2>", "&"}
OWN = re.compile(r"….*|\{.*|\[?[A-Z][A-Z_…]*\]?$|.*\.py$|my_package\.")  # placeholders, and methods of one's own
PLACEHOLDER = re.compile(r"…|\{.*|\[?[A-Z][A-Z_…]*\]?$")


def lines_of(text: str, fenced: bool) -> Iterator[str]:
    """Command lines in prose (between backticks) and, where ``fenced``, at the start of a line."""
    for found in INLINE.finditer(text):
        line = " ".join(found[1].split()).replace("\\|", "|")  # as tables have it
        choices = re.search(r"[a-z0-9]+(?:\|[a-z0-9]+)+", line)  # kdcache import npy|hdf5
        yield from [line.replace(choices[0], each) for each in choices[0].split("|")] if choices else [line]
    if fenced:
        for found in re.finditer(r"^ *(kdcache .*)$", text.replace("\\\n", " "), re.MULTILINE):
            yield found[1]


def strings(path: Path) -> Iterator[str]:
    """The texts of a source; where something is put in, there are braces."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def command_lines() -> list[tuple[str, str]]:
    found = {(str(p.relative_to(ROOT)), line) for p in PAGES for line in lines_of(p.read_text("utf-8"), fenced=True)}
    for path in SOURCES:
        for text in strings(path):
            found |= {(str(path.relative_to(ROOT)), line) for line in lines_of(text, fenced="\n" in text)}
    return sorted(found)


def words_of(line: str) -> list[str]:
    """The words after ``kdcache``, up to a comment, a pipe or the next command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words = list(lexer)[1:]
    return words[: next((n for n, word in enumerate(words) if word in ENDS), len(words))]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the rest of them."""
    found: click.Command = main
    while isinstance(found, click.Group):
        if words and words[0].startswith("-"):
            option = options_of(found).get(words[0], words)
            assert option is not words, f"kdcache has no option {words[0]}"
            takes_value = isinstance(option, click.Option) and not option.is_flag
            words = words[2 if takes_value else 1 :]
            continue
        if not words or PLACEHOLDER.match(words[0]):
            return click.Command(None), []
        assert words[0] in found.commands, f"there is no command {words[0]!r}"
        found, words = found.commands[words[0]], words[1:]
    return found, words


def options_of(command: click.Command) -> dict[str, click.Parameter | None]:
    former = {spelling for one in command.params for spelling in getattr(one, "former", ())}
    known: dict[str, click.Parameter | None] = {"-h": None, "--help": None}
    return known | {s: one for one in command.params for s in (*one.opts, *one.secondary_opts) if s not in former}


def settable(command: click.Command, arguments: list[str], given: dict[str, str], sets: list[str]) -> set[str]:
    """What ``--set`` of a command takes; of a placeholder whatever any method or dataset takes."""
    name, found = command.name, set[str]()
    if name in ("train", "ablate"):
        if arguments and arguments[0] not in METHODS and not PLACEHOLDER.match(arguments[0]):
            return {each.partition("=")[0] for each in sets}  # a method of one's own
        methods = [arguments[0]] if arguments and arguments[0] in METHODS else list(METHODS)
        return {*SETTABLE, *(option for method in methods for option in option_names(method) or ())}
    if name == "fit":
        found = {*FIT_SETTABLE, *(option_names("recognition") or ())}
    dataset = arguments[0] if name == "manifest" and arguments else given.get("--dataset", "")
    known = [dataset] if dataset in datasets.names() else datasets.names()
    return found | {one.name for each in known for one in datasets.description(each).options}


def check(line: str) -> None:
    """Raise ``AssertionError`` for a command, an option or a name after ``--set`` that does not exist."""
    command, words = command_of(words_of(line))
    known = options_of(command)
    arguments, given, sets = list[str](), dict[str, str](), list[str]()
    while words:
        word = words.pop(0)
        if not re.match(r"--?[a-z]", word):
            arguments.append(word)
            continue
        name, equals, value = word.partition("=")
        assert name in known, f"{command.name} has no option {name}"
        option = known[name]
        if option is None or (isinstance(option, click.Option) and (option.is_flag or option.count)):
            continue
        if not equals:
            if not words:  # a sentence may name an option without its value
                continue
            value = words.pop(0)
        given[name] = value
        sets += [value] if name == "--set" else []
        if isinstance(option.type, click.Choice) and not PLACEHOLDER.match(value):
            assert value in option.type.choices, f"{name} {value}"
    most = sum(one.nargs if one.nargs > 0 else 100 for one in command.params if isinstance(one, click.Argument))
    assert len([a for a in arguments if a != "…"]) <= most, f"{command.name} takes no {arguments[-1]!r}"
    if command.name in ("train", "ablate", "methods") and arguments and not OWN.match(arguments[0]):
        assert arguments[0] in METHODS, f"there is no method {arguments[0]!r}"
    for each in sets:
        option = each.partition("=")[0].removeprefix("dataset.")
        assert PLACEHOLDER.match(option) or option in settable(command, arguments, given, sets), f"--set {each}"


LINES = command_lines()


@pytest.mark.parametrize(("place", "line"), LINES, ids=[f"{place}-{n}" for n, (place, _) in enumerate(LINES)])
def test_command_line(place, line):
    try:
        check(line)
    except AssertionError as error:
        raise AssertionError(f"{place}: {line}: {error}") from error


def test_there_are_many():
    places = {place.split("/")[0] for place, _ in LINES}
    assert len(LINES) > 150
    assert {"README.md", "manifests", "kdcache", "docs"} <= places


@pytest.mark.parametrize(
    "line",
    [
        "kdcache trian early",
        "kdcache train early --sharts out/",
        "kdcache train late",
        "kdcache train early --set alhpa=1",
        "kdcache train early --set tau_s=1 --set loss_d=both",
        "kdcache extract --dataset folder --set tau=2",
        "kdcache extract --manifest x.csv --codec gzip",
        "kdcache show out/ CLIP --output a.png",
        "kdcache weights lst",
        "kdcache evaluate runs/a -x",
        "kdcache inspect a b",
    ],
)
def test_what_does_not_exist_is_found(line):
    with pytest.raises(AssertionError):
        check(line)

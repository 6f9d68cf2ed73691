"""What the commands share: errors as one sentence, exit statuses, options that several take.

Exit statuses: 0 all is well; 1 an error, or damage that ``verify`` found; 2 a command line that cannot be understood;
3 (``SOME_FAILED``) all is done that could be, but clips, files or rows failed; 143 (``STOPPED``) stopped by a signal.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from kdcache.cluster.options import ENGINES
from kdcache.device_errors import lack_of_memory
from kdcache.errors import KdcacheError, OptionError
from kdcache.log import logger, show_log
from kdcache.remote import Address, is_address, without_scheme

SOME_FAILED = 3  # exit status: the run ended, but clips are listed in failures.csv, or rows of a comparison failed
STOPPED = 143  # exit status after SIGTERM or Ctrl-C: what was finished is kept

Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def sentences() -> Iterator[None]:
    """Print what goes wrong as one sentence and exit with 1."""
    try:
        yield
    except KdcacheError as error:
        raise click.ClickException(str(error)) from error
    except (MemoryError, RuntimeError, SystemError, ImportError, OSError, ValueError) as error:
        if (known := lack_of_memory(error)) is not None:
            raise click.ClickException(str(known)) from error
        if not isinstance(error, OSError) or error.errno in (
            None,
            errno.EPIPE,
        ):  # click ends quietly when whoever reads standard output has left
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror}.") from error


def _log_level(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Log less, or more, until the program ends; of several such options the last one counts."""
    if not given:
        return
    show_log()
    before = logger.level
    logger.setLevel(logging.ERROR if parameter.name == "quiet" else logging.DEBUG)
    ctx.find_root().call_on_close(lambda: logger.setLevel(before))


def verbosity() -> list[click.Option]:
    """``-q`` and ``-v``, which the program and every one of its commands has."""
    taken: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True, "callback": _log_level}
    return [
        click.Option(["-q", "--quiet"], help="Print errors and the result alone: no log, no progress.", **taken),
        click.Option(["-v", "--verbose"], help="Log more: what was chosen, and why.", **taken),
    ]


class Group(click.Group):
    """A group whose commands print what went wrong as one sentence and exit with 1, and have ``-q`` and ``-v``."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command, or a group of them."""
        super().add_command(cmd, name)
        for leaf in _leaves(cmd):
            known = {spelling for one in leaf.params for spelling in one.opts}
            leaf.params += [one for one in verbosity() if known.isdisjoint(one.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with sentences():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            sys.exit(STOPPED)


def _leaves(command: click.Command) -> list[click.Command]:
    """The command itself, or all commands of a group."""
    if not isinstance(command, click.Group):
        return [command]
    return [leaf for each in command.commands.values() for leaf in _leaves(each)]


class RenamedOption(click.Option):
    """An option whose ``former`` spellings are taken for one release, and not listed."""

    def __init__(self, declarations: Sequence[str], former: Sequence[str] = (), **settings: Any) -> None:
        super().__init__([*declarations, *former], **settings)
        self.former = tuple(former)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As it is called today."""
        every, self.opts = self.opts, [spelling for spelling in self.opts if spelling not in self.former]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


def out_option(former: Sequence[str] = (), **settings: Any) -> Callable[[Command], Command]:
    """``-o/--out``, of every command that writes; ``former``: what version 0.1 called it."""
    return click.option("-o", "--out", cls=RenamedOption, former=former, **settings)


class FolderPath(click.Path):
    """The path of a folder, which cannot be standard output."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse ``-``, which elsewhere means standard output, and what a shell makes of a variable that is not set."""
        if not os.fspath(value):
            self.fail("it is empty; name a folder (. is this one).", param, ctx)
        if value == "-":
            self.fail("- is standard output, and this is a folder; name one (./- if it is called that).", param, ctx)
        return super().convert(value, param, ctx)


def folder_option(**settings: Any) -> Callable[[Command], Command]:
    """``-o/--out`` of a folder."""
    return out_option(type=FolderPath(), **settings)


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Parse repeated ``key=value`` options."""
    out = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise OptionError(f"{option} {text!r}: write {option} key=value.")
        out[key] = value
    return out


def by_backbone(texts: tuple[str, ...], streams: Iterable[str]) -> dict[str, str]:
    """``i3d-rgb=FILE`` names its backbone; a bare ``FILE`` or ``random:0`` is for every backbone of the call."""
    from kdcache.backbones import canonical

    heads = {canonical(name.rpartition("/")[0]) for name in streams if "/" in name}
    out: dict[str, str] = {}
    for text in texts:
        head, equals, value = text.partition("=")
        out |= {canonical(head): value} if equals and canonical(head) in heads else dict.fromkeys(heads, text)
    return out


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; the rest keeps the default of the function they go to."""
    return {name: value for name, value in options.items() if value is not None}


def _load_method(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    from kdcache.methods import load_method

    return None if text is None else load_method(text)


method_option = click.option(
    "--method",
    "_method",
    metavar="MODULE|FILE.py",
    callback=_load_method,
    expose_value=False,
    is_eager=True,
    help="The method of your own that made the run, by import path or file.",
)


class PlacePath(click.Path):
    """A path, or an address such as ``s3://bucket/folder``, which stays text."""

    _EACH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^:/]*(?::\d+)?[^:]*|[^:]+")

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check an address; ``OptionError`` for one with credentials in it."""
        text = without_scheme(os.fspath(value))
        return str(Address.of(text)) if is_address(text) else super().convert(text, param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Several in a variable have colons between them."""
        return self._EACH.findall(rv)


def _folders(context: click.Context, parameter: click.Parameter, value: tuple[Path, ...]) -> tuple[Path, ...] | None:
    return value or None


def _one_folder(context: click.Context, parameter: click.Parameter, value: tuple[Path, ...]) -> Path | None:
    if len(value) > 1:
        raise click.BadParameter("a data set lies below one root; give it once.")
    return value[0] if value else None


def _root_option(callback: Callable[..., Any], text: str) -> Callable[[Command], Command]:
    return click.option(
        "--root",
        envvar="KDCACHE_DATA",
        multiple=True,
        type=PlacePath(),
        callback=callback,
        help=f"{text}  [env: KDCACHE_DATA]",
    )


root_option = _root_option(_one_folder, "Folder or address that sources are relative to.")
roots_option = _root_option(
    _folders, "Folder or address (s3://…) that sources are relative to; repeatable, and tried in that order."
)


def number_of_workers(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """A number from 1 on, or ``auto``."""
    if value is None or value == "auto":
        return value
    if not (value.isascii() and value.isdecimal()) or int(value) < 1:
        raise click.BadParameter(f"{value!r} is no number of workers; give one from 1 on, or auto.")
    return int(value)


_WORKERS: list[Callable[[Any], Any]] = [
    click.option(
        "--workers",
        metavar="N|auto",
        callback=number_of_workers,
        help="Processes that share the cores; auto: one a core, as far as memory allows.  [default: 1; on a cluster as "
        "many as it has room for]",
    ),
    click.option(
        "--engine", type=click.Choice(ENGINES), help="Where the work is done: this machine, or a Ray cluster.  [local]"
    ),
    click.option("--address", help="Of a Ray cluster's head, HOST:PORT, or auto.  [RAY_ADDRESS, or this machine's]"),
    click.option("--worker-cpus", type=float, help="Cores that each worker on the cluster takes.  [1]"),
    click.option("--worker-gpus", type=float, help="GPUs that each takes, or a part of one.  [1 where there are any]"),
]


def cluster_options(command: Any) -> Any:
    """How many workers, and where they are."""
    return functools.reduce(lambda made, option: option(made), reversed(_WORKERS), command)


def source_cache_options(command: Command) -> Command:
    """``--source-cache`` and ``--source-cache-gb`` of commands that read sources at addresses."""
    folder = click.option(
        "--source-cache",
        type=FolderPath(),
        help="Folder that sources at addresses are fetched into.  [default: ~/.cache/kdcache/sources]",
    )
    limit = click.option("--source-cache-gb", type=float, help="Gigabytes that these may take there.  [default: 20]")
    return folder(limit(command))


allow_absolute_option = click.option(
    "--allow-absolute", is_flag=True, help="Take absolute paths of sources, too, wherever they lie."
)

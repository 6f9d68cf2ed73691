"""Data roots: the folders and addresses that sources are relative to, and which paths may not be named."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import OptionError
from kdcache.remote import Address, is_address, without_scheme

Root = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""One folder or address, several that are tried in order, or none where all sources are absolute."""

_MANY = 100  # files named of one folder, from which on it is listed …
_SPARSE = 4  # … up to so many entries for each of them
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
_PATH = r"[\w-][\w .-]*+(?:/[\w .-]++)*+"
_PLAIN = re.compile(_PATH)  # of such a path nothing is wrong, unless it has two dots
_ALL_PLAIN = re.compile(rf"(?:{_PATH}\n)*+")
_AT_ONCE = 2**12  # paths that are looked at together
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|(https?|ftp|s3|gs|rtsp|file):/", re.IGNORECASE)


@dataclass(frozen=True)
class Roots:
    """Where sources are looked for.

    Attributes:
        folders: in the order in which they are tried; nothing below them may lead out of them.
        allow_absolute: whether a source may be an absolute path, wherever that lies.
        addresses: remote roots, tried after the folders.
    """

    folders: tuple[Path, ...] = ()
    allow_absolute: bool = False
    addresses: tuple[Address, ...] = ()

    @classmethod
    def of(cls, root: Root, allow_absolute: bool = False) -> Roots:
        """Roots as arguments give them; ``OptionError`` for an address with credentials in it."""
        if root is None:
            return cls((), allow_absolute)
        each = [root] if isinstance(root, (str, os.PathLike)) else root
        texts = [os.fspath(one) for one in each]
        folders = tuple(Path(without_scheme(text)) for text in texts if not is_address(text))
        return cls(folders, allow_absolute, tuple(Address.of(text) for text in texts if is_address(text)))

    def check(self, remote: bool = False) -> Roots:
        """These, if they are folders or, where these are taken, addresses, which are not looked at; ``OptionError``.

        There may be none where absolute paths are allowed.
        """
        if self.addresses and not remote:
            raise OptionError(
                f"{self.addresses[0]}: sources are read again in every epoch here, so the data root must be a local "
                "folder; copy them, or extract features from the address and train on those."
            )
        if not self.folders and not self.addresses and not self.allow_absolute:
            raise OptionError("No data root was given: pass --root with the folder that sources are relative to.")
        for folder in self.folders:
            if not folder.is_dir():
                raise OptionError(
                    f"{folder}: the data root is not a folder; pass --root with the one that sources are relative to."
                )
        return self

    def __str__(self) -> str:
        return " or ".join(map(str, (*self.folders, *self.addresses))) or "no root"


def is_url(source: str) -> bool:
    """Whether a source is an address (``https://…``, ``s3://…``); only a root may be one."""
    return _URL.match(source) is not None


def is_absolute(source: str) -> bool:
    """Whether a source is an absolute path, of this system or another."""
    return _ABSOLUTE.match(source) is not None


def wrong_paths(sources: Iterable[str], roots: Roots) -> dict[str, str]:
    """Why sources may not be named: source → sentence, of those that are wrong; whether they exist is not asked.

    Relative paths that lead out of one of the roots through links are wrong; where there is no root, letters decide.
    """
    each = list(dict.fromkeys(sources))
    plain = all(_are_plain(each[i : i + _AT_ONCE]) for i in range(0, len(each), _AT_ONCE))
    wrong = {} if plain else {s: reason for s in each if (reason := _lexical(s, roots.allow_absolute))}
    for folder in roots.folders:
        below = each if plain else [s for s in each if s not in wrong and not os.path.isabs(s)]
        wrong |= _through_links(below, os.path.realpath(folder), plain)
    return wrong


def _are_plain(sources: Sequence[str]) -> bool:
    """Whether nothing is wrong with any of some paths by its letters; a line end in one makes two of it, as plain."""
    text = "\n".join([*sources, ""])
    return ".." not in text and _ALL_PLAIN.fullmatch(text) is not None


def _lexical(source: str, allow_absolute: bool) -> str | None:
    """What is wrong with a path by its letters alone."""
    if _PLAIN.fullmatch(source) and ".." not in source:
        return None
    if not source.strip():
        return "source is empty; give a path relative to the data root"
    if "\0" in source:
        return f"source {source!r} holds a NUL character; remove it"
    if is_url(source):
        return f"source {source!r} is an address; give that of its folder as --root, and here the path below it"
    if is_absolute(source):
        if not allow_absolute:
            return (
                f"source {source!r} is absolute; give it relative to the data root, or allow absolute paths with "
                "--allow-absolute (allow_absolute=True)"
            )
        return None if os.path.isabs(source) else f"source {source!r} is no path of this system"
    if ".." in source and os.path.normpath(source.replace("\\", "/")).split("/", 1)[0] == "..":
        return f"source {source!r} leaves the data root; give a path inside it"
    return None


def _through_links(sources: Sequence[str], base: str, plain: bool) -> dict[str, str]:
    """Paths that symbolic links lead out of ``base``, a real path; folders are resolved once, files only if links.

    ``plain``: none of them ends in a slash or in dots."""
    folders = [source.rpartition("/")[0] for source in sources]
    within = base.rstrip(os.sep) + os.sep
    doubtful: dict[str, tuple[str, set[str] | None]] = {}  # folder → where it is, and its links if these are known
    for folder, files in Counter(folders).items():
        real = os.path.realpath(os.path.join(base, folder))
        links = _links(real, files) if (real + os.sep).startswith(within) else None
        if links is None or links or not plain:
            doubtful[folder] = real, links
    wrong: dict[str, str] = {}
    for source, folder in zip(sources, folders, strict=True) if doubtful else ():
        if (known := doubtful.get(folder)) is None:
            continue
        (real, links), leaf = known, source.rpartition("/")[2]
        if links is not None and leaf not in links and leaf not in ("..", ""):
            continue
        target = f"{real}/{leaf}"
        if leaf == ".." or os.path.islink(target):
            target = os.path.realpath(target)
        if not (target + os.sep).startswith(within):
            wrong[source] = (
                f"source {source!r} leaves the data root through a symbolic link to {target}; take a folder that "
                "holds all that links lead to as root, or list that as absolute paths with --allow-absolute"
            )
    return wrong


def _links(folder: str, named: int) -> set[str] | None:
    """The links in a folder of which many files are named; ``None`` where looking at each of these is quicker."""
    if named < _MANY:
        return None
    links: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number > _SPARSE * named:
                    return None
                if entry.is_symlink():
                    links.add(entry.name)
    except OSError:  # it is not there, or may not be listed
        return None
    return links

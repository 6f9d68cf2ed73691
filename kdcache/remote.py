"""Files at addresses (``s3://…``, ``https://…`` and what else fsspec offers): listing, fetching and writing them.

Every operation is tried up to ``ATTEMPTS`` times where the network is at fault, and ends in a ``RemoteError`` of one
sentence. Credentials come from where each protocol's library looks for them (``AWS_…`` variables, ``~/.aws``,
``~/.netrc``, ``~/.config/fsspec``), never from an address: one that holds any is refused.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdcache.errors import OptionError, RemoteError
from kdcache.log import logger

ATTEMPTS = 4
PAUSE_S = 0.5  # before the second attempt; doubled before each further one
CONNECT_S = 20.0
READ_S = 60.0  # without a byte
UNLISTED = (".", "?")  # how names begin that ``Remote.files`` leaves out
EXTRA = "pip install 'kdcache[remote]'"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WEB = ("http", "https")
_AT_ONCE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")  # what is put there appears whole or not at all
_LOCAL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Result = TypeVar("Result")


def is_address(text: str) -> bool:
    """Whether a text names a place that is reached through fsspec; ``file://`` is a path of this machine."""
    match = _SCHEME.match(text)
    return match is not None and match[1].lower() != "file"


def without_scheme(text: str) -> str:
    """The path of a ``file://`` address; any other text as it is."""
    match = _SCHEME.match(text)
    return _unquoted("/" + text[match.end() :].partition("/")[2]) if match and match[1].lower() == "file" else text


@dataclass(frozen=True)
class Address:
    """A folder or file at an address, without a slash at its end."""

    url: str

    @classmethod
    def of(cls, text: str) -> Address:
        """A checked address.

        Raises:
            OptionError: it holds a user, a password or a query (which may be a signature), or names no place.
        """
        scheme, _, rest = text.partition("://")
        host = rest.partition("/")[0]
        if "@" in host or "?" in rest or (scheme.lower() in _WEB and "#" in rest):
            shown = f"{scheme}://{rest.partition('?')[0].partition('#')[0].rpartition('@')[2]}"
            raise OptionError(
                f"{shown}: the address has a user, a password or a query, which would be stored with results; leave it "
                "out and put credentials where the protocol's library looks for them (docs/cluster.md)."
            )
        if not host or "\0" in text:
            raise OptionError(f"{text}: an address without a host or bucket; write it like s3://bucket/folder.")
        return cls(f"{scheme.lower()}://{rest.rstrip('/')}")

    @property
    def scheme(self) -> str:
        """``s3``, ``https`` …"""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rpartition("/")[2]

    def below(self, relative: str) -> Address:
        """A file or folder below this one.

        Raises:
            RemoteError: ``relative`` is empty or absolute, or leads out of this address through ``..``.
        """
        parts = relative.split("/")
        if not relative or "\0" in relative or relative.startswith("/") or ".." in parts:
            raise RemoteError(f"{relative!r} is no path below {self.url}; give a relative one without '..'.")
        return Address(f"{self.url}/{'/'.join(part for part in parts if part not in ('', '.'))}")

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class RemoteFile:
    """What is known of a file or folder without reading it."""

    size: int
    """Bytes; -1 where the server does not say."""
    version: str = ""
    """Changes with the content: an ETag, else the time of change; empty where there is neither."""
    folder: bool = False


class FetchStopped(Exception):
    """A transfer was given up because it was asked to stop."""


class Remote:
    """The file system that an address belongs to; a few bytes, to be made in each process that needs one."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._scheme = address.scheme
        self._fs = _file_system(address)

    @property
    def lists(self) -> bool:
        """Whether folders can be relied on to be listed; web servers may or may not."""
        return self._scheme not in _WEB

    def answers(self, address: Address) -> None:
        """Nothing, where the host or bucket of an address answers at all; else ``RemoteError``."""
        scheme, slashes, rest = address.url.partition("://")
        try:
            self.info(Address(f"{scheme}{slashes}{rest.partition('/')[0]}"))
        except RemoteError as error:
            if error.again:
                raise

    def info(self, address: Address) -> RemoteFile:
        """Size and version of a file, or that it is a folder; ``RemoteError``."""
        return _described(self._tried(address, lambda: self._fs.info(self._path(address))))

    def files(self, address: Address) -> dict[str, RemoteFile]:
        """What lies directly in a folder: name → file or folder; hidden entries are not listed. ``RemoteError``."""
        entries = self._tried(address, lambda: self._fs.ls(self._path(address), detail=True))
        own, found = self._key(self._path(address)), dict[str, RemoteFile]()
        for entry in entries:
            key = self._key(entry["name"])
            name = key[len(own) + 1 :]
            if not key.startswith(f"{own}/") or not name or "/" in name or name.startswith(UNLISTED):
                continue  # the folder's own key, or a link of a web page that leads elsewhere
            its = _described(entry)
            if self._scheme in _WEB and not its.folder:  # an index page names files, no sizes
                its = RemoteFile(-1, folder=True) if entry["name"].endswith("/") else self.info(address.below(name))
            found[name] = its
        return found

    def below(self, address: Address) -> dict[str, RemoteFile]:
        """All files below a folder: relative path → file; ``RemoteError``."""
        if self._scheme in _WEB:
            found = dict[str, RemoteFile]()
            for name, its in self.files(address).items():
                inner = self.below(address.below(name)) if its.folder else {}
                found |= {f"{name}/{path}": each for path, each in inner.items()} if its.folder else {name: its}
            return found
        entries = self._tried(address, lambda: self._fs.find(self._path(address), detail=True))
        own = len(self._key(self._path(address))) + 1
        named = {self._key(key)[own:]: _described(entry) for key, entry in entries.items()}
        return {name: its for name, its in named.items() if name and not its.folder}

    def read(self, address: Address) -> bytes:
        """A small file; ``RemoteError``."""
        return bytes(self._tried(address, lambda: self._fs.cat_file(self._path(address))))

    def gives_parts(self, address: Address) -> bool:
        """Whether parts of a file can be read: a web server may send all of it instead."""
        if self.lists:
            return True
        one = {"Range": "bytes=0-0"}
        return bool(self._tried(address, lambda: self._fs.info(self._path(address), headers=one)).get("size") == 1)

    def read_parts(self, address: Address, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of a file that allows it, given as (start, length), read side by side; ``RemoteError``."""
        starts, stops = [a for a, _ in parts], [a + n for a, n in parts]
        path = self._path(address)

        def fetch() -> list[bytes]:
            found = [bytes(b) for b in self._fs.cat_ranges([path] * len(parts), starts, stops, on_error="raise")]
            if any(len(b) != n for b, (_, n) in zip(found, parts, strict=True)):
                raise OSError("the transfer ended early")
            return found

        return self._tried(address, fetch)

    def fetch(self, address: Address, target: Path, size: int, stopped: Callable[[], bool] | None = None) -> None:
        """A file of a known size into a new local one; it is given up where ``stopped`` says so.

        Raises:
            FetchStopped: it was given up.
            RemoteError: it cannot be had, or something else arrived than ``size`` bytes.
            OSError: the local disk is full or cannot be written.
        """
        path = self._path(address)

        def once() -> None:
            self._fs.get_file(path, str(target), callback=_watched(stopped))
            if (arrived := target.stat().st_size) != size:
                raise OSError(f"{arrived} of {size} bytes arrived")

        self._tried(address, once)

    def put(self, source: Path, address: Address) -> RemoteFile:
        """A local file to an address, where it appears whole or not at all; what lies there afterwards.

        Raises:
            RemoteError: it cannot be written, or is not there in full afterwards.
        """
        if self._scheme in _WEB:
            raise RemoteError(f"{address}: nothing can be written to a web server; choose a bucket or a folder.")
        final = self._path(address)

        def once() -> None:
            if self._scheme in _AT_ONCE:
                self._fs.put_file(str(source), final)
                return
            self._fs.makedirs(final.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), f"{final}.partial")
            self._fs.mv(f"{final}.partial", final)

        self._tried(address, once)
        there = self.info(address)
        if there.size != (size := source.stat().st_size):
            raise RemoteError(f"{address}: {there.size} bytes lie there after {size} were sent; send it again.")
        return there

    def _path(self, address: Address) -> str:
        """How the file system names it."""
        if self._scheme in _WEB:
            head, slashes, rest = address.url.partition("://")
            host, slash, path = rest.partition("/")
            return f"{head}{slashes}{host}{slash}{_quoted(path)}"
        return str(self._fs._strip_protocol(address.url))

    def _key(self, name: str) -> str:
        """What a listing calls an entry, comparable with others."""
        return _unquoted(name).rstrip("/") if self._scheme in _WEB else name.rstrip("/")

    def _tried(self, address: Address, call: Callable[[], Result]) -> Result:
        """The result of a call, which is repeated where the network is at fault."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:  # fsspec's file systems raise errors of many libraries
                if isinstance(error, FetchStopped) or (isinstance(error, OSError) and error.errno in _LOCAL_DISK):
                    raise
                problem = _problem(address, error, attempt)
                if not problem.again or attempt == ATTEMPTS:
                    raise problem from error
                logger.warning("%s", f"{problem} Trying again ({attempt + 1} of {ATTEMPTS}).")
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


def _quoted(path: str) -> str:
    """A path as it stands in an address of the web."""
    from urllib.parse import quote  # not at the top: every command imports this file

    return quote(path)


def _unquoted(path: str) -> str:
    from urllib.parse import unquote

    return unquote(path)


def _watched(stopped: Callable[[], bool] | None) -> Any:
    """What fsspec tells of every block that arrives; it ends the transfer where ``stopped`` says so."""
    from fsspec.callbacks import Callback

    class Watch(Callback):  # type: ignore[misc]  # fsspec has no types
        def call(self, *_: Any, **__: Any) -> None:
            if stopped is not None and stopped():
                raise FetchStopped

    return Watch()


def _file_system(address: Address) -> Any:
    """fsspec's file system for an address, which waits no longer than it should."""
    try:
        import fsspec

        options: dict[str, Any] = {}
        if address.scheme in _WEB:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
            options["use_listings_cache"] = False
        elif address.scheme in ("s3", "s3a"):
            options["config_kwargs"] = {"connect_timeout": CONNECT_S, "read_timeout": READ_S}
            options["use_listings_cache"] = False
        return fsspec.filesystem(address.scheme, **options)
    except ImportError as error:
        raise OptionError(f"{address}: addresses need more packages ({error}); run {EXTRA}.") from error
    except ValueError as error:
        raise OptionError(f"{address}: {error}; use s3://, https:// or another protocol of fsspec.") from error


def _described(entry: dict[str, Any]) -> RemoteFile:
    if entry.get("type") == "directory":
        return RemoteFile(-1, folder=True)
    size = entry.get("size")
    changed = next(
        (entry[k] for k in ("LastModified", "last_modified", "Last-Modified", "mtime", "created") if entry.get(k)), ""
    )
    version = str(entry.get("ETag") or entry.get("etag") or entry.get("md5Hash") or changed).strip('"')
    web = str(entry.get("name", "")).startswith(tuple(f"{scheme}://" for scheme in _WEB))
    page = web and entry.get("mimetype") == "text/html"
    return RemoteFile(-1 if size is None else int(size), version, page)


def _problem(address: Address, error: Exception, attempts: int) -> RemoteError:
    """What went wrong, as one sentence, and whether to try again."""
    if address.scheme in _WEB and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec calls every failure to describe a file of the web so
    status = getattr(error, "status", None)  # of aiohttp
    name = type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return RemoteError(f"{address}: nothing there (404); check the address, or put it there.", missing=True)
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in name:
        return RemoteError(
            f"{address}: may not be read or written with the credentials at hand (403); check them and the address."
        )
    said = re.sub(r"\s+", " ", str(error)).strip().rstrip(".") or "no reason was given"
    if isinstance(error, TimeoutError) or "Timeout" in name:
        said = f"no answer in time ({CONNECT_S:g} s to connect, {READ_S:g} s to read)"
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return RemoteError(f"{address}: the server refuses ({status}, {said}); check the address.")
    tried = f" after {attempts} attempts" if attempts == ATTEMPTS else ""
    return RemoteError(f"{address}: cannot be reached{tried} ({name}: {said}); check the network.", again=True)

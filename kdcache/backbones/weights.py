"""Finding, fetching and naming checkpoints. No torch here: opening them is ``checkpoint``'s part.

A checkpoint is looked for as the file that was named, then in the folder ``$KDCACHE_WEIGHTS``, then in the user's
cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``, ``kdcache/weights``). A published file found by name is always held
against its published checksum; a file that the user names is taken as it is. Both have their digest in the recipe.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcache.backbones import crossfit
from kdcache.backbones.crossfit import CrossFitWeights
from kdcache.backbones.published import ADAPTED, TABLE, Published, published_for
from kdcache.backbones.spec import Weights
from kdcache.errors import OptionError, WeightsError, unknown
from kdcache.files import atomic, opened
from kdcache.progress import progress
from kdcache.seals import digest_of_file, is_broken

log = logging.getLogger("kdcache")

RANDOM = "random:"
RANDOM_RULE = 1  # version of the rule in checkpoint.random_init; part of recipes
_digests: dict[tuple[str, int, int], str] = {}
_announced: set[tuple[str, str]] = set()  # random weights are warned of once, not at each use


@dataclass(frozen=True)
class Choice:
    """The weights that were chosen: a file, or the seed of a random network."""

    path: Path | None = None
    seed: int | None = None
    spec: str | None = None
    """Of networks from elsewhere: ``pretrained``, ``pretrained:TAG`` or ``built``."""
    state: str | None = None
    """Of networks from elsewhere: digest of the weights in memory."""
    cross_fit: CrossFitWeights | None = None
    """Other networks that compute some of the clips, where ``path`` is of ``kdcache fit --cross-fit``."""

    def part(self, number: int) -> Choice:
        """The weights that were fitted without a part of the clips."""
        assert self.cross_fit is not None
        return Choice(path=self.cross_fit.files[number])

    def identity(self) -> dict[str, Any]:
        """What recipes say of the weights: a file's sha256 whatever its name, or the random spec and its rule.

        Of networks from elsewhere also the digest of the weights in memory, of cross-fitted weights the others'."""
        others = {} if self.cross_fit is None else {"cross_fit": self.cross_fit.identity()}
        if self.state is not None:
            named = {"spec": self.spec or f"{RANDOM}{self.seed}"} if self.path is None else {}
            its = {"sha256": weights_digest(self.path)} if self.path else {}
            return {**named, **its, "state": self.state, **others}
        if self.path is None:
            return {"spec": f"{RANDOM}{self.seed}", "rule": RANDOM_RULE}
        return {"sha256": weights_digest(self.path), **others}


def of_folder(folder: Path) -> Choice:
    """The weights of a folder of ``kdcache fit --cross-fit``, every file held against its recorded digest.

    Raises:
        WeightsError: it is no such folder, or a file is missing, or another one than when the parts were drawn.
    """
    path, sha256, cross = crossfit.load(folder)
    for file, recorded in ((path, sha256), *zip(cross.files, cross.parts, strict=True)):
        if weights_digest(file) != recorded:
            raise WeightsError(
                f"{file} is another file than {folder / crossfit.FILE} says: copy the whole folder again, or repeat "
                "the `kdcache fit --cross-fit`."
            )
    return Choice(path=path, cross_fit=cross)


def resolve(name: str, weights: Weights | Choice = None) -> Choice:
    """The weights that ``weights`` means for backbone ``name``: ``"random:SEED"``, a file, a folder of ``kdcache
    fit --cross-fit``, or None = published ones. A choice that was made before stays.

    Published ones that are not on this machine yet are fetched. Raises ``OptionError`` for a malformed random spec,
    ``WeightsError`` where no file is found or reached.
    """
    if isinstance(weights, Choice):
        return weights
    text = os.fspath(weights) if weights is not None else ""
    row = published_for(name)
    if weights is None and row is not None and not any((folder / row.file).is_file() for folder in folders()):
        log.info("Fetching the published weights of %s from %s.", row.name, row.url)
        return Choice(path=fetch(row.name))
    seed = random_seed(text)
    if seed is None and weights is not None and Path(text).is_dir():
        return of_folder(Path(text))
    if seed is None:
        return Choice(path=find(name, weights))
    if (name, text) not in _announced:
        _announced.add((name, text))
        log.warning("%s runs on RANDOM weights (%s): its features carry no learned meaning.", name, text)
    return Choice(seed=seed)


def as_recorded(choice: Choice, known: Mapping[str, Any]) -> Choice | None:
    """The weights as a recipe names them, ``known``; None where they are others.

    Where the recipe is of cross-fitted features the file of all clips will do: what is no clip of theirs is computed
    with it alone.
    """
    if choice.cross_fit is None and "cross_fit" in known:
        choice = replace(choice, cross_fit=CrossFitWeights.from_recipe(known["cross_fit"]))
    return choice if choice.identity() == known else None


def random_seed(text: str) -> int | None:
    """The seed in ``random:SEED``, None for any other text; ``OptionError`` where it is no number."""
    if not text.startswith(RANDOM):
        return None
    seed = text.removeprefix(RANDOM)
    if not (seed.isascii() and seed.isdigit()):
        raise OptionError(f"Weights {text!r}: write random: and a whole number, for example random:0.")
    return int(seed)


def folders() -> list[Path]:
    """Where checkpoints are looked for: ``$KDCACHE_WEIGHTS`` if set, then the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdcache" / "weights"
    own = os.environ.get("KDCACHE_WEIGHTS")
    return [Path(own).expanduser(), cache] if own else [cache]


FITTED = ("vacnn", "vacnn-small", "tsm-resnet50", "tsm-resnet50-online", "resnet34", "i3d-rgb", "resnext101")
"""Backbones that ``kdcache fit`` trains."""


_asked_by: ContextVar[str] = ContextVar("asked_by", default="--weights ")


@contextmanager
def asked_by(option: str) -> Iterator[None]:
    """Inside, errors advise to name a checkpoint by ``option`` (``--set init=``), none where that is empty.

    Else they name ``--weights``, which is the option of ``extract`` and ``predict``."""
    token = _asked_by.set(option)
    try:
        yield
    finally:
        _asked_by.reset(token)


def _or_another(which: str) -> str:
    """The end of a sentence that has said how to get the published file."""
    option = _asked_by.get()
    return f", name {which} checkpoint with {option}FILE, or ask for {option}random:0" if option else ""


def find(name: str, weights: Weights = None) -> Path:
    """The checkpoint file for backbone ``name``: ``weights`` itself, or found in ``folders()``.

    ``weights`` may be a path, the name of a table row (``i3d-rgb-charades``), a file name to look for, or None for the
    row that is published for ``name``. Raises ``WeightsError`` if there is none, or if a published file has another
    checksum.
    """
    if weights is not None and Path(weights).is_file():
        return Path(weights)
    wanted = name if weights is None else os.fspath(weights)
    row = published_for(name) if weights is None else TABLE.get(wanted)
    for folder in folders():
        candidate = folder / (row.file if row else wanted)
        if candidate.is_file():
            _check(candidate, row or _published_as(candidate.name))
            return candidate
    where = " or ".join(str(folder) for folder in folders())
    if row is not None:
        raise WeightsError(
            f"Weights for {name} ({row.file}) are not in {where}: {_how_to_get(row)}{_or_another('another')}."
        )
    if weights is None:
        fit = f", fit some with `kdcache fit {name}`" if name in FITTED else ""
        ways = f"{fit}{_or_another('a')}".removeprefix(", ")
        raise WeightsError(f"No weights are published for {name}: {ways}.")
    raise WeightsError(f"{wanted}: no such weights file here or in {where}; check the path given for {name}.")


def find_digest(sha256: str) -> Path | None:
    """The file in ``folders()`` with that sha256, whatever its name; None if there is none."""
    files = (f for folder in folders() if folder.is_dir() for f in sorted(folder.iterdir()) if f.is_file())
    return next((f for f in files if weights_digest(f) == sha256), None)


def path(name: str) -> Path:
    """Where the published checkpoint ``name`` lies on this machine; ``WeightsError`` if it does not."""
    return find(name, _row(name).name)


def fetch(name: str) -> Path:
    """Download the published checkpoint ``name`` into the user's cache folder and check it; one already there is kept.

    Raises ``WeightsError`` when it cannot be reached or written or has another checksum, naming the address and the
    place.
    """
    row = _row(name)
    target = folders()[-1] / row.file
    if target.is_file():
        _check(target, row)
        return target
    if row.by_hand:
        raise WeightsError(
            f"{row.file} is published on a page, not at an address: {_how_to_get(row)}{_or_another('a')}."
        )
    if not _writable(target.parent):
        raise WeightsError(
            f"{row.file} cannot be written to {target.parent}: set XDG_CACHE_HOME to a folder that can be written to"
            f"{_or_another('a')}."
        )
    try:
        with atomic(target) as partial:
            with urllib.request.urlopen(row.url, timeout=60) as response, partial.open("wb") as out:
                total = int(response.headers.get("Content-Length") or 0) or None
                with progress(row.file, total, "B") as bar:
                    while chunk := response.read(1 << 20):
                        out.write(chunk)
                        bar.update(len(chunk))
                if total and out.tell() != total:
                    raise ConnectionError(f"the connection broke after {out.tell()} of {total} bytes")
            _check(partial, row)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise WeightsError(
            f"{row.file} could not be downloaded ({error}): take {row.url} where there is a network and put it at "
            f"{target}{_or_another('another')}."
        ) from error
    if row.checksum == "not confirmed here":
        log.warning("%s: no published checksum is known; its sha256 is %s.", target, weights_digest(target))
    return target


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def list_weights() -> list[dict[str, Any]]:
    """Every published checkpoint: name, backbone, backbones that adapt it, file, where it is here (or None),
    checksum, licence, address, use."""
    rows = []
    for row in TABLE.values():
        here = next((str(f / row.file) for f in folders() if (f / row.file).is_file()), None)
        rows.append(
            {
                "name": row.name,
                "backbone": row.backbone,
                "adapted_for": [name for name in ADAPTED if published_for(name) is row],
                "file": row.file,
                "path": here,
                "checksum": row.checksum,
                "licence": row.licence,
                "url": row.url,
                "preprocessing": row.preprocessing,
                "converter": row.converter,
            }
        )
    return rows


def weights_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file (64 hex digits), remembered in this process while its size and time stay the same.

    Raises:
        WeightsError: a file that says its digest, as those of ``kdcache fit`` do, and it is another.
    """
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        found = digest_of_file(Path(path))
        if is_broken(Path(path)):
            raise WeightsError(
                f"{os.fspath(path)} is not as it was written, its SHA-256 differs: copy it again, or fit it again."
            )
        _digests[key] = found
    return _digests[key]


def _git_blob(path: Path) -> str:
    """The SHA-1 that git gives a file: of ``blob SIZE\\0`` and its bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with opened(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check(path: Path, row: Published | None) -> None:
    """Hold a published file against its checksum, where one is known."""
    if row is None or not (row.sha256 or row.git_blob):
        return
    found = f"sha256:{weights_digest(path)}" if row.sha256 else f"git-blob:{_git_blob(path)}"
    if found != row.checksum:
        raise WeightsError(
            f"{path} is not the published {row.file}: its checksum is {found}, expected {row.checksum}; delete it and "
            f"fetch {row.url} again{_or_another('another')}."
        )


def _row(name: str) -> Published:
    if name not in TABLE:
        raise unknown("weights", name, list(TABLE))
    return TABLE[name]


def _published_as(file: str) -> Published | None:
    return next((row for row in TABLE.values() if row.file == file), None)


def _how_to_get(row: Published) -> str:
    if row.by_hand:
        return f"download it from {row.url} and put it in {folders()[-1]}"
    return f"get it with `kdcache weights fetch {row.name}` (from {row.url})"

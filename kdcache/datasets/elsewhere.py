"""Manifests of data sets that lie at an address: made from a local likeness of what is there.

The likeness has the folders and names of the address. Small files of annotations are fetched into it; all other files
are there by name alone, without content, which suffices where a manifest follows from names and lists.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import ManifestError, OptionError, RemoteError, SourceError
from kdcache.log import logger
from kdcache.remote import Address, Remote

READ = (".csv", ".txt", ".json", ".toml", ".xml", ".lst", ".list", ".tsv")
MOST_BYTES = 256 * 2**20  # of one file of annotations
SKELETONS = "_skeleton3D.txt"  # of MSR Action3D: sources, not lists
THREADS = 16


@contextmanager
def likeness(address: Address, dataset: str) -> Iterator[Path]:
    """A folder that looks like the address, while the context is open.

    Raises:
        RemoteError: nothing lies there, or it cannot be listed or read.
        OptionError: the data set needs the content of a source.
    """
    remote = Remote(address)
    listed = remote.below(address)
    if not listed:
        raise RemoteError(f"{address}: nothing there, or nothing that is listed; check the address.", missing=True)
    read = [n for n, its in listed.items() if n.lower().endswith(READ) and its.size <= MOST_BYTES]
    read = [name for name in read if not name.endswith(SKELETONS)]
    logger.info("%s: %d files are listed, %d of them fetched to make the manifest", address, len(listed), len(read))
    with tempfile.TemporaryDirectory(prefix="kdcache-likeness-") as folder:
        root = Path(folder)
        for parent in sorted({name.rpartition("/")[0] for name in listed}):
            _inside(root, parent, address).mkdir(parents=True, exist_ok=True)
        for name in listed.keys() - read:
            _inside(root, name, address).touch()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda n: remote.fetch(address.below(n), _inside(root, n, address), listed[n].size), read))
        try:
            yield root
        except ManifestError as error:
            raise ManifestError(error.path.replace(folder, address.url), error.problems) from error
        except OptionError as error:
            raise OptionError(str(error).replace(folder, address.url)) from error
        except SourceError as error:
            raise OptionError(
                f"{dataset} with these options reads sources themselves, which lie at {address}: make the manifest "
                "where they are local (kdcache manifest), then extract with --manifest and this root."
            ) from error


def _inside(root: Path, name: str, address: Address) -> Path:
    if ".." in name.split("/"):
        raise RemoteError(f"{address}: the name {name!r} there leads out of it; rename or remove it.")
    return root / name

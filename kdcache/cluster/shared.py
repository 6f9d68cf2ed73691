"""Whether other machines see the same folders as this one."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import StoreError
from kdcache.files import temporary_name

SHARED_S = 10.0  # a file that another machine has made is seen after so long at the latest


@contextlib.contextmanager
def shared_folder(out: Path) -> Iterator[Path]:
    """Inside, a folder has a file by which other machines know that it is the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    path = (out / temporary_name("shared")).absolute()
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def await_shared(path: Path) -> None:
    """Wait a little for what network file systems show late.

    Raises:
        StoreError: it is not there.
    """
    until = time.monotonic() + SHARED_S
    while not path.exists():
        if time.monotonic() > until:
            raise StoreError(
                f"{path.parent}: {socket.gethostname()} does not see what this folder has; results and data must be in "
                "folders that all nodes of the cluster share, under the same names."
            )
        time.sleep(0.2)

"""The package's logger: what a long run reports goes through ``logging``, to the terminal unless told otherwise."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("kdcache")


class _BesideBars(logging.Handler):
    """Writes to stderr without breaking progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if logging.getLogger().handlers or sys.stderr is None:  # the user has set logging up since: those show it
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # as every logging handler: a message that cannot be written must not end the run
            self.handleError(record)


def show_log(level: int = logging.INFO) -> None:
    """Show what runs report on stderr, unless the user has given the logger ``kdcache`` or the root logger handlers.

    Called by ``train``, ``fit``, ``ablate`` and ``extract``; a second call does nothing.
    """
    if logger.handlers or logging.getLogger().handlers:
        return
    logger.addHandler(_BesideBars())
    if logger.level == logging.NOTSET:
        logger.setLevel(level)


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Inside, the package logs nothing below ``level``, unless it logs everything (``kdcache -v``)."""
    before = logger.level
    if before != logging.DEBUG:  # whoever asked for everything gets it
        logger.setLevel(max(before, level))
    try:
        yield
    finally:
        logger.setLevel(before)


class EachOnce(logging.Filter):
    """Used in ``with``: a message that has been logged inside is not logged again, for what many runs report alike."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        text = record.getMessage()
        known = text in self.seen
        self.seen.add(text)
        return not known

    def __enter__(self) -> EachOnce:
        logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeFilter(self)

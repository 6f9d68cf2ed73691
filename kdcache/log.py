"""The package's logger: what a long run reports goes through ``logging``, to the terminal unless told otherwise."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("kdcache")


class _BesideBars(logging.Handler):
    """Writes to stderr without breaking progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

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

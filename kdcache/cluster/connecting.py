"""Connecting to a Ray cluster, which is asked for an answer first: Ray itself waits for minutes."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from typing import Any

from kdcache.errors import OptionError
from kdcache.workers import kept_handlers

ANSWER_S = 10.0  # for the head of a cluster to take a connection

_CLIENT = "ray://"
_HOST = re.compile(r"\[?(?P<host>[^/]+?)\]?:(?P<port>\d{1,5})")


def connect(ray: Any, address: str | None) -> None:
    """Make Ray connect to a cluster, or start one of this machine; its own handlers of signals are not left.

    Raises:
        OptionError: there is none at the address, or it is one of Ray Client, which carries no streams.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # else its messages are coloured where there is no terminal, too
    named = address or os.environ.get("RAY_ADDRESS") or None
    if named is not None and named.startswith(_CLIENT):
        raise OptionError(
            f"address={named}: Ray Client ({_CLIENT}…) does not carry what workers say: work on a machine of "
            "the cluster, and name its head as host:6379."
        )
    with kept_handlers(signal.SIGTERM):  # Ray takes it over
        try:
            if named is not None and (host := _HOST.fullmatch(named)) is not None:
                _ask(ray, host["host"], int(host["port"]))
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OptionError(f"address={named}: no Ray cluster answers there ({first}).") from error


def _ask(ray: Any, host: str, port: int) -> None:
    """``OSError`` where nothing takes connections; Ray may mean another name of this machine by ``localhost``."""
    own = [ray.util.get_node_ip_address()] if host == "localhost" or host.startswith("127.") else []
    for last, name in enumerate([*own, host], start=-len(own)):
        try:
            socket.create_connection((name, port), ANSWER_S).close()
        except OSError:
            if last == 0:
                raise
        else:
            return

"""What a user says of a cluster; knows nothing of Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kdcache.errors import OptionError, unknown
from kdcache.runtime import worker_count

EngineName = Literal["local", "ray"]
MOST_WORKERS = 256  # of one command: each holds networks, and the driver hears of every clip
ENGINES: tuple[EngineName, ...] = ("local", "ray")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each worker takes of it."""

    address: str | None = None
    """As ``ray.init`` takes it (``auto``, ``host:6379``); ``None``: ``RAY_ADDRESS``, the cluster that this machine
    belongs to, or a new one of this machine alone."""
    cpus: float = 1
    """Cores of each worker; also its threads."""
    gpus: float | None = None
    """GPUs of each worker; ``None``: one where the work runs on GPUs and the cluster has any, else none."""

    def __post_init__(self) -> None:
        if not 0 < self.cpus < 10_000:
            raise OptionError(f"worker_cpus={self.cpus:g}: a worker takes a positive number of cores.")
        if self.gpus is not None and not 0 <= self.gpus < 1_000:
            raise OptionError(f"worker_gpus={self.gpus:g}: a worker takes no GPU, a part of one, or several.")
        gpus = self.gpus or 0
        if gpus > 1 and gpus != int(gpus):
            raise OptionError(f"worker_gpus={gpus:g}: a worker takes a part of one GPU, or whole ones.")
        for name, each in (("cpus", self.cpus), ("gpus", gpus)):
            if not math.isclose(each, round(each, 4), abs_tol=1e-9):
                raise OptionError(f"worker_{name}={each:g}: Ray counts in ten-thousandths; give four decimals at most.")

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, int(self.cpus))


def cluster_of(engine: str, address: str | None, cpus: float | None, gpus: float | None, device: str) -> Cluster | None:
    """The cluster that options ask for; ``None``: this machine's own processes.

    Raises:
        OptionError: an unknown engine, options of a cluster without ``engine="ray"``, or a device that it has not.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "ray":
        if device not in ("auto", "cpu", "cuda"):
            raise OptionError(
                f"device={device}: workers on a cluster see the GPUs that Ray gives them; take cuda or cpu."
            )
        return Cluster(address, 1 if cpus is None else cpus, gpus)
    for name, value in (("address", address), ("worker_cpus", cpus), ("worker_gpus", gpus)):
        if value is not None:
            raise OptionError(f"{name} is of a cluster: add engine=ray (--engine ray), or leave it out.")
    return None


def asked_of(cluster: Cluster, workers: int | str | None) -> int:
    """The most workers on a cluster: as many as asked for, or as it has room for (``None``, ``auto``).

    Raises:
        OptionError: no number from 1 on.
    """
    if workers in (None, "auto"):
        return MOST_WORKERS
    return worker_count(workers, 1)

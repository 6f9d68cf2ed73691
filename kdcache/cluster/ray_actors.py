"""Units of work on a Ray cluster: the ``Executor`` of ``kdcache.workers`` with actors on nodes in place of processes.

Workers are actors (``kdcache.cluster.actor``), one unit each at a time: the next is handed out when one is free, so
fast nodes do more and nothing piles up. A unit goes, where there is one, to the node that has read its sources before.
A worker that dies is replaced as a local one is. With a node that goes, its units go to others, and nobody is to blame.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from kdcache import __version__
from kdcache.cluster.actor import CRASH, ERROR, EVENT, LOG, NODE, Serving
from kdcache.cluster.connecting import connect
from kdcache.cluster.options import Cluster
from kdcache.errors import DeviceError, OptionError
from kdcache.log import logger
from kdcache.workers import EventT, StopFlag, UnitT, Work, exit_on_sigterm

POLL_S = 0.5  # how often the stop flag is looked at
NODE_S = 30.0  # a worker's death and that of its node are found out by different parts of Ray; so long for the latter
LOOK_AHEAD = 100  # units among which one is chosen by its sources
WAITING_S = 60.0  # without any worker for so long, it is said what is waited for
_NO_IMPORT = "failed to import on the worker"  # what Ray says of an actor whose class a node does not have


@dataclass(frozen=True)
class ConnectedCluster:
    """A cluster while this process is connected to it."""

    ray: Any
    cluster: Cluster
    gpus: float
    """Of each worker."""
    capacity: int
    """Workers that fit into it at once."""

    @property
    def sharing(self) -> int:
        """Workers that share a GPU."""
        return int(1 / self.gpus) if 0 < self.gpus < 1 else 1

    @property
    def device(self) -> str:
        """What a worker computes on: Ray shows it the GPUs that it was given and no others."""
        return "cuda" if self.gpus else "cpu"


@contextlib.contextmanager
def connected(cluster: Cluster, device: str) -> Iterator[ConnectedCluster]:
    """A connection to a cluster; one that the caller has made with Ray before is kept.

    Args:
        cluster: which, and what each worker takes of it.
        device: ``auto`` (GPUs where the cluster has any), ``cpu`` or ``cuda``.

    Raises:
        OptionError: Ray is not installed, there is no cluster at the address, or no node has what a worker takes.
        DeviceError: no node has the GPUs.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise OptionError("engine=ray needs Ray: pip install 'kdcache[ray]' here and on all nodes.") from error
    ours = not ray.is_initialized()
    if ours:
        connect(ray, cluster.address)
    try:
        some = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
        gpus = cluster.gpus
        if gpus is None:
            gpus = 1.0 if device == "cuda" or (device == "auto" and some) else 0.0
        if (device == "cuda") > (gpus > 0) or (device == "cpu") > (gpus == 0):
            raise OptionError(f"device={device} and worker_gpus={gpus:g} contradict each other: leave one of them out.")
        yield ConnectedCluster(ray, cluster, gpus, capacity(ray, cluster, gpus))
    finally:
        if ours:
            ray.shutdown()


def capacity(ray: Any, cluster: Cluster, gpus: float) -> int:
    """How many workers fit into the cluster at once.

    Raises:
        DeviceError, OptionError: no node has what one worker takes.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = [_fitting(node, cluster.cpus, gpus) for node in nodes]
    if not any(fits):
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
        kind = DeviceError if gpus > most["GPU"] else OptionError
        raise kind(
            f"No node of the cluster has {cluster.cpus:g} CPU(s) and {gpus:g} GPU(s) for a worker (the largest have "
            f"{most['CPU']:g} and {most['GPU']:g}): lower worker_cpus or worker_gpus."
        )
    return sum(fits)


def _fitting(node: dict[str, float], cpus: float, gpus: float) -> int:
    counts = [node.get("CPU", 0.0) // cpus]
    if gpus:
        each = node.get("GPU", 0.0)
        counts.append(each // gpus if gpus >= 1 else each * (1 // gpus))
    return int(min(counts))


class _Actor(Generic[UnitT, EventT]):
    """This process's end of a worker."""

    def __init__(self, ray: Any, number: int, work: bytes, resources: dict[str, float]) -> None:
        self.number = number
        self.node = ""
        self.host = ""
        self.unit: UnitT | None = None
        self.events: list[EventT] = []
        self.ready = False
        remote = ray.remote(Serving).options(max_concurrency=2, max_restarts=0, **resources)
        self.handle = remote.remote(number, logger.getEffectiveLevel())
        self.messages = self.handle.start.options(num_returns="streaming").remote(__version__, os.getcwd(), work)

    def give(self, unit: UnitT) -> None:
        self.unit, self.events, self.ready = unit, [], False
        self.messages = self.handle.run.options(num_returns="streaming").remote(pickle.dumps(unit))


class RayActors(Generic[UnitT, EventT]):
    """Units in actors on a cluster, which take the next one when they are ready.

    Args:
        connection: to the cluster, and what each worker takes of it.
        work: what they do; it is unpickled on the nodes.
        workers: how many actors, at most one a unit and as many as the cluster has room for.
        on_death: as of ``kdcache.workers.Processes``.
        on_lost: called when a node has gone with a worker's unit (None: it had none) and the events of this unit until
            then; returns units to run in its place.
        sources: what a unit reads, so that it goes to the node that has read it before.
        interruptible: whether SIGTERM ends the run, and all workers, by an exception.
    """

    def __init__(
        self,
        connection: ConnectedCluster,
        work: Work[UnitT, EventT],
        workers: int,
        on_death: Callable[[UnitT | None, Sequence[EventT], str], Iterable[UnitT]],
        on_lost: Callable[[UnitT | None, Sequence[EventT]], Iterable[UnitT]],
        sources: Callable[[UnitT], Collection[str]] = lambda unit: (),
        *,
        interruptible: bool = False,
    ) -> None:
        self._ray, self._work, self._sources = connection.ray, work, sources
        self._workers = min(workers, connection.capacity)
        self._on_death, self._on_lost, self._interruptible = on_death, on_lost, interruptible
        self._resources = {"num_cpus": connection.cluster.cpus, "num_gpus": connection.gpus}

    def run(self, units: Sequence[UnitT], on_event: Callable[[EventT], None], stop: StopFlag) -> None:
        """See ``kdcache.workers.Executor``."""
        with exit_on_sigterm() if self._interruptible else contextlib.nullcontext():
            self._run(units, on_event, stop)

    def _run(self, units: Sequence[UnitT], on_event: Callable[[EventT], None], stop: StopFlag) -> None:
        queue, work = list(units), pickle.dumps(self._work)
        read: dict[str, set[str]] = {}
        """Node → sources that it has read."""
        actors = [self._new(number, work) for number in range(min(self._workers, len(units)))]
        asked, heard = False, time.monotonic()
        try:
            while queue or any(actor.unit is not None for actor in actors):
                if stop.is_set() and not asked:
                    asked = True
                    queue.clear()
                    for actor in actors:
                        actor.handle.stop.remote()
                    continue
                for actor in [a for a in actors if a.ready and queue]:
                    self._hand_out(actor, queue, read)
                pending = [actor for actor in actors if not actor.ready]
                done, _ = self._ray.wait([a.messages for a in pending], timeout=POLL_S, fetch_local=False)
                if done or any(actor.unit is not None for actor in actors):
                    heard = time.monotonic()
                elif time.monotonic() - heard > WAITING_S:
                    logger.warning("Waiting for the cluster: no worker has started (each takes %s).", self._resources)
                    heard = time.monotonic()
                for actor in [a for a in pending if any(a.messages is messages for messages in done)]:
                    how = self._receive(actor, on_event)
                    if how is not None:
                        actors.remove(actor)
                        again = self._after(actor, how)
                        if not stop.is_set():
                            queue[:0] = again
                            if queue:
                                actors.append(self._new(actor.number, work))
        finally:
            for actor in actors:
                self._ray.kill(actor.handle)

    def _new(self, number: int, work: bytes) -> _Actor[UnitT, EventT]:
        return _Actor(self._ray, number, work, self._resources)

    def _hand_out(self, actor: _Actor[UnitT, EventT], queue: list[UnitT], read: dict[str, set[str]]) -> None:
        """The first unit of which the node has read a source, else the first that no other node has begun."""
        mine = read.setdefault(actor.node, set())
        others = set[str]().union(*(paths for node, paths in read.items() if node != actor.node)) - mine
        near = [set(self._sources(unit)) for unit in queue[:LOOK_AHEAD]]
        ranks = [0 if mine & paths else 2 if others & paths else 1 for paths in near]
        unit = queue.pop(ranks.index(min(ranks)))
        mine.update(self._sources(unit))
        actor.give(unit)

    def _receive(self, actor: _Actor[UnitT, EventT], on_event: Callable[[EventT], None]) -> str | None:
        """Take the next message; how the worker died, if it did.

        Raises:
            KdcacheError: what the worker cannot go on from.
        """
        try:
            kind, content = self._ray.get(next(actor.messages))
        except StopIteration:
            actor.ready, actor.unit, actor.events = True, None, []
            return None
        except self._ray.exceptions.RayError as error:
            if not actor.node and _NO_IMPORT in str(error):
                where, said = re.search(r"ip=([^,\s)]+)", str(error)), str(error).strip().splitlines()[-1]
                raise OptionError(
                    f"{where[1] if where else 'A node'} cannot import kdcache ({said}): install the same on all "
                    "nodes of the cluster."
                ) from error
            return type(error).__name__
        if kind == NODE:
            actor.node, actor.host = content
        elif kind == EVENT:
            actor.events.append(content)
            on_event(content)
        elif kind == LOG:
            logger.log(content[0], "%s", content[1])
        elif kind == ERROR:
            raise content
        elif kind == CRASH:
            logger.error("A worker%s ended with an error:\n%s", f" on {actor.host}" if actor.host else "", content)
            return str(content).strip().splitlines()[-1]
        return None

    def _after(self, actor: _Actor[UnitT, EventT], how: str) -> list[UnitT]:
        """What is run in place of a dead worker's unit."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)
        if actor.node and self._gone(actor.node):
            logger.warning("Node %s of the cluster has gone: its clips go to other nodes.", actor.host)
            return list(self._on_lost(actor.unit, actor.events))
        return list(self._on_death(actor.unit, actor.events, how))

    def _gone(self, node: str) -> bool:
        """Whether a node is no longer part of the cluster, or does not answer."""
        until = time.monotonic() + NODE_S
        while time.monotonic() < until:
            if not any(each["NodeID"] == node and each["Alive"] for each in self._ray.nodes()):
                return True
            if self._answers(node):
                return False
            time.sleep(POLL_S)
        return True

    def _answers(self, node: str) -> bool:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = self._ray.remote(_nothing).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote()
        try:
            self._ray.get(task, timeout=5)
        except self._ray.exceptions.RayError:
            return False
        return True


def _nothing() -> None:
    """A task that any living node runs at once."""

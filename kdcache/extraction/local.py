"""Units of an extraction: what a worker does with one, and where workers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.backbones.custom import in_workers, is_external, known_here
from kdcache.cluster.options import Cluster
from kdcache.cluster.ray_actors import RayActors, connected
from kdcache.cluster.shared import await_shared, shared_folder
from kdcache.extraction.deaths import after_death
from kdcache.extraction.nodes import Nodes
from kdcache.extraction.plan import WorkUnit, cut_again
from kdcache.extraction.worker import Event, WorkerConfig, run_unit
from kdcache.remote import is_address
from kdcache.runtime import kept_threads, limit_threads
from kdcache.streams.backbone import BackboneStream
from kdcache.workers import Processes, Serial, StopFlag

UNITS_A_NODE_WORKER = 4  # at least, of a worker on a cluster: machines differ in speed, and may go

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class ExtractionWork:
    """What every worker does: backbones are built once, then unit after unit is computed and committed."""

    config: WorkerConfig
    networks: bytes | None = None
    """Of workers in other processes: what makes the user's own networks known there."""
    shared: tuple[Path, ...] = ()
    """Of workers on other machines: what they must see, or else they would write elsewhere, or find no source."""

    def start(self, worker: int) -> Callable[[WorkUnit, Listener, StopFlag], None]:
        """See ``kdcache.workers.Work``."""
        from kdcache.extraction.features import Backbones

        configs = self.config.of_each_device()
        config = configs[worker % len(configs)]  # several GPUs: flow without networks
        for path in self.shared:
            await_shared(path)
        if self.networks is not None:
            known_here(self.networks)
        limit_threads(config.threads)
        nets = Backbones(config.streams, config.device, config.batch, config.compile)
        return lambda unit, emit, stop: run_unit(unit, config, nets, emit, stop)


def run_units(
    units: Sequence[WorkUnit],
    config: WorkerConfig,
    workers: int,
    on_event: Listener,
    stop: StopFlag,
    cluster: Cluster | None = None,
) -> None:
    """Run units in this process, or in ``workers`` processes where both are several, or by that many on a cluster.
    On a GPU of this machine networks are run by this process alone, and the others decode for it.

    A worker that dies loses only its shard in flight: a new one takes up the clips that were not committed. A source
    at which workers die twice is listed as failed and left out.

    Raises:
        KdcacheError: what a worker cannot go on from.
    """
    if not units:  # nothing heavy is imported
        return
    if cluster is None and config.device != "cpu" and any(isinstance(s, BackboneStream) for s in config.streams):
        from kdcache.extraction.pipeline import run_pipeline  # loads torch

        with kept_threads():
            limit_threads(config.threads)
            run_pipeline(units, config, workers, on_event, stop)
        return
    if cluster is None and (workers == 1 or len(units) == 1):
        with kept_threads():
            Serial(ExtractionWork(config)).run(units, on_event, stop)
        return
    from kdcache.backbones.external_weights import forget  # loads torch, as every worker does

    forget()
    own = [s.backbone for s in config.streams if isinstance(s, BackboneStream) and is_external(s.backbone)]
    work = ExtractionWork(config, in_workers(own) if own else None)
    deaths: dict[str, int] = {}

    def on_death(unit: WorkUnit | None, events: Sequence[Event], how: str) -> list[WorkUnit]:
        return after_death(unit, events, how, deaths, on_event)

    if cluster is None:
        Processes(work, workers, on_death).run(units, on_event, stop)
        return
    nodes = Nodes(config.out, on_event)
    with shared_folder(config.out) as mark, connected(cluster, config.device) as connection:
        if (parts := UNITS_A_NODE_WORKER * connection.capacity) < workers:
            units = cut_again(units, config.streams, parts)
        sources = [Path(path) for path in units[0].sources[:1] if not is_address(path)]
        work = replace(work, config=replace(config, device=connection.device), shared=(mark, *sources))
        heard = nodes.heard(on_death)
        RayActors(connection, work, workers, heard, nodes.lost, lambda unit: unit.sources).run(units, nodes.note, stop)

"""Several processes that train one run, as ``torchrun`` starts them: each computes a part of every batch.

All processes make the same plan of an epoch from the seed; of each batch a process takes every n-th example. Gradients
are averaged with the examples as weights, so every process takes the step that one takes on the whole batch.
Process 0 writes the run's folder; the others work in a copy that is gone afterwards.

Equal to one process, but for the last bits, is what is a mean over the examples of a batch. A loss that compares
examples with each other sees those of its own process, as do batch statistics, and dropout draws other masks.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from kdcache.data.loader import Plan
from kdcache.errors import DeviceError, OptionError
from kdcache.log import logger

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # process 0 may score and write for long while the others wait


@dataclass(frozen=True)
class Rank:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1

    def part(self, plan: Plan) -> Plan:
        """This process's examples of each batch; all of one that has fewer examples than there are processes."""
        own = slice(self.rank, None, self.world)
        return [(i[own], views[own]) if len(i) >= self.world else (i, views) for i, views in plan]

    def average(
        self, parameters: Sequence[nn.Parameter], terms: dict[str, Tensor], size: int, total: int, stop: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """Average gradients in place, and the terms of the loss, over the examples of all processes.

        Args:
            parameters: whose gradients are averaged.
            terms: of this process's ``size`` examples.
            size: see ``terms``.
            total: examples of the batch.
            stop: whether this process has been asked to stop.

        Returns:
            The terms of the whole batch, and whether any process has been asked to stop.
        """
        if self.world == 1:
            return terms, stop
        share = size / total if total >= self.world else 1 / self.world
        moved = [parameter.grad for parameter in parameters if parameter.grad is not None]
        parts = [gradient.flatten().float() for gradient in moved]
        values = torch.stack([value.detach().float() for value in terms.values()])
        asked = torch.tensor([float(stop)], device=values.device)
        flat = torch.cat([torch.cat([*parts, values]) * share, asked])
        distributed.all_reduce(flat)
        at = 0
        for gradient in moved:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return dict(zip(terms, flat[at:-1].unbind(), strict=True)), bool(flat[-1] > 0)

    def of_first(self, value: T) -> T:
        """What process 0 has, a plain value, for all: what follows from it must not differ."""
        if self.world == 1:
            return value
        told: list[T] = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()

    @contextmanager
    def folder(self, folder: Path) -> Iterator[Path]:
        """Where this process reads and writes a run: process 0 in its folder, the others in a copy of it."""
        if self.rank == 0:
            self.wait()  # until it has been copied
            yield folder
        else:
            with tempfile.TemporaryDirectory(prefix="kdcache-") as place:
                if folder.is_dir():
                    shutil.copytree(folder, Path(place) / "run")
                self.wait()
                yield Path(place) / "run"
        self.wait()


def here() -> Rank:
    """This process's place; processes that ``torchrun`` has started find each other when it is first asked.

    Each is given a GPU of its own, which it then sees as the only one.

    Raises:
        OptionError: fewer GPUs than processes of this machine.
        DeviceError: this process cannot be kept to one of several GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Rank()
    if not distributed.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        count = torch.cuda.device_count()
        if count and local >= count:
            raise OptionError(f"torchrun started process {local} here, and there are {count} GPUs: start one a GPU.")
        if count:  # before anything has been computed there
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local] if visible else str(local)
            if torch.cuda.device_count() > 1:  # where it was counted by CUDA itself, which looks once
                raise DeviceError(
                    f"process {local} of torchrun still sees {count} GPUs: give each process its own by "
                    "CUDA_VISIBLE_DEVICES, or install the driver's NVML (libnvidia-ml.so.1)."
                )
        distributed.init_process_group("cuda:nccl,cpu:gloo" if count else "gloo", timeout=TIMEOUT)
        if distributed.get_rank():
            logger.setLevel(max(logger.level, logging.WARNING))
    return Rank(distributed.get_rank(), world)

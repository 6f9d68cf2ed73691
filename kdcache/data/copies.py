"""Batches that a GPU copies while it computes on the one before: on a CUDA stream of their own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from kdcache.methods.contract import Batch


class Copies(Protocol):
    """Where batches are copied."""

    def issue(self) -> AbstractContextManager[Any]:
        """What is done inside is queued there, and returns at once."""
        ...

    def mark(self) -> Any:
        """What has been queued so far."""
        ...

    def wait(self, mark: Any, batch: Batch) -> None:
        """Let the computation go on after a mark alone, and keep the batch's memory until it is done with it."""
        ...


class CudaCopies:
    """A stream of its own on a GPU, which begins after what the current one has queued."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def issue(self) -> AbstractContextManager[Any]:
        """See ``Copies``."""
        return torch.cuda.stream(self.stream)

    def mark(self) -> torch.cuda.Event:
        """See ``Copies``."""
        event: torch.cuda.Event = self.stream.record_event()
        return event

    def wait(self, mark: torch.cuda.Event, batch: Batch) -> None:
        """See ``Copies``."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(mark)
        for value in batch.values():
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(current)


def one_ahead(batches: Iterator[Batch], copies: Copies) -> Generator[Batch]:
    """The batches in order; each is queued for copying before the one before it is handed out.

    Host memory from which a copy reads is page-locked, and torch uses it again only when the copy is done.
    """
    waiting: tuple[Batch, Any] | None = None
    while True:
        with copies.issue():
            batch = next(batches, None)
        queued = None if batch is None else (batch, copies.mark())
        if waiting is not None:
            copies.wait(waiting[1], waiting[0])
            yield waiting[0]
        if queued is None:
            return
        waiting = queued

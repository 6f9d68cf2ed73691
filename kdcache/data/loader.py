"""Plans of an epoch, and batches on the device: what does not lie there is read while the caller computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from kdcache.data.copies import CudaCopies, one_ahead
from kdcache.methods.contract import Batch, BatchSource, lengths_name, lengths_of
from kdcache.prefetch import prefetch

PREFETCH = 3  # batches that wait ready while the device computes

Plan = list[tuple[Tensor, Tensor]]
"""Of each batch: the examples, int64 ``[b]``, and the view of each."""


def common_views(source: BatchSource) -> int:
    """How many views every input of a source has; ``ValueError`` where they differ: a view would mean two things."""
    views = {name: stream.views for name, (stream, _) in source.inputs.items()}
    if len(set(views.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in views.items())
        raise ValueError(f"inputs of one example have different numbers of views ({shown})")
    return next(iter(views.values()))


def in_order(source: BatchSource, batch_size: int, view: int = 0) -> Plan:
    """All examples once, in order, in one view."""
    return [(index, torch.full_like(index, view)) for index in torch.split(torch.arange(len(source)), batch_size)]


def shuffled(source: BatchSource, batch_size: int, views: int, rng: np.random.Generator) -> Plan:
    """One pass in random order, each example in a random view.

    Where there are ``source.num_unlabeled``, half of every batch is drawn from them (each once before any comes again).
    The pass ends when all the others have been seen, or after ``source.steps`` batches, for which they come again and
    again, each once before any comes twice as often. The plan depends on ``rng`` alone, so it can be drawn again.
    """
    main = len(source) - source.num_unlabeled
    own, pass_steps = _own(source, batch_size), steps_of_a_pass(source, batch_size)
    steps = pass_steps if source.steps is None else source.steps
    order = _rounds(
        main, main if steps == pass_steps else steps * own, rng
    )  # of one pass the last batch may be smaller
    batches = list(torch.split(order, own))
    if source.num_unlabeled:
        other = max(1, batch_size - own)
        drawn = main + _rounds(source.num_unlabeled, len(batches) * other, rng)
        pairs = zip(batches, torch.split(drawn, other), strict=True)
        batches = [torch.cat([a, b[: max(1, len(b) * len(a) // own)]]) for a, b in pairs]
    return [(index, torch.from_numpy(rng.integers(0, views, len(index)))) for index in batches]


def steps_of_a_pass(source: BatchSource, batch_size: int) -> int:
    """Batches in which each of the examples that are not mixed in is seen once."""
    return -(-(len(source) - source.num_unlabeled) // _own(source, batch_size))


def _own(source: BatchSource, batch_size: int) -> int:
    """Examples of a batch that are not mixed in."""
    return max(1, batch_size // 2) if source.num_unlabeled else batch_size


def _rounds(count: int, needed: int, rng: np.random.Generator) -> Tensor:
    """``needed`` of the numbers below ``count``: permutations one after the other."""
    rounds = [rng.permutation(count) for _ in range(-(-needed // count))]
    return torch.from_numpy(np.concatenate(rounds)[:needed])


def feed(source: BatchSource, plan: Plan, device: torch.device) -> Iterator[Batch]:
    """The batches of a plan; those that do not lie on the device are read by a thread while the caller computes.

    A GPU copies them on a stream of its own, one ahead, where none of their inputs lies there."""
    made = _made(source, plan, device)
    streamed = not any(stream.resident for stream, _ in source.inputs.values())
    try:
        yield from one_ahead(made, CudaCopies(device)) if streamed and device.type == "cuda" else made
    finally:
        made.close()


def _made(source: BatchSource, plan: Plan, device: torch.device) -> Generator[Batch]:
    fields = {name: values.to(device) for name, values in source.fields.items()}
    fields |= {
        lengths_name(name): lengths[rows].to(device)
        for name, (stream, rows) in source.inputs.items()
        if (lengths := lengths_of(stream)) is not None
    }
    resident = all(stream.resident for stream, _ in source.inputs.values())
    fetched = _fetch_all(source, plan) if resident else prefetch(_fetch_all(source, plan), PREFETCH)
    try:
        for (index, views), arrays in zip(plan, fetched, strict=True):
            batch = {name: source.inputs[name][0].to_device(array) for name, array in arrays.items()}
            index = index.to(device, non_blocking=True)
            batch |= {name: values[index] for name, values in fields.items()}
            batch["view"] = views.to(device, non_blocking=True)
            yield batch
    finally:
        fetched.close()


def _fetch_all(source: BatchSource, plan: Plan) -> Generator[dict[str, Tensor]]:
    keys = next(rows for _, rows in source.inputs.values())  # inputs of one example draw one augmentation
    for index, views in plan:
        yield {name: stream.fetch(rows[index], views, keys[index]) for name, (stream, rows) in source.inputs.items()}

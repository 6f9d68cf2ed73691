"""A trained network, frozen, as the source of targets: computed once when they fit into memory, else in each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcache.methods.contract import Batch, Data, Items, Stream


class Teacher:
    """R(x_t) and R̄(x_t) of numbered examples: scores and feature maps, or logits and latents at every level.

    The targets of a frozen network never change, so all of them are computed once, for every view, and kept on the
    device if they fit into ``data.stream.room``; a batch then only looks its own up by the field ``target``. Otherwise
    a batch must bring the input ``x_t`` (see ``wants``) and the network runs again.
    """

    def __init__(self, network: nn.Module, data: Data, rows: Tensor, batch_size: int, maps: bool) -> None:
        """Freeze ``network``; its targets are those of ``rows``, int64 ``[n]``; without ``maps`` the scores alone."""
        self.network = network.eval().requires_grad_(False)
        self.data, self.rows, self.maps = data, rows, maps
        self.kept: list[Tensor] | None = None  # scores [n, V, …, C] and, with maps, [n, V, …]
        self._compute_all(batch_size)

    def _compute_all(self, batch_size: int) -> None:
        items = Items({"x_t": (self.data.stream, self.rows)}, {"target": torch.arange(len(self.rows))})
        views = self.data.stream.views
        for view in range(views):
            for batch in self.data.batches(items, batch_size, view):
                with self.data.autocast():
                    outputs = self._run(batch["x_t"])
                if self.kept is None:
                    size = len(self.rows) * views * sum(o[0].numel() * o.element_size() for o in outputs)
                    if size > self.data.stream.room:
                        self.data.say(f"teacher: its {size / 1e9:.1f} GB of targets do not fit; computed in each step")
                        return
                    self.kept = [o.new_empty((len(self.rows), views, *o.shape[1:])) for o in outputs]
                for store, output in zip(self.kept, outputs, strict=True):
                    store[batch["target"], view] = output

    @torch.no_grad()
    def _run(self, x: Tensor) -> list[Tensor]:
        scores, feature_map = self.network(x)
        return [scores, feature_map] if self.maps else [scores]

    def wants(self) -> tuple[dict[str, tuple[Stream, Tensor]], dict[str, Tensor]]:
        """Inputs and fields that a stage's items must bring: ``target``, and ``x_t`` if it is still needed."""
        inputs = {} if self.kept is not None else {"x_t": (self.data.stream, self.rows)}
        return inputs, {"target": torch.arange(len(self.rows))}

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores ``[B, …, C]`` and feature maps or latents of a batch (without ``maps`` the scores twice)."""
        if self.kept is not None:
            outputs = [store[batch["target"], batch["view"]] for store in self.kept]
        else:
            outputs = self._run(batch["x_t"])
        return outputs[0], outputs[-1]

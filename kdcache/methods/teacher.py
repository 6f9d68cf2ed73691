"""A trained network, frozen, as the source of targets: computed once when they fit into memory, else in each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcache.log import logger
from kdcache.methods.contract import Batch, BatchSource, Data, InputStream, Outputs

Sources = Mapping[str, tuple[InputStream, Tensor]]


class KeptTargets(nn.Module):
    """Named outputs of a teacher for all examples in every view, ``[n, V, …]`` each, as buffers."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        for name, output in outputs.items():
            self.register_buffer(name, output)

    def forward(self, batch: Batch) -> Outputs:
        """Those of a batch, by its ``target`` and ``view``."""
        return {name: kept[batch["target"], batch["view"]] for name, kept in self.named_buffers()}


class Teacher:
    """Named outputs of a frozen network for numbered examples: logits, and feature maps or latents.

    The targets of a frozen network never change, so all of them are computed once, for every view, and kept on the
    device if they fit into the memory that is left beside its streams; a batch then only looks its own up by the
    field ``target``. Otherwise a batch must bring the teacher's inputs (see ``wants``) and the network runs again.

    Args:
        network: is frozen and put into evaluation mode.
        forward: a batch of the teacher's inputs → named outputs.
        data: of the run.
        inputs: name → stream and rows, int64 ``[n]``, of the examples.
        batch_size: examples a forward pass.
        outputs: names of the outputs to give.
        one_shape: off where outputs differ in shape from clip to clip: they are then computed in each step.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Callable[[Batch], Outputs],
        data: Data,
        inputs: Sources,
        batch_size: int,
        outputs: Sequence[str],
        one_shape: bool = True,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.forward, self.data, self.inputs, self.outputs = forward, data, dict(inputs), tuple(outputs)
        self.kept: KeptTargets | None = None
        if one_shape:
            self._compute_all(batch_size)

    def _compute_all(self, batch_size: int) -> None:
        count = next(len(rows) for _, rows in self.inputs.values())
        streams = [stream for stream, _ in self.inputs.values()]
        views = min(stream.views for stream in streams)
        source = BatchSource(self.inputs, {"target": torch.arange(count)})
        for view in range(views):
            for batch in self.data.batches(source, batch_size, view):
                outputs = self.of(batch)
                if self.kept is None:
                    size = count * views * sum(o[0].numel() * o.element_size() for o in outputs.values())
                    if not all(stream.fits(size) for stream in streams):
                        held = all(stream.resident for stream in streams)
                        why = f"they take {size / 1e9:.1f} GB" if held else "nor is its input"
                        logger.info("teacher: its targets are not kept in memory (%s); computed in each step", why)
                        return
                    self.kept = KeptTargets({n: o.new_empty((count, views, *o.shape[1:])) for n, o in outputs.items()})
                for name, output in outputs.items():
                    self.kept.get_buffer(name)[batch["target"], view] = output

    def of(self, batch: Batch) -> Outputs:
        """The named outputs for a batch of the network's inputs, of whatever examples."""
        with self.data.autocast():
            return self._run(batch)

    @torch.no_grad()
    def _run(self, batch: Batch) -> Outputs:
        outputs = self.forward(batch)
        return {name: outputs[name] for name in self.outputs}

    def wants(self) -> tuple[dict[str, tuple[InputStream, Tensor]], dict[str, Tensor]]:
        """Inputs and fields that a stage's source must bring: ``target``, and the inputs if they are still needed."""
        count = next(len(rows) for _, rows in self.inputs.values())
        return ({} if self.kept is not None else self.inputs), {"target": torch.arange(count)}

    def __call__(self, batch: Batch) -> Outputs:
        """The named outputs of a batch, without gradient."""
        if self.kept is not None:
            return self.kept.forward(batch)
        return self._run(batch)

"""Recurrent layers written out step by step, for passes in which ``nn.GRU`` and ``nn.LSTM`` cannot take part.

``torch.func.vmap`` has no rule for the fused layers. These have the same parameters under the same names, and the same
answers but for the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UnrolledRecurrence(nn.Module):
    """One layer, in one direction or both, of sequences ``[B, T, d]`` from the state zero."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.lstm, self.directions = isinstance(layer, nn.LSTM), 1 + layer.bidirectional
        self.hidden, self.bias = layer.hidden_size, layer.bias
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)  # the very same: whatever moves it moves the layer's

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Latents ``[B, T, D]``, D = 2 ``hidden`` in both directions; they begin from zeros, and no state is kept."""
        each = [self._direction(x, "_reverse" * reverse) for reverse in range(self.directions)]
        return (each[0] if len(each) == 1 else torch.cat(each, -1)), None

    def _direction(self, x: Tensor, suffix: str) -> Tensor:
        weights = [getattr(self, f"{kind}_l0{suffix}") for kind in ("weight_ih", "weight_hh")]
        biases = [getattr(self, f"{kind}_l0{suffix}") if self.bias else None for kind in ("bias_ih", "bias_hh")]
        inputs = F.linear(x, weights[0], biases[0]).unbind(1)
        state = (x.new_zeros(()).expand(x.shape[0], self.hidden),) * 2
        found: list[Tensor] = []
        for step in reversed(inputs) if suffix else inputs:
            own = F.linear(state[0], weights[1], biases[1])
            state = _lstm(step + own, state[1]) if self.lstm else (_gru(step, own, state[0]),) * 2
            found.append(state[0])
        return torch.stack(found[::-1] if suffix else found, 1)


def _gru(step: Tensor, own: Tensor, h: Tensor) -> Tensor:
    r, z = torch.sigmoid(step.narrow(-1, 0, 2 * h.shape[-1]) + own.narrow(-1, 0, 2 * h.shape[-1])).chunk(2, -1)
    n = torch.tanh(step.chunk(3, -1)[2] + r * own.chunk(3, -1)[2])
    return n + z * (h - n)


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def can_unroll(layer: nn.RNNBase) -> bool:
    """Whether there is a form of it: one layer of gates without dropout or projection, examples first."""
    plain = layer.num_layers == 1 and layer.dropout == 0 and not layer.proj_size and layer.batch_first
    return plain and isinstance(layer, (nn.GRU, nn.LSTM))


@contextmanager
def unrolled(module: nn.Module) -> Iterator[None]:
    """Inside, every recurrent layer within ``module`` is written out; state dicts have the same names."""
    found = [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]
    layers = [(parent, name, child) for parent, name, child in found if isinstance(child, nn.RNNBase)]
    for parent, name, layer in layers:
        setattr(parent, name, UnrolledRecurrence(layer))
    try:
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)

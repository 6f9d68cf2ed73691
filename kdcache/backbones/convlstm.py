"""The convolutional LSTM of Ego-RNN: its eight convolutions run as two, that of the input for all steps at once.

Sources: Shi et al., "Convolutional LSTM network", NIPS 2015, without peepholes; Sudhakaran & Lanz, "Attention is all we
need", BMVC 2018, and its code (swathikirans/ego-rnn).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

GATES = ("i", "f", "c", "o")
"""Input, forget, candidate and output gate, in the order of the fused kernels."""


class ConvLSTM(nn.Module):
    """i, f, o = σ(W_x * x_t + b + W_h * h_{t-1}), g = tanh(…), c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    3 × 3 kernels, padding 1, c_0 = h_0 = 0. Input kernels have a bias that starts at 0 (also that of the forget gate),
    hidden ones have none; each gate's kernels start Xavier-normal.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(channels, len(GATES) * hidden, 3, padding=1)
        self.hidden = nn.Conv2d(hidden, len(GATES) * hidden, 3, padding=1, bias=False)
        if not self.input.weight.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels of each gate by themselves, as eight convolutions would be."""
        with torch.no_grad():
            for conv in (self.input, self.hidden):
                for kernels in conv.weight.chunk(len(GATES)):
                    nn.init.xavier_normal_(kernels)
            assert self.input.bias is not None
            self.input.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, channels, h, w]`` → the cell states c_1 … c_T, ``[B, T, hidden, h, w]``."""
        of_inputs = self.input(x.flatten(0, 1))
        of_inputs = of_inputs.reshape(*x.shape[:2], *of_inputs.shape[1:])
        cells: list[Tensor] = []
        h: Tensor | None = None
        for t in range(x.shape[1]):
            gates = of_inputs[:, t] if h is None else of_inputs[:, t] + self.hidden(h)
            i, f, g, o = gates.chunk(len(GATES), 1)
            new = i.sigmoid() * g.tanh()
            cells.append(new if not cells else f.sigmoid() * cells[-1] + new)
            h = o.sigmoid() * cells[-1].tanh()
        return torch.stack(cells, 1)


def fused(state: Mapping[str, Tensor], prefix: str = "lstm_cell.") -> dict[str, Tensor]:
    """Parameters of a ``ConvLSTM`` from the eight convolutions ``conv_<gate>_xx`` and ``conv_<gate>_hh`` of Ego-RNN's
    checkpoints; one of which a part is missing is left out."""
    joined = {"input.weight": "xx.weight", "input.bias": "xx.bias", "hidden.weight": "hh.weight"}
    names = {ours: [f"{prefix}conv_{gate}_{theirs}" for gate in GATES] for ours, theirs in joined.items()}
    return {
        ours: torch.cat([state[name] for name in theirs])
        for ours, theirs in names.items()
        if all(name in state for name in theirs)
    }

"""One-layer recurrent networks over levels of progress: the student is causal, the teacher bidirectional (§2.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kdcache.methods.contract import Outputs
from kdcache.numerics import no_autocast

Cell = Literal["gru", "lstm"]
State = Tensor | tuple[Tensor, Tensor]
"""What a network remembers of the levels so far: h ``[1, B, D]`` of a GRU, (h, c) of an LSTM."""


def in_float32(layer: nn.GRU | nn.LSTM, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """A recurrent layer outside automatic mixed precision: output and state, float32.

    Inside, cuDNN's recurrent layers compute in fp16 even where bf16 was asked for, and gradients vanish without the
    scaling of the loss that fp16 needs. The layers are small.
    """
    with no_autocast(x):
        output, state = layer(x.float(), state)
    return output, state


class Recurrent(nn.Module):
    """A classifier of each prefix x_1 … x_n: one recurrent layer and a linear classifier of its latent at every n.

    With ``bidirectional`` the latent at n also knows x_{n+1} … x_N. The number of levels may differ from call to call.
    x passes ``input`` first; ``dropout`` is applied to what comes out and to the latent before the classifier.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        hidden: int,
        cell: Cell = "gru",
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.input: nn.Module = nn.Identity()
        layer = nn.GRU if cell == "gru" else nn.LSTM
        self.layer = layer(features, hidden, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden * (2 if bidirectional else 1), num_classes)

    def forward(self, x: Tensor) -> Outputs:
        """``[B, N, d]`` → ``logits`` ``[B, N, num_classes]`` and ``latents`` ``[B, N, D]`` (D = 2 ``hidden`` if
        bidirectional)."""
        latents, _ = in_float32(self.layer, self.dropout(self.input(x)))
        return {"logits": self.classify(self.dropout(latents)), "latents": latents}

    @torch.no_grad()
    def step(self, x_n: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next level of B streams: x_n ``[B, d]`` and the state that the last call left (None: the beginning).

        Returns:
            logits ``[B, num_classes]``, those that ``forward`` has at this level, and the new state.

        Raises:
            ValueError: a bidirectional network.
        """
        if self.layer.bidirectional:
            raise ValueError("a bidirectional network cannot go step by step")
        latent, state = in_float32(self.layer, self.dropout(self.input(x_n[:, None])), state)
        return self.classify(self.dropout(latent))[:, 0], state

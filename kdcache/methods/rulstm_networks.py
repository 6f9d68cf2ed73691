"""The networks of RULSTM: rolling and unrolling LSTMs on one modality, and the attention that fuses several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdcache.methods.contract import Outputs
from kdcache.methods.recurrent import State, in_float32


class RollingUnrolling(nn.Module):
    """Names the action that begins after the last of S steps, from each of the last A steps on.

    The rolling LSTM summarises x_1 … x_t. At each of the last A steps the unrolling LSTM starts from its hidden and
    cell state, reads x_t over and over until the action begins, and its last hidden state is classified. ``dropout`` is
    applied to the inputs of both LSTMs and before the classifier.
    """

    def __init__(self, features: int, num_classes: int, hidden: int, dropout: float, answers: int) -> None:
        super().__init__()
        self.answers = answers
        self.dropout = nn.Dropout(dropout)
        self.rolling = nn.LSTM(features, hidden, batch_first=True)
        self.unrolling = nn.LSTM(features, hidden, batch_first=True)
        self.classify = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor, completion: bool = False) -> Outputs:
        """``[B, S, d]`` → ``logits`` ``[B, A, C]``, the earliest answer first, and ``context`` ``[B, A, 2 hidden]``,
        the rolling LSTM's states.

        ``completion``: the unrolling LSTM reads x_t … x_S, what is really to come, instead of x_t over and over.
        """
        B, S, _ = x.shape
        A = self.answers
        hidden, cell = self._roll(x)  # [B, A, H]
        # Step t = S - A + a (from 0) is A - a steps from the action. As in the authors' code x_t is read once more than
        # that, while completion reads as many steps as there are.
        length = A if completion else A + 1
        first = torch.arange(S - A, S, device=x.device)
        ahead = torch.arange(length, device=x.device) * int(completion)
        inputs = x[:, (first[:, None] + ahead).clamp(max=S - 1)]  # [B, A, length, d]
        count = length - torch.arange(A, device=x.device)
        state = (hidden.reshape(1, B * A, -1), cell.reshape(1, B * A, -1))
        unrolled, _ = in_float32(self.unrolling, self.dropout(inputs).flatten(0, 1), state)
        # Later answers unroll for fewer steps: what the LSTM does after these is not looked at.
        last = unrolled.view(B, A, length, -1)[:, torch.arange(A, device=x.device), count - 1]
        return {"logits": self.classify(self.dropout(last)), "context": torch.cat([hidden, cell], -1)}

    def _roll(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell states after each of the last A steps, both ``[B, A, H]``."""
        seen = self.dropout(x)
        before = x.shape[1] - self.answers
        state: State | None = None
        if before:
            _, state = in_float32(self.rolling, seen[:, :before])
        hidden, cell = [], []
        for t in range(before, x.shape[1]):  # one by one, for an LSTM returns no cell states but its last
            _, state = in_float32(self.rolling, seen[:, t : t + 1], state)
            hidden.append(state[0][0])
            cell.append(state[1][0])
        return torch.stack(hidden, 1), torch.stack(cell, 1)


class ModalityAttention(nn.Module):
    """Several branches, weighted at each time by what their rolling LSTMs remember (MATT)."""

    def __init__(self, branches: Mapping[str, RollingUnrolling], hidden: int, dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        width = 2 * hidden * len(branches)
        self.attend = nn.Sequential(
            nn.Linear(width, width // 4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width // 4, width // 8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width // 8, len(branches)),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """``[B, S, d]`` of each modality → ``logits`` ``[B, A, C]`` and ``weights`` ``[B, A, M]``, which sum to 1."""
        answers = [self.branches[name](inputs[name]) for name in self.branches]
        context = torch.cat([answer["context"] for answer in answers], -1)
        weights = torch.softmax(self.attend(context), -1)
        logits = torch.stack([answer["logits"] for answer in answers], -1)  # [B, A, C, M]
        return {"logits": (logits * weights[..., None, :]).sum(-1), "weights": weights}

"""One expert: a feed-forward network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Expert(nn.Module):
    """One feed-forward network: SwiGLU if gated, else GELU between two matrices."""

    def __init__(self, hidden_size: int, width: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.up = nn.Parameter(torch.empty((2 if gated else 1) * width, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw new weights, uniform with variance 1 / (3 · inputs), as nn.Linear does."""
        for weight in (self.up, self.down):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden_size] → [tokens, hidden_size]; no token at all is fine and gives zero gradients."""
        inner = F.linear(hidden, self.up)
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            return F.linear(F.silu(gate) * value, self.down)
        return F.linear(F.gelu(inner), self.down)

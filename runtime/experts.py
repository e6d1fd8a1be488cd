"""One expert: a feed-forward network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.spec.model import MoeFeedForward


class Expert(nn.Module):
    """One feed-forward network: SwiGLU if gated, else GELU or ReLU between two matrices; with biases or without."""

    up_bias: nn.Parameter | None
    down_bias: nn.Parameter | None

    def __init__(self, hidden_size: int, shape: MoeFeedForward) -> None:
        super().__init__()
        self.gated, self.relu = shape.gated, shape.relu
        inner = (2 if shape.gated else 1) * shape.expert_width
        self.up = nn.Parameter(torch.empty(inner, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, shape.expert_width))
        self.register_parameter("up_bias", nn.Parameter(torch.empty(inner)) if shape.bias else None)
        self.register_parameter("down_bias", nn.Parameter(torch.empty(hidden_size)) if shape.bias else None)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw new weights, uniform with variance 1 / (3 · inputs), as nn.Linear does."""
        for weight, bias in ((self.up, self.up_bias), (self.down, self.down_bias)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden_size] → [tokens, hidden_size]; no token at all is fine and gives zero gradients."""
        inner = F.linear(hidden, self.up, self.up_bias)
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * value
        else:
            inner = F.relu(inner) if self.relu else F.gelu(inner)
        return F.linear(inner, self.down, self.down_bias)

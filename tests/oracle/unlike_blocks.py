"""Blocks of models that are no decoders, in plain torch: T5's decoder, Swin's, patch merging, BERT's head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kept_blocks import RmsNorm
from torch import Tensor, nn


class Projections(nn.Module):
    """Queries of one sequence, keys and values of another, flash or scores in memory."""

    def __init__(self, hidden: int, heads: int, bias: bool, unfused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden, bias=bias) for _ in range(4))
        self.heads, self.unfused = heads, unfused

    def forward(self, x: Tensor, context: Tensor, causal: bool = False) -> Tensor:
        q, k, v = (
            part(of).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, of in ((self.query, x), (self.key, context), (self.value, context))
        )
        if self.unfused:
            out = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.output(out.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """T5's decoder block; the encoder's output is a parameter: it has a gradient and is not counted."""

    def __init__(
        self, hidden: int, heads: int, width: int, context: tuple[int, int], unfused: bool = False, relu: bool = False
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RmsNorm(hidden, fused=True) for _ in range(3))
        self.own, self.cross = (Projections(hidden, heads, False, unfused) for _ in range(2))
        self.up, self.down = nn.Linear(hidden, width, bias=False), nn.Linear(width, hidden, bias=False)
        self.activation = F.relu if relu else F.gelu
        self.encoded = nn.Parameter(torch.empty(*context, hidden))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.norms
        inner = first(x)
        x = x + self.own(inner, inner, causal=True)
        x = x + self.cross(second(x), self.encoded)
        return x + self.down(self.activation(self.up(third(x))))


class SwinBlock(nn.Module):
    """Attention in shifted windows of a square image."""

    def __init__(self, hidden: int, heads: int, side: int, window: int, unfused: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Projections(hidden, heads, True, unfused)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.side, self.window = side, window

    def forward(self, x: Tensor) -> Tensor:
        inner = self._windows(self.first(x))
        x = x + self._whole(self.attention(inner, inner), len(x))
        return x + self.down(F.gelu(self.up(self.second(x))))

    def _windows(self, x: Tensor) -> Tensor:
        count = self.side // self.window
        image = torch.roll(x.unflatten(1, (self.side, self.side)), (-1, -1), (1, 2))
        cut = image.unflatten(2, (count, self.window)).unflatten(1, (count, self.window)).transpose(2, 3)
        return cut.reshape(-1, self.window**2, x.shape[-1])

    def _whole(self, windows: Tensor, samples: int) -> Tensor:
        count = self.side // self.window
        cut = windows.reshape(samples, count, count, self.window, self.window, -1).transpose(2, 3)
        return torch.roll(cut.reshape(samples, self.side, self.side, -1), (1, 1), (1, 2)).flatten(1, 2)


class PatchMerging(nn.Module):
    """Four neighbours become one token."""

    def __init__(self, hidden: int, side: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * hidden), nn.Linear(4 * hidden, 2 * hidden, bias=False)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        half = self.side // 2
        image = x.unflatten(1, (half, 2, half, 2)).transpose(2, 3)
        return self.reduction(self.norm(image.reshape(len(x), half * half, -1)))


class BothSides(nn.Module):
    """Gemma 2's order of norms around one linear part."""

    def __init__(self, hidden: int, heads: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RmsNorm(hidden, fused=True) for _ in range(4))
        self.attention = Projections(hidden, heads, False)
        self.up, self.down = nn.Linear(hidden, width, bias=False), nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](x)
        x = x + self.norms[1](self.attention(inner, inner, causal=True))
        return x + self.norms[3](self.down(F.gelu(self.up(self.norms[2](x)))))


class Parallel(nn.Module):
    """GPT-NeoX's block (two norms), or Phi's (one)."""

    def __init__(self, hidden: int, heads: int, width: int, shared_norm: bool) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Projections(hidden, heads, True)
        self.up, self.down = nn.Linear(hidden, width), nn.Linear(width, hidden)
        self.shared_norm = shared_norm

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(x)
        read = inner if self.shared_norm else self.other(x)
        return x + self.attention(inner, inner, causal=True) + self.down(F.gelu(self.up(read)))

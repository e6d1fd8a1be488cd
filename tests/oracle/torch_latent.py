"""A block with multi-head latent attention in plain torch, as DeepSeek writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kept_blocks import FlashAttention, RmsNorm, SwiGlu, rotate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class LatentSizes:
    """Of a block with multi-head latent attention."""

    hidden: int
    heads: int
    width: int
    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int


class LatentAttention(nn.Module):
    """DeepSeek's: queries, keys and values through narrow layers with norms; one rotary key for all heads."""

    def __init__(self, sizes: LatentSizes, again: bool) -> None:
        super().__init__()
        self.sizes, self.again = sizes, again
        head = sizes.nope + sizes.rope
        self.q_down, self.q_up = _linear(sizes.hidden, sizes.q_rank), _linear(sizes.q_rank, sizes.heads * head)
        self.kv_down = _linear(sizes.hidden, sizes.kv_rank + sizes.rope)
        self.kv_up = _linear(sizes.kv_rank, sizes.heads * (sizes.nope + sizes.value))
        self.q_norm, self.kv_norm = RmsNorm(sizes.q_rank, fused=True), RmsNorm(sizes.kv_rank, fused=True)
        self.output = _linear(sizes.heads * sizes.value, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        sizes, (batch, tokens, _) = self.sizes, x.shape
        angles = x.new_ones(tokens, sizes.rope)
        q = self.q_up(self.q_norm(self.q_down(x))).view(batch, tokens, sizes.heads, -1).transpose(1, 2)
        q_nope, q_rope = q.split((sizes.nope, sizes.rope), -1)
        narrow, k_rope = self.kv_down(x).split((sizes.kv_rank, sizes.rope), -1)
        kv = self.kv_up(self.kv_norm(narrow)).view(batch, tokens, sizes.heads, -1).transpose(1, 2)
        k_nope, v = kv.split((sizes.nope, sizes.value), -1)
        k_rope = rotate(k_rope[:, None], angles, angles).expand(-1, sizes.heads, -1, -1)
        q = torch.cat((q_nope, rotate(q_rope, angles, angles)), -1)
        k = torch.cat((k_nope, k_rope), -1)
        v = v.contiguous()
        out = checkpoint(latent_flash, q, k, v, use_reentrant=False) if self.again else latent_flash(q, k, v)
        return self.output(out.transpose(1, 2).reshape(batch, tokens, -1))


def latent_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention with narrower values than keys."""
    return FlashAttention.apply(q, k, v)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class LatentBlock(nn.Module):
    """Latent attention and a dense SwiGLU."""

    def __init__(self, sizes: LatentSizes, again: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.norm = RmsNorm(sizes.hidden, fused=True), RmsNorm(sizes.hidden, fused=True)
        self.attention = LatentAttention(sizes, again)
        self.feed_forward = SwiGlu(sizes.hidden, sizes.width, fused=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.norm(x))

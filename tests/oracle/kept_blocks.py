"""Transformer blocks in plain torch, as people write them, for counting what torch itself keeps.

Norm and SwiGLU come in two forms: one fused kernel each, as Megatron-Core, Transformer Engine, Liger or torch.compile
have them, and eager operations, as in the code of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


@dataclass(frozen=True)
class Sizes:
    """Of one block; `experts` 0 is a dense block."""

    hidden: int = 1024
    heads: int = 16
    kv_heads: int = 16
    width: int = 2816
    experts: int = 0
    top_k: int = 2
    shared: int = 0
    index_add: bool = False
    """Experts' outputs are summed by index_add instead of scatter_add."""
    vocab: int = 8192
    ulysses: int = 1
    """Parts of the sequence, which are parts of the heads inside the attention core."""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


class _FusedNorm(torch.autograd.Function):
    """One kernel: keeps its input and a number for each token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class RmsNorm(nn.Module):
    def __init__(self, hidden: int, fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return _FusedNorm.apply(x, self.weight)
        precise = x.float()
        precise = precise * torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * precise.to(x.dtype)


class _FusedSwiGlu(torch.autograd.Function):
    """One kernel: keeps both inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.empty_like(gate), torch.empty_like(up)


class SwiGlu(nn.Module):
    def __init__(self, hidden: int, width: int, fused: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        return self.down(_FusedSwiGlu.apply(gate, up) if self.fused else F.silu(gate) * up)


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention; fewer key heads than query heads are not copied, as in the kernels of flash-attn."""
    if k.shape[1] != q.shape[1]:
        return FlashAttention.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class FlashAttention(torch.autograd.Function):
    """Keeps queries, keys, values, output and a number in fp32 for each row (flash-attn's own backward does)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # As torch lays it out: [batch, tokens, heads, channels] seen from heads.
        batch, heads, tokens, _ = q.shape
        out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Exchange(torch.autograd.Function):
    """An all-to-all, as far as memory goes: something of another shape, and nothing kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return x.new_empty(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty(ctx.shape), None


def ulysses(q: Tensor, k: Tensor, v: Tensor, ranks: int) -> Tensor:
    """Whole sequences of some heads; fewer key heads than ranks are copied. Source: arXiv 2309.14509."""
    batch, _, tokens, channels = q.shape
    k, v = (part.repeat_interleave(max(1, ranks // part.shape[1]), 1) for part in (k, v))
    by_heads = (_Exchange.apply(x, (batch, x.shape[1] // ranks, tokens * ranks, channels)) for x in (q, k, v))
    return _Exchange.apply(flash(*by_heads), (batch, tokens, q.shape[1], channels)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Attention(nn.Module):
    def __init__(self, sizes: Sizes, again: bool) -> None:
        super().__init__()
        hidden, self.head_dim = sizes.hidden, sizes.head_dim
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, sizes.kv_heads * sizes.head_dim, bias=False)
        self.value = nn.Linear(hidden, sizes.kv_heads * sizes.head_dim, bias=False)
        self.output = nn.Linear(hidden, hidden, bias=False)
        self.again, self.ranks = again, sizes.ulysses

    def _core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash(q, k, v) if self.ranks == 1 else ulysses(q, k, v, self.ranks)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        q, k, v = (
            part(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        angles = x.new_ones(tokens, self.head_dim)
        q, k = rotate(q, angles, angles), rotate(k, angles, angles)
        core: Callable[..., Tensor] = self._core
        out = checkpoint(core, q, k, v, use_reentrant=False) if self.again else core(q, k, v)
        return self.output(out.transpose(1, 2).reshape(batch, tokens, hidden))


class Experts(nn.Module):
    """Top-k router, tokens sorted by expert, one SwiGLU after the other, results summed back."""

    def __init__(self, sizes: Sizes, fused: bool) -> None:
        super().__init__()
        self.router = nn.Linear(sizes.hidden, sizes.experts, bias=False)
        self.experts = nn.ModuleList(SwiGlu(sizes.hidden, sizes.width, fused) for _ in range(sizes.experts))
        self.shared = SwiGlu(sizes.hidden, sizes.shared, fused) if sizes.shared else None
        self.top_k, self.index_add = sizes.top_k, sizes.index_add

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(torch.softmax(self.router(flat).float(), -1), self.top_k)
        order = torch.argsort(chosen.flatten())
        tokens = order // self.top_k
        # Balanced: every expert gets as many.
        pieces = flat[tokens].chunk(len(self.experts))
        found = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces, strict=True)])
        scaled = found * weights.flatten()[order, None].to(x.dtype)
        if self.index_add:
            out = torch.zeros_like(flat).index_add(0, tokens, scaled)
        else:
            out = torch.zeros_like(flat).scatter_add(0, tokens[:, None].expand_as(scaled), scaled)
        return (out if self.shared is None else out + self.shared(flat)).view_as(x)


class Block(nn.Module):
    """Llama's or Mixtral's block; `again`: core attention is recomputed."""

    def __init__(self, sizes: Sizes, fused: bool = True, again: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.norm = RmsNorm(sizes.hidden, fused), RmsNorm(sizes.hidden, fused)
        self.attention = Attention(sizes, again)
        self.feed_forward = Experts(sizes, fused) if sizes.experts else SwiGlu(sizes.hidden, sizes.width, fused)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.norm(x))


class Again(nn.Module):
    """A block that is recomputed whole."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


class ProductsKept(nn.Module):
    """A block whose every second matrix product, and attention, are kept: torchtitan's "op" mode."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False, context_fn=_every_second_product)


def _every_second_product() -> Any:
    counts = {"first": 0, "again": 0}

    def policy(ctx: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        turn = "again" if ctx.is_recompute else "first"
        if op == torch.ops.aten.mm.default:
            counts[turn] += 1
            return CheckpointPolicy.MUST_SAVE if counts[turn] % 2 else CheckpointPolicy.PREFER_RECOMPUTE
        kept = op == torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class GptBlock(nn.Module):
    """GPT-2's block: LayerNorm, biases, scores in memory, GELU, dropout in three places (or none)."""

    def __init__(self, sizes: Sizes, dropout: float = 0.1, again: bool = False) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.heads, self.dropout, self.again = sizes.heads, dropout, again
        self.first, self.second = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, sizes.width), nn.Linear(sizes.width, hidden)

    def _drop(self, x: Tensor) -> Tensor:
        # What F.dropout is on a GPU; on a CPU it keeps more.
        return torch.native_dropout(x, self.dropout, True)[0] if self.dropout else x

    def _core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5
        return torch.matmul(self._drop(torch.softmax(scores, -1)), v)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        inner = self.first(x)
        q, k, v = (
            part(inner).view(batch, tokens, self.heads, -1).transpose(1, 2).contiguous()
            for part in (self.query, self.key, self.value)
        )
        core: Callable[..., Tensor] = self._core
        out = checkpoint(core, q, k, v, use_reentrant=False) if self.again else core(q, k, v)
        x = x + self._drop(self.output(out.transpose(1, 2).reshape(batch, tokens, hidden)))
        return x + self._drop(self.down(F.gelu(self.up(self.second(x)))))


class Head(nn.Module):
    """Norm, projection and mean cross-entropy, in fp32 as torch has it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm = RmsNorm(sizes.hidden, fused=True)
        self.output = nn.Linear(sizes.hidden, sizes.vocab, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.output(self.norm(x)).flatten(0, 1).float(), labels.flatten())

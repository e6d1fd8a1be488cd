"""Llama's and a small Mixture-of-Experts block in plain torch, spread by torch's own tensor parallelism."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import (
    all_gather_single_autograd,
    all_to_all_single_autograd,
    reduce_scatter_single_autograd,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional

from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, MoeFeedForward


class Shape(NamedTuple):
    """Of a block and of one device's micro-batch."""

    samples: int = 2
    sequence: int = 32
    hidden: int = 64
    heads: int = 8
    kv_heads: int = 8
    width: int = 160
    vocab: int = 256
    qk_norm: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def attention(self) -> GroupedQueryAttention:
        return GroupedQueryAttention(
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            qk_norm="per_head" if self.qk_norm else "none",
        )

    @property
    def block(self) -> Block:
        """The same block as the planner sees it."""
        return Block(attention=self.attention, feed_forward=DenseFeedForward(width=self.width))

    def moe_block(self, experts: int, top_k: int) -> Block:
        """With experts in place of the feed-forward network."""
        moe = MoeFeedForward(num_experts=experts, top_k=top_k, expert_width=self.width, gated=False)
        return Block(attention=self.attention, feed_forward=moe)

    def activation(self, tokens_over: int = 1) -> torch.Tensor:
        """What enters a block, of a sequence cut in so many parts."""
        return torch.zeros(self.samples, self.sequence // tokens_over, self.hidden, requires_grad=True)


class TorchAttention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.query = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.key = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.value = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.query_norm, self.key_norm = (
            nn.RMSNorm(shape.head_dim) if shape.qk_norm else nn.Identity() for _ in range(2)
        )
        self.output = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(tokens).unflatten(-1, (-1, self.head_dim)) for projection in (self.query, self.key, self.value)
        )
        query, key, value = (each.transpose(1, 2) for each in (self.query_norm(query), self.key_norm(key), value))
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.output(seen.transpose(1, 2).flatten(2))


class UlyssesAttention(TorchAttention):
    """Each rank has a part of the sequence, but inside the core whole sequences of some of the heads.

    Keys and values of fewer groups than ranks are copied first. Source: DeepSpeed-Ulysses (arXiv 2309.14509); copies as
    in Hugging Face's integration of it.
    """

    def __init__(self, shape: Shape, ranks: ProcessGroup) -> None:
        super().__init__(shape)
        self.ranks = ranks

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(tokens).unflatten(-1, (-1, self.head_dim)) for projection in (self.query, self.key, self.value)
        )
        query, key, value = (self._by_heads(each) for each in (self.query_norm(query), self.key_norm(key), value))
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.output(self._by_tokens(seen.transpose(1, 2)).flatten(2))

    def _by_heads(self, part: torch.Tensor) -> torch.Tensor:
        """[samples, tokens / ranks, heads, channels] to [samples, heads / ranks, tokens, channels]."""
        if part.shape[2] < self.ranks.size():
            part = part.repeat_interleave(self.ranks.size() // part.shape[2], 2)
        sent = part.unflatten(2, (self.ranks.size(), -1)).movedim(2, 0)
        return self._exchanged(sent).movedim(0, 1).flatten(1, 2).transpose(1, 2)

    def _by_tokens(self, whole: torch.Tensor) -> torch.Tensor:
        """[samples, tokens, heads / ranks, channels] to [samples, tokens / ranks, heads, channels]."""
        sent = whole.unflatten(1, (self.ranks.size(), -1)).movedim(1, 0)
        return self._exchanged(sent).movedim(0, 2).flatten(2, 3)

    def _exchanged(self, sent: torch.Tensor) -> torch.Tensor:
        rows = [1] * self.ranks.size()
        return all_to_all_single_autograd(sent.contiguous(), rows, rows, self.ranks)


class TorchFeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, shape.width, bias=False)
        self.up = nn.Linear(shape.hidden, shape.width, bias=False)
        self.down = nn.Linear(shape.width, shape.hidden, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(tokens)) * self.up(tokens))


class TorchBlock(nn.Module):
    def __init__(self, shape: Shape, feed_forward: nn.Module | None = None, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.hidden)
        self.attention = attention or TorchAttention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.hidden)
        self.feed_forward = feed_forward or TorchFeedForward(shape)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class TorchExperts(nn.Module):
    """Feed-forward networks of the experts of one rank, a part of their width each."""

    def __init__(self, shape: Shape, experts: int, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(experts, shape.hidden, width))
        self.down = nn.Parameter(torch.zeros(experts, width, shape.hidden))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        inner = functional.silu(rows.unflatten(0, (len(self.up), -1)) @ self.up)
        return (inner @ self.down).flatten(0, 1)


class TorchMoe(nn.Module):
    """Dropless, with an equal load: copies of tokens go to the ranks of their experts and come back.

    Expert-tensor-parallel ranks gather each other's copies and reduce-scatter the results. Which row is whose does
    not matter where all peers are pretended.
    """

    def __init__(self, shape: Shape, experts: int, top_k: int, mesh: DeviceMesh) -> None:
        super().__init__()
        self.top_k = top_k
        self.ranks, self.tensor = mesh["ep"], mesh["etp"]
        self.router = nn.Linear(shape.hidden, experts, bias=False)
        self.experts = TorchExperts(shape, experts // self.ranks.size(), shape.width // self.tensor.size())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        weights, _ = self.router(tokens).softmax(-1).topk(self.top_k)
        rows = tokens.flatten(0, 1).repeat_interleave(self.top_k, 0)
        rows = self._exchanged(rows)
        if self.tensor.size() > 1:
            rows = all_gather_single_autograd(rows, 0, self.tensor.get_group())
        rows = self.experts(rows)
        if self.tensor.size() > 1:
            rows = reduce_scatter_single_autograd(rows, "sum", 0, self.tensor.get_group())
        rows = self._exchanged(rows)
        return (rows.view(*tokens.shape[:2], self.top_k, -1) * weights.unsqueeze(-1)).sum(2)

    def _exchanged(self, rows: torch.Tensor) -> torch.Tensor:
        if self.ranks.size() == 1:
            return rows
        splits = [len(rows) // self.ranks.size()] * self.ranks.size()
        return all_to_all_single_autograd(rows, splits, splits, self.ranks.get_group())


def tensor_parallel(block: nn.Module, mesh: DeviceMesh, sequence_parallel: bool) -> nn.Module:
    """Megatron's scheme in torch's words; each region gathers its input once, for all of its matrices."""
    edge = Shard(1) if sequence_parallel else Replicate()
    gathered = PrepareModuleInput(input_layouts=(edge,), desired_input_layouts=(Replicate(),))
    plan = {
        "attention": gathered,
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.output": RowwiseParallel(output_layouts=edge),
    }
    if isinstance(block.feed_forward, TorchFeedForward):
        plan |= {
            "feed_forward": gathered,
            "feed_forward.gate": ColwiseParallel(),
            "feed_forward.up": ColwiseParallel(),
            "feed_forward.down": RowwiseParallel(output_layouts=edge),
        }
    else:
        # Every rank sends the experts its own tokens.
        plan["feed_forward"] = PrepareModuleInput(
            input_layouts=(edge,), desired_input_layouts=(edge,), use_local_output=True
        )
    for name in ("query_norm", "key_norm"):
        if isinstance(getattr(block.attention, name), nn.RMSNorm):
            # Its "sequence" are the heads, cut over the ranks.
            plan[f"attention.{name}"] = SequenceParallel(sequence_dim=2, use_local_output=True)
    norms = {"attention_norm": SequenceParallel(), "feed_forward_norm": SequenceParallel()}
    return parallelize_module(block, mesh, plan | norms if sequence_parallel else plan)

"""A small Mixture-of-Experts language model and its training loop, with an agent: a program to read and to copy.

The model is built from the planner's own value (`planner.spec.model.Model`), so what is planned is what is trained:
grouped-query attention, expert-parallel feed-forward layers, learned positions. It reads bytes.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import Block, Embedding, GroupedQueryAttention, Head, LayerRun, Model, MoeFeedForward
from runtime.exchange import Group
from runtime.moe import ExpertParallelMoe

NUM_BYTES = 256


def language_model(  # every argument is a dimension of the model
    *, hidden_size: int, num_blocks: int, num_heads: int, experts: MoeFeedForward, sequence_length: int
) -> Model:
    """The description of a byte-level model with experts in each block, for the planner and for `LanguageModel`."""
    attention = GroupedQueryAttention(num_heads=num_heads, num_kv_heads=num_heads, head_dim=hidden_size // num_heads)
    return Model(
        name="byte-moe",
        hidden_size=hidden_size,
        max_sequence_length=sequence_length,
        runs=(
            LayerRun(layer=Embedding(vocab_size=NUM_BYTES, num_positions=sequence_length)),
            LayerRun(layer=Block(attention=attention, feed_forward=experts), num_layers=num_blocks),
            LayerRun(layer=Head(vocab_size=NUM_BYTES)),
        ),
    )


class SelfAttention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, hidden_size: int, shape: GroupedQueryAttention) -> None:
        super().__init__()
        self.sizes = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(hidden_size, sum(self.sizes) * shape.head_dim, bias=False)
        self.output = nn.Linear(shape.num_heads * shape.head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[samples, tokens, hidden_size] → the same shape."""
        samples, tokens, _ = hidden.shape
        heads = self.qkv(hidden).view(samples, tokens, -1, self.head_dim).transpose(1, 2)
        query, key, value = torch.split(heads, self.sizes, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.output(mixed.transpose(1, 2).reshape(samples, tokens, -1))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Norm, attention, norm, experts; two residual additions."""

    def __init__(self, hidden_size: int, block: Block, group: Group | None) -> None:
        super().__init__()
        attention, experts = block.attention, block.moe
        plain = GroupedQueryAttention.model_fields.keys() - {"num_heads", "num_kv_heads", "head_dim"}
        if experts is None or not isinstance(attention, GroupedQueryAttention) or attention.model_fields_set & plain:
            raise InputError.at("model", "this example builds blocks with plain causal attention and experts only")
        self.attention_norm = nn.RMSNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, attention)
        self.expert_norm = nn.RMSNorm(hidden_size)
        self.experts = ExpertParallelMoe(hidden_size, experts, group)

    def forward(self, hidden: Tensor) -> Tensor:
        """[samples, tokens, hidden_size] → the same shape."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.experts(self.expert_norm(hidden))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """The model that a `Model` of `language_model` describes, with its experts spread over `group`."""

    def __init__(self, model: Model, group: Group | None = None) -> None:
        super().__init__()
        embedding = model.layers[0]
        if not isinstance(embedding, Embedding) or embedding.num_positions == 0:
            raise InputError.at("model", "this example needs an embedding with learned positions")
        self.tokens = nn.Embedding(embedding.vocab_size, model.hidden_size)
        self.positions = nn.Embedding(embedding.num_positions, model.hidden_size)
        blocks = (layer for layer in model.layers if isinstance(layer, Block))
        self.blocks = nn.ModuleList(TransformerBlock(model.hidden_size, block, group) for block in blocks)
        self.norm = nn.RMSNorm(model.hidden_size)
        self.head = nn.Linear(model.hidden_size, embedding.vocab_size, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Bytes [samples, tokens + 1] → mean cross-entropy of each byte after the first, in nats."""
        given, wanted = text[:, :-1].long(), text[:, 1:].long()
        hidden = self.tokens(given) + self.positions.weight[: given.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), wanted.flatten())


def library_text(max_bytes: int) -> Tensor:
    """The sources of the Python standard library, file after file, as bytes [at most max_bytes]."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= max_bytes:
            break
    if not text:
        raise NotFoundError("this Python has no sources of its standard library to train on")
    return torch.frombuffer(text[:max_bytes], dtype=torch.uint8)


def batches(text: Tensor, samples: int, sequence_length: int, seed: int) -> Iterator[Tensor]:
    """Endless random pieces of the text, [samples, sequence_length + 1]; equal seeds give equal pieces."""
    generator = torch.Generator().manual_seed(seed)
    within = torch.arange(sequence_length + 1)
    while True:
        starts = torch.randint(len(text) - sequence_length, (samples, 1), generator=generator)
        yield text[starts + within]

"""Decoders of the generation of GPT-NeoX, OPT, BLOOM and Phi, with LayerNorm, and DBRX.

As `families`: one function for each `model_type`, defaults of the library's configuration classes (transformers 5.23).
"""

from __future__ import annotations

from typing import Any

from planner.spec.model import (
    AnyLayer,
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    Model,
    MoeFeedForward,
    Norm,
)
from profiles.config_reader import ConfigReader
from profiles.decoder import stack


def gpt_neox(config: ConfigReader) -> Model:
    """Attention and network read the same input, each through a norm of its own."""
    bias = config.flag("attention_bias", True)
    block = Block(
        attention=_attention(config, "hidden_size", "num_attention_heads", bias),
        feed_forward=_network(config.count("intermediate_size")),
        norm=Norm.LAYER,
        parallel=config.flag("use_parallel_residual", True),
    )
    tied = config.flag("tie_word_embeddings", False)
    return _stacked(config, "hidden_size", block, config.num_layers("num_hidden_layers"), {}, {"tied": tied})


def opt(config: ConfigReader) -> Model:
    """Learned positions, two of them reserved."""
    hidden = config.count("hidden_size")
    if config.optional_count("word_embed_proj_dim", None) not in (None, hidden):
        raise config.wrong("word_embed_proj_dim", f"must be hidden_size ({hidden}): no projection of it is known")
    if not config.flag("do_layer_norm_before", True) or not config.flag("layer_norm_elementwise_affine", True):
        raise config.wrong("do_layer_norm_before", "must be true, and layer_norm_elementwise_affine too")
    bias = config.flag("enable_bias", True)
    block = Block(
        attention=_attention(config, "hidden_size", "num_attention_heads", bias),
        feed_forward=_network(
            config.count("ffn_dim"), bias, config.content.get("activation_function", "relu") == "relu"
        ),
        norm=Norm.LAYER,
    )
    norm = None if config.flag("_remove_final_layer_norm", False) else Norm.LAYER
    head = {"tied": config.flag("tie_word_embeddings", True), "norm": norm}
    embedding = {"num_positions": config.count("max_position_embeddings") + 2}
    return _stacked(config, "hidden_size", block, config.num_layers("num_hidden_layers"), embedding, head)


def bloom(config: ConfigReader) -> Model:
    """A norm behind the embedding; positions are biases that need no parameters (ALiBi)."""
    key = "n_embed" if "n_embed" in config.content else "hidden_size"
    block = Block(
        attention=_attention(config, key, "n_head", True),
        feed_forward=_network(4 * config.count(key)),
        norm=Norm.LAYER,
    )
    head = {"tied": config.flag("tie_word_embeddings", True)}
    return _stacked(config, key, block, config.num_layers("n_layer"), {"norm": Norm.LAYER}, head)


def phi(config: ConfigReader) -> Model:
    """Attention and network read the same input through one norm."""
    config.refuse("qk_layernorm", "norms with biases of queries and keys are not known")
    groups = config.optional_count("num_key_value_heads", None)
    block = Block(
        attention=_attention(config, "hidden_size", "num_attention_heads", True, groups),
        feed_forward=_network(config.count("intermediate_size")),
        norm=Norm.LAYER,
        parallel=True,
        shared_norm=True,
    )
    head = {"tied": config.flag("tie_word_embeddings", False), "bias": True}
    return _stacked(config, "hidden_size", block, config.num_layers("num_hidden_layers"), {}, head)


def dbrx(config: ConfigReader) -> Model:
    """Experts in every block; its LayerNorms have no bias, so that they count as RMS norms."""
    attention, network = (_part(config, key) for key in ("attn_config", "ffn_config"))
    experts = MoeFeedForward(
        num_experts=network.count("moe_num_experts", 4),
        top_k=network.count("moe_top_k", 1),
        expert_width=network.count("ffn_hidden_size", 3584),
    )
    heads = _attention(config, "d_model", "n_heads", False, attention.count("kv_n_heads", 1))
    config.refuse("tie_word_embeddings", "no DBRX ties its head")
    block = Block(attention=heads, feed_forward=experts)
    return _stacked(config, "d_model", block, config.num_layers("n_layers"), {}, {"norm": Norm.RMS})


def _part(config: ConfigReader, key: str) -> ConfigReader:
    found = config.content.get(key)
    if not isinstance(found, dict):
        raise config.wrong(key, "is required: an object")
    return ConfigReader(found)


def _attention(
    config: ConfigReader, hidden_key: str, heads_key: str, bias: bool, groups: int | None = None
) -> GroupedQueryAttention:
    hidden, heads = config.count(hidden_key), config.count(heads_key)
    if groups is not None:
        config.multiple(heads_key, heads, "key-value heads", groups)
    return GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=groups or heads,
        head_dim=config.multiple(hidden_key, hidden, heads_key, heads),
        qkv_bias=bias,
        output_bias=bias,
    )


def _network(width: int, bias: bool = True, relu: bool = False) -> DenseFeedForward:
    return DenseFeedForward(width=width, gated=False, bias=bias, relu=relu)


def _stacked(
    config: ConfigReader,
    hidden_key: str,
    block: Block,
    num_blocks: int,
    embedding: dict[str, Any],
    head: dict[str, Any],
) -> Model:
    """Embedding, equal blocks, head with a LayerNorm unless `head` says otherwise."""
    vocab_size = config.count("vocab_size")
    layers: list[AnyLayer] = [
        Embedding(vocab_size=vocab_size, **embedding),
        *[block] * num_blocks,
        Head(vocab_size=vocab_size, **{"norm": Norm.LAYER, **head}),
    ]
    longest = config.optional_count("max_position_embeddings", config.optional_count("max_seq_len", None))
    return stack(config, config.count(hidden_key), layers, longest)

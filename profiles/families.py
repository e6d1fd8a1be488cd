"""One small function for each `model_type` of Hugging Face: from its config.json to a model.

Defaults for absent keys are those of the library's configuration classes (transformers 5.23), key by key; shapes that
only the file can know (sizes, numbers of layers, heads and experts) are required.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    FeedForward,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    Model,
    MoeFeedForward,
    Norm,
)
from profiles import encoders, layer_norm_decoders
from profiles.config_reader import ConfigReader
from profiles.decoder import decoder, dense, grouped_query, moe, no_windows, one_window, qwen_windows, stack


def _llama(config: ConfigReader) -> Model:
    bias = config.flag("attention_bias", False)
    attentions = grouped_query(config, no_windows(config), qkv_bias=bias, output_bias=bias)
    return decoder(config, attentions, [dense(config, config.flag("mlp_bias", False))] * len(attentions))


def _mistral(config: ConfigReader) -> Model:
    attentions = grouped_query(config, one_window(config, 4096), kv_heads=8)
    return decoder(config, attentions, [dense(config)] * len(attentions))


def _mixtral(config: ConfigReader) -> Model:
    attentions = grouped_query(config, one_window(config, None), kv_heads=8)
    experts = moe(config, "num_local_experts", "intermediate_size")
    return decoder(config, attentions, [experts] * len(attentions))


def _qwen2(config: ConfigReader) -> Model:
    first = config.index("max_window_layers", 28)
    attentions = grouped_query(config, qwen_windows(config, lambda n: n >= first), kv_heads=32, qkv_bias=True)
    return decoder(config, attentions, [dense(config)] * len(attentions))


def _qwen3(config: ConfigReader) -> Model:
    first = config.index("max_window_layers", 28)
    bias = config.flag("attention_bias", False)
    windows = qwen_windows(config, lambda n: n >= first)
    attentions = grouped_query(
        config, windows, kv_heads=32, head_dim=128, qkv_bias=bias, output_bias=bias, qk_norm="per_head"
    )
    return decoder(config, attentions, [dense(config)] * len(attentions))


def _qwen2_moe(config: ConfigReader) -> Model:
    last = config.index("max_window_layers", 28)
    windows = qwen_windows(config, lambda n: n % 2 == 0 and n < last)
    attentions = grouped_query(config, windows, kv_heads=16, qkv_bias=config.flag("qkv_bias", True))
    shared = config.count("shared_expert_intermediate_size")
    experts = moe(config, "num_experts", "moe_intermediate_size", shared_width=shared, shared_gate=True)
    return decoder(config, attentions, _qwen_feed_forwards(config, experts))


def _qwen3_moe(config: ConfigReader) -> Model:
    bias = config.flag("attention_bias", False)
    windows = qwen_windows(config, lambda _: True)
    attentions = grouped_query(config, windows, kv_heads=4, qkv_bias=bias, output_bias=bias, qk_norm="per_head")
    experts = moe(config, "num_experts", "moe_intermediate_size")
    return decoder(config, attentions, _qwen_feed_forwards(config, experts))


def _qwen_feed_forwards(config: ConfigReader, experts: MoeFeedForward) -> list[FeedForward]:
    """Experts in every `decoder_sparse_step`-th block but those of `mlp_only_layers`, a dense network in the others."""
    layers = config.num_layers("num_hidden_layers")
    step = config.count("decoder_sparse_step", 1)
    dense_only = config.layer_numbers("mlp_only_layers", layers)
    sparse = [(number + 1) % step == 0 and number not in dense_only for number in range(layers)]
    return [experts if is_sparse else dense(config) for is_sparse in sparse]


def _deepseek_v2(config: ConfigReader) -> Model:
    config.refuse("mlp_bias", "no DeepSeek model has biases in its feed-forward networks")
    limited = config.content.get("topk_method") == "group_limited_greedy"
    return _deepseek(config, 0, 2, groups=_routing_groups(config) if limited else (1, 1))


def _deepseek_v3(config: ConfigReader) -> Model:
    return _deepseek(config, 3, 1, groups=_routing_groups(config, 8, 4))


def _routing_groups(
    config: ConfigReader, groups_default: int | None = None, chosen_default: int | None = None
) -> tuple[int, int]:
    """(groups of experts, groups that the experts of a token come from)."""
    groups, chosen = config.count("n_group", groups_default), config.count("topk_group", chosen_default)
    size = config.multiple("n_routed_experts", config.count("n_routed_experts"), "n_group", groups)
    if chosen > groups:
        raise config.wrong("topk_group", f"must be at most n_group ({groups}), got {chosen}")
    if config.count("num_experts_per_tok") > chosen * size:
        raise config.wrong("topk_group", f"must be more than {chosen}: these groups have {chosen * size} experts")
    return groups, chosen


def _deepseek(config: ConfigReader, first_dense_default: int, shared_default: int, groups: tuple[int, int]) -> Model:
    """Latent attention; dense networks first, then experts in each block whose number `moe_layer_freq` divides.

    `groups`: (groups of experts, groups that a token's experts come from).
    """
    attention = LatentAttention(
        num_heads=config.count("num_attention_heads"),
        q_lora_rank=config.optional_count("q_lora_rank", 1536),
        kv_lora_rank=config.count("kv_lora_rank"),
        qk_nope_head_dim=config.count("qk_nope_head_dim"),
        qk_rope_head_dim=config.count("qk_rope_head_dim"),
        v_head_dim=config.count("v_head_dim"),
        bias=config.flag("attention_bias", False),
    )
    shared = (config.optional_count("n_shared_experts", shared_default) or 0) * config.count("moe_intermediate_size")
    limit = {"num_groups": groups[0], "groups_per_token": groups[1]}
    experts = moe(config, "n_routed_experts", "moe_intermediate_size", shared_width=shared, **limit)
    layers = config.num_layers("num_hidden_layers")
    first_sparse = config.index("first_k_dense_replace", first_dense_default)
    step = config.count("moe_layer_freq", 1)
    sparse = [number >= first_sparse and number % step == 0 for number in range(layers)]
    return decoder(config, [attention] * layers, [experts if is_sparse else dense(config) for is_sparse in sparse])


def _olmoe(config: ConfigReader) -> Model:
    heads, hidden = config.count("num_attention_heads"), config.count("hidden_size")
    if config.optional_count("head_dim", None) not in (
        None,
        config.multiple("hidden_size", hidden, "num_attention_heads", heads),
    ):
        raise config.wrong("head_dim", "must be hidden_size / num_attention_heads: the norms of OLMoE span all heads")
    bias = config.flag("attention_bias", False)
    attentions = grouped_query(config, no_windows(config), qkv_bias=bias, output_bias=bias, qk_norm="full")
    return decoder(config, attentions, [moe(config, "num_experts", "intermediate_size")] * len(attentions))


def _gpt_oss(config: ConfigReader) -> Model:
    layers = config.num_layers("num_hidden_layers")
    window = config.optional_count("sliding_window", 128)
    slides = config.sliding_layers(layers) or [number % 2 == 0 for number in range(layers)]
    bias = config.flag("attention_bias", True)
    windows = [window if sliding else None for sliding in slides]
    attentions = grouped_query(config, windows, kv_heads=8, head_dim=64, qkv_bias=bias, output_bias=bias, sinks=True)
    experts = moe(config, "num_local_experts", "intermediate_size", bias=True, router_bias=True)
    return decoder(config, attentions, [experts] * layers)


def _gpt2(config: ConfigReader) -> Model:
    config.refuse("add_cross_attention", "encoder-decoder models are not known")
    hidden, heads = config.count("n_embd"), config.count("n_head")
    head_dim = config.multiple("n_embd", hidden, "n_head", heads)
    attention = GroupedQueryAttention(
        num_heads=heads, num_kv_heads=heads, head_dim=head_dim, qkv_bias=True, output_bias=True
    )
    width = config.optional_count("n_inner", None) or 4 * hidden
    block = Block(
        attention=attention, feed_forward=DenseFeedForward(width=width, gated=False, bias=True), norm=Norm.LAYER
    )
    vocab_size, positions = config.count("vocab_size"), config.count("n_positions")
    layers = [
        Embedding(vocab_size=vocab_size, num_positions=positions),
        *[block] * config.num_layers("n_layer"),
        Head(vocab_size=vocab_size, norm=Norm.LAYER, tied=config.flag("tie_word_embeddings", True)),
    ]
    return stack(config, hidden, layers, positions)


def _gemma(config: ConfigReader) -> Model:
    _refuse_both_ways(config)
    bias = config.flag("attention_bias", False)
    attentions = grouped_query(config, no_windows(config), kv_heads=16, head_dim=256, qkv_bias=bias, output_bias=bias)
    return decoder(config, attentions, [dense(config)] * len(attentions), tied=True)


def _gemma2(config: ConfigReader) -> Model:
    return _gemma_with_windows(config, 2, qk_norm="none")


def _gemma3_text(config: ConfigReader) -> Model:
    return _gemma_with_windows(config, config.count("sliding_window_pattern", 6), qk_norm="per_head")


def _gemma_with_windows(config: ConfigReader, pattern: int, qk_norm: Literal["none", "per_head"]) -> Model:
    """Every `pattern`-th block sees all, the others a window; a norm on both sides of each part of a block."""
    _refuse_both_ways(config)
    layers = config.num_layers("num_hidden_layers")
    window = config.optional_count("sliding_window", 4096)
    slides = config.sliding_layers(layers) or [(number + 1) % pattern != 0 for number in range(layers)]
    bias = config.flag("attention_bias", False)
    windows = [window if sliding else None for sliding in slides]
    attentions = grouped_query(
        config, windows, kv_heads=4, head_dim=256, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm
    )
    return decoder(config, attentions, [dense(config)] * layers, tied=True, norms_both_sides=True)


def _refuse_both_ways(config: ConfigReader) -> None:
    if config.content.get("use_bidirectional_attention"):
        raise config.wrong("use_bidirectional_attention", "must be false: only decoders are known of this family")


def _phi3(config: ConfigReader) -> Model:
    attentions = grouped_query(config, one_window(config, None))
    return decoder(config, attentions, [dense(config)] * len(attentions))


FAMILIES: dict[str, Callable[[ConfigReader], Model]] = {
    "bert": encoders.bert,
    "bloom": layer_norm_decoders.bloom,
    "dbrx": layer_norm_decoders.dbrx,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "gpt2": _gpt2,
    "gpt_neox": layer_norm_decoders.gpt_neox,
    "gpt_oss": _gpt_oss,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "opt": layer_norm_decoders.opt,
    "phi": layer_norm_decoders.phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "swin": encoders.swin,
    "switch_transformers": encoders.switch_transformers,
    "t5": encoders.t5,
    "vit": encoders.vit,
}

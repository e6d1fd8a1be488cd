"""From a Hugging Face config.json to a model: one small function for each `model_type`.

Defaults for absent keys are those of the library's configuration classes (transformers 5.23), key by key; shapes that
only the file can know (sizes, numbers of layers, heads and experts) are required. Parameter counts equal the library's
exactly (tests/profiles). Not part of the model: multi-token-prediction modules, buffers such as DeepSeek-V3's router
correction, rotary tables, quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from pydantic import ValidationError

from planner.cost.parameters import total_parameters
from planner.spec.errors import InputError
from planner.spec.model import (
    Attention,
    Block,
    DenseFeedForward,
    Embedding,
    FeedForward,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    LayerRun,
    Model,
    MoeFeedForward,
    Norm,
)
from profiles.config_reader import ConfigReader


def model_from_config(content: Mapping[str, Any], name: str | None = None) -> Model:
    """The model that a config.json describes; raises InputError at `hf_config.<key>`.

    Without `name` the model is called by the config's `_name_or_path`, else by its type and size.
    """
    config = ConfigReader(content)
    model_type = content.get("model_type")
    if model_type is None:
        raise config.wrong("model_type", f"is required; known are {', '.join(model_types())}")
    build = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if build is None:
        raise config.wrong("model_type", f"{model_type!r:.60} is not known; known are {', '.join(model_types())}")
    try:
        model = build(config)
    except ValidationError as error:
        raise InputError.from_validation(error, "hf_config") from None
    return model.model_copy(update={"name": name or _own_name(content, model)})


def model_types() -> list[str]:
    """All values of `model_type` that can be read."""
    return sorted(_FAMILIES)


def _own_name(content: Mapping[str, Any], model: Model) -> str:
    path = content.get("_name_or_path")
    last = path.rstrip("/").rpartition("/")[2] if isinstance(path, str) else ""
    return last[:200] or f"{model.name}-{total_parameters(model) / 1e9:.3g}b"


def _decoder(config: ConfigReader, attentions: Sequence[Attention], feed_forwards: Sequence[FeedForward]) -> Model:
    """Token embedding, one block for each pair of attention and feed-forward, RMS norm and head."""
    vocab_size = config.count("vocab_size")
    blocks = [Block(attention=a, feed_forward=f) for a, f in zip(attentions, feed_forwards, strict=True)]
    layers = [
        Embedding(vocab_size=vocab_size),
        *blocks,
        Head(vocab_size=vocab_size, tied=config.flag("tie_word_embeddings", False)),
    ]
    return _model(config, config.count("hidden_size"), layers, config.optional_count("max_position_embeddings", None))


def _model(config: ConfigReader, hidden_size: int, layers: Sequence[Any], max_length: int | None) -> Model:
    runs = tuple(LayerRun(layer=layer, num_layers=len(list(equal))) for layer, equal in groupby(layers))
    name = config.content["model_type"]
    return Model(name=name, hidden_size=hidden_size, runs=runs, max_sequence_length=max_length)


def _grouped_query(
    config: ConfigReader,
    windows: Sequence[int | None],
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: Literal["none", "per_head", "full"] = "none",
    sinks: bool = False,
) -> list[GroupedQueryAttention]:
    """One attention for each window; `kv_heads` and `head_dim` are the library's defaults, None: from the heads."""
    heads = config.count("num_attention_heads")
    groups = config.optional_count("num_key_value_heads", kv_heads) or heads
    config.multiple("num_attention_heads", heads, "num_key_value_heads", groups)
    channels = config.optional_count("head_dim", head_dim)
    if channels is None:
        channels = config.multiple("hidden_size", config.count("hidden_size"), "num_attention_heads", heads)
    return [
        GroupedQueryAttention(
            num_heads=heads,
            num_kv_heads=groups,
            head_dim=channels,
            window=window,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            qk_norm=qk_norm,
            sinks=sinks,
        )
        for window in windows
    ]


def _no_windows(config: ConfigReader) -> list[int | None]:
    return [None] * config.num_layers("num_hidden_layers")


def _one_window(config: ConfigReader, default: int | None) -> list[int | None]:
    return [config.optional_count("sliding_window", default)] * config.num_layers("num_hidden_layers")


def _qwen_windows(config: ConfigReader, slides_by_default: Callable[[int], bool]) -> list[int | None]:
    """Qwen's windows: only with `use_sliding_window`, in the blocks of `layer_types` or else the default ones."""
    layers = config.num_layers("num_hidden_layers")
    window = config.optional_count("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    slides = config.sliding_layers(layers) or [slides_by_default(number) for number in range(layers)]
    return [window if sliding else None for sliding in slides]


def _dense(config: ConfigReader, bias: bool = False) -> DenseFeedForward:
    return DenseFeedForward(width=config.count("intermediate_size"), bias=bias)


def _moe(config: ConfigReader, experts: str, width: str, **parts: Any) -> MoeFeedForward:
    """Experts whose number and width stand under these keys."""
    num_experts = config.count(experts)
    top_k = config.count("num_experts_per_tok")
    if top_k > num_experts:
        raise config.wrong("num_experts_per_tok", f"must not exceed {experts} ({num_experts}), got {top_k}")
    return MoeFeedForward(num_experts=num_experts, top_k=top_k, expert_width=config.count(width), **parts)


def _llama(config: ConfigReader) -> Model:
    bias = config.flag("attention_bias", False)
    attentions = _grouped_query(config, _no_windows(config), qkv_bias=bias, output_bias=bias)
    return _decoder(config, attentions, [_dense(config, config.flag("mlp_bias", False))] * len(attentions))


def _mistral(config: ConfigReader) -> Model:
    attentions = _grouped_query(config, _one_window(config, 4096), kv_heads=8)
    return _decoder(config, attentions, [_dense(config)] * len(attentions))


def _mixtral(config: ConfigReader) -> Model:
    attentions = _grouped_query(config, _one_window(config, None), kv_heads=8)
    experts = _moe(config, "num_local_experts", "intermediate_size")
    return _decoder(config, attentions, [experts] * len(attentions))


def _qwen2(config: ConfigReader) -> Model:
    first = config.index("max_window_layers", 28)
    attentions = _grouped_query(config, _qwen_windows(config, lambda n: n >= first), kv_heads=32, qkv_bias=True)
    return _decoder(config, attentions, [_dense(config)] * len(attentions))


def _qwen3(config: ConfigReader) -> Model:
    first = config.index("max_window_layers", 28)
    bias = config.flag("attention_bias", False)
    windows = _qwen_windows(config, lambda n: n >= first)
    attentions = _grouped_query(
        config, windows, kv_heads=32, head_dim=128, qkv_bias=bias, output_bias=bias, qk_norm="per_head"
    )
    return _decoder(config, attentions, [_dense(config)] * len(attentions))


def _qwen2_moe(config: ConfigReader) -> Model:
    last = config.index("max_window_layers", 28)
    windows = _qwen_windows(config, lambda n: n % 2 == 0 and n < last)
    attentions = _grouped_query(config, windows, kv_heads=16, qkv_bias=config.flag("qkv_bias", True))
    shared = config.count("shared_expert_intermediate_size")
    experts = _moe(config, "num_experts", "moe_intermediate_size", shared_width=shared, shared_gate=True)
    return _decoder(config, attentions, _qwen_feed_forwards(config, experts))


def _qwen3_moe(config: ConfigReader) -> Model:
    bias = config.flag("attention_bias", False)
    windows = _qwen_windows(config, lambda _: True)
    attentions = _grouped_query(config, windows, kv_heads=4, qkv_bias=bias, output_bias=bias, qk_norm="per_head")
    experts = _moe(config, "num_experts", "moe_intermediate_size")
    return _decoder(config, attentions, _qwen_feed_forwards(config, experts))


def _qwen_feed_forwards(config: ConfigReader, experts: MoeFeedForward) -> list[FeedForward]:
    """Experts in every `decoder_sparse_step`-th block but those of `mlp_only_layers`, a dense network in the others."""
    layers = config.num_layers("num_hidden_layers")
    step = config.count("decoder_sparse_step", 1)
    dense_only = config.layer_numbers("mlp_only_layers", layers)
    sparse = [(number + 1) % step == 0 and number not in dense_only for number in range(layers)]
    return [experts if is_sparse else _dense(config) for is_sparse in sparse]


def _deepseek_v2(config: ConfigReader) -> Model:
    config.refuse("mlp_bias", "no DeepSeek model has biases in its feed-forward networks")
    return _deepseek(config, first_dense_default=0, shared_default=2)


def _deepseek_v3(config: ConfigReader) -> Model:
    return _deepseek(config, first_dense_default=3, shared_default=1)


def _deepseek(config: ConfigReader, first_dense_default: int, shared_default: int) -> Model:
    """Latent attention; dense networks first, then experts in each block whose number `moe_layer_freq` divides."""
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
    experts = _moe(config, "n_routed_experts", "moe_intermediate_size", shared_width=shared)
    layers = config.num_layers("num_hidden_layers")
    first_sparse = config.index("first_k_dense_replace", first_dense_default)
    step = config.count("moe_layer_freq", 1)
    sparse = [number >= first_sparse and number % step == 0 for number in range(layers)]
    return _decoder(config, [attention] * layers, [experts if is_sparse else _dense(config) for is_sparse in sparse])


def _olmoe(config: ConfigReader) -> Model:
    heads, hidden = config.count("num_attention_heads"), config.count("hidden_size")
    if config.optional_count("head_dim", None) not in (
        None,
        config.multiple("hidden_size", hidden, "num_attention_heads", heads),
    ):
        raise config.wrong("head_dim", "must be hidden_size / num_attention_heads: the norms of OLMoE span all heads")
    bias = config.flag("attention_bias", False)
    attentions = _grouped_query(config, _no_windows(config), qkv_bias=bias, output_bias=bias, qk_norm="full")
    return _decoder(config, attentions, [_moe(config, "num_experts", "intermediate_size")] * len(attentions))


def _gpt_oss(config: ConfigReader) -> Model:
    layers = config.num_layers("num_hidden_layers")
    window = config.optional_count("sliding_window", 128)
    slides = config.sliding_layers(layers) or [number % 2 == 0 for number in range(layers)]
    bias = config.flag("attention_bias", True)
    windows = [window if sliding else None for sliding in slides]
    attentions = _grouped_query(config, windows, kv_heads=8, head_dim=64, qkv_bias=bias, output_bias=bias, sinks=True)
    experts = _moe(config, "num_local_experts", "intermediate_size", bias=True, router_bias=True)
    return _decoder(config, attentions, [experts] * layers)


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
    return _model(config, hidden, layers, positions)


_FAMILIES: dict[str, Callable[[ConfigReader], Model]] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}

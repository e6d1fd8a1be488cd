"""Parameter counts of every family equal those of the library's own models, built without weights, exactly."""

import os
import warnings

import pytest

from planner.cost.parameters import total_parameters
from profiles import model_from_config, model_types

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="the library is a development dependency")
torch = pytest.importorskip("torch", reason="the library builds its models with torch")

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
MOE = {**LLAMA, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    **LLAMA,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_group": 2,
    "topk_group": 1,
}
GPT2 = {"vocab_size": 96, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 6}
BERT = {**LLAMA, "max_position_embeddings": 40}
VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 56, "patch_size": 2, "embed_dim": 24, "depths": [2, 1, 3], "num_heads": [3, 6, 12]}
T5 = {"vocab_size": 96, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 3, "num_heads": 6}
NEOX = {**LLAMA, "max_position_embeddings": 40}
OPT = {
    "vocab_size": 96,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
}
BLOOM = {"vocab_size": 96, "hidden_size": 48, "n_layer": 3, "n_head": 6}
DBRX = {
    "vocab_size": 96,
    "d_model": 48,
    "n_heads": 6,
    "n_layers": 3,
    "max_seq_len": 40,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 5, "moe_top_k": 2},
}
CASES = [
    ("bert", BERT),
    ("bert", {**BERT, "type_vocab_size": 3, "num_hidden_layers": 2}),
    ("vit", VIT),
    ("vit", {**VIT, "image_size": [32, 48], "num_channels": 1, "qkv_bias": False, "num_labels": 10}),
    ("swin", SWIN),
    ("swin", {**SWIN, "use_absolute_embeddings": True, "mlp_ratio": 2.5, "qkv_bias": False, "num_labels": 10}),
    ("swin", {**SWIN, "image_size": 28, "window_size": 14, "depths": [1, 1], "num_heads": [3, 3]}),
    ("t5", T5),
    ("t5", {**T5, "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}),
    ("switch_transformers", {**T5, "num_layers": 6, "num_decoder_layers": 4, "num_sparse_decoder_layers": 2}),
    ("switch_transformers", {**T5, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 0, "num_experts": 5}),
    ("gemma", {**LLAMA, "num_key_value_heads": 2, "head_dim": 10}),
    ("gemma", {**LLAMA, "num_attention_heads": 16, "tie_word_embeddings": False, "attention_bias": True}),
    ("gemma2", {**LLAMA, "num_key_value_heads": 2, "head_dim": 10}),
    ("gemma2", {**LLAMA, "num_attention_heads": 8, "tie_word_embeddings": False}),
    ("gemma3_text", {**LLAMA, "num_key_value_heads": 2, "head_dim": 10}),
    ("gemma3_text", {**LLAMA, "num_attention_heads": 8, "attention_bias": True}),
    ("gpt_neox", NEOX),
    ("gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}),
    ("opt", OPT),
    ("opt", {**OPT, "enable_bias": False, "_remove_final_layer_norm": True, "tie_word_embeddings": False}),
    ("bloom", BLOOM),
    ("bloom", {**BLOOM, "tie_word_embeddings": False}),
    ("phi", NEOX),
    ("phi", {**NEOX, "num_key_value_heads": 3}),
    ("phi3", {**LLAMA, "num_key_value_heads": 2, "pad_token_id": 0}),
    ("phi3", {**LLAMA, "tie_word_embeddings": True, "sliding_window": 8, "pad_token_id": 0}),
    ("dbrx", DBRX),
    ("llama", LLAMA),
    ("llama", {**LLAMA, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    ("llama", {**LLAMA, "num_key_value_heads": None, "tie_word_embeddings": True}),
    ("mistral", {**LLAMA, "num_attention_heads": 8}),
    ("mistral", {**LLAMA, "num_key_value_heads": 3, "head_dim": 10}),
    ("qwen2", {**LLAMA, "num_key_value_heads": 2}),
    ("qwen2", {**LLAMA, "num_key_value_heads": None, "tie_word_embeddings": True}),
    ("qwen3", {**LLAMA, "num_key_value_heads": 2}),
    ("qwen3", {**LLAMA, "num_key_value_heads": 6, "head_dim": 8, "attention_bias": True}),
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "n_inner": 100, "tie_word_embeddings": False}),
    ("mixtral", {**LLAMA, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 3}),
    ("qwen2_moe", {**MOE, "num_key_value_heads": 2, "shared_expert_intermediate_size": 40, "qkv_bias": False}),
    (
        "qwen2_moe",
        {
            **MOE,
            "num_key_value_heads": 6,
            "shared_expert_intermediate_size": 40,
            "num_hidden_layers": 6,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1, 2],
        },
    ),
    ("qwen3_moe", {**MOE, "num_key_value_heads": 2, "head_dim": 10, "mlp_only_layers": [0]}),
    ("qwen3_moe", {**MOE, "num_attention_heads": 4, "attention_bias": True, "decoder_sparse_step": 3}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None, "n_shared_experts": 3}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": 14, "first_k_dense_replace": 2, "attention_bias": True}),
    ("deepseek_v2", LATENT),
    ("deepseek_v3", {**LATENT, "q_lora_rank": 14, "first_k_dense_replace": 1, "n_shared_experts": 2}),
    ("deepseek_v3", {**LATENT, "num_hidden_layers": 5, "q_lora_rank": None, "attention_bias": True}),
    ("olmoe", {**MOE, "num_key_value_heads": 2, "attention_bias": True}),
    ("olmoe", {**MOE, "tie_word_embeddings": True}),
    ("gpt_oss", {**LLAMA, "num_attention_heads": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    (
        "gpt_oss",
        {
            **LLAMA,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "attention_bias": False,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
]


_LIBRARY_CLASSES = {
    "bert": transformers.AutoModelForMaskedLM,
    "vit": transformers.AutoModelForImageClassification,
    "swin": transformers.AutoModelForImageClassification,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "switch_transformers": transformers.AutoModelForSeq2SeqLM,
}


def library_parameters(model_type, config):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        settings = transformers.AutoConfig.for_model(model_type, **config)
        model = _LIBRARY_CLASSES.get(model_type, transformers.AutoModelForCausalLM).from_config(settings)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("model_type", "config"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_parameters_equal_those_of_the_library(model_type, config):
    model = model_from_config({"model_type": model_type, **config})
    assert total_parameters(model) == library_parameters(model_type, config)


def test_every_known_family_is_compared():
    assert {model_type for model_type, _ in CASES} == set(model_types())


WINDOWS = [
    ("mistral", {**LLAMA, "num_attention_heads": 8}),
    ("mistral", {**LLAMA, "num_key_value_heads": 6, "sliding_window": None}),
    ("mixtral", {**LLAMA, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 3}),
    (
        "mixtral",
        {**LLAMA, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 9},
    ),
    ("qwen2", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 16, "max_window_layers": 1}),
    ("qwen2", {**LLAMA, "num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {**LLAMA, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 7}),
    (
        "qwen3",
        {
            **LLAMA,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    ("qwen2_moe", {**MOE, "num_key_value_heads": 2, "shared_expert_intermediate_size": 8, "use_sliding_window": True}),
    ("qwen3_moe", {**MOE, "num_attention_heads": 4, "use_sliding_window": True, "sliding_window": 32}),
    ("qwen3_moe", {**MOE, "num_attention_heads": 4, "sliding_window": 32}),
    ("gpt_oss", {**LLAMA, "num_attention_heads": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("gemma2", {**LLAMA, "num_hidden_layers": 5, "num_attention_heads": 8, "sliding_window": 16}),
    ("gemma3_text", {**LLAMA, "num_hidden_layers": 13, "num_attention_heads": 8}),
    ("gemma3_text", {**LLAMA, "num_hidden_layers": 5, "num_attention_heads": 8, "sliding_window_pattern": 2}),
    ("phi3", {**LLAMA, "sliding_window": 8, "pad_token_id": 0}),
]


@pytest.mark.parametrize(("model_type", "config"), WINDOWS, ids=lambda value: value if isinstance(value, str) else "")
def test_windows_equal_those_of_the_library(model_type, config):
    settings = transformers.AutoConfig.for_model(model_type, **config)
    layer_types = getattr(settings, "layer_types", None) or ["sliding_attention"] * config["num_hidden_layers"]
    expected = [settings.sliding_window if kind == "sliding_attention" else None for kind in layer_types]
    model = model_from_config({"model_type": model_type, **config})
    assert [block.attention.window for block in model.layers[1:-1]] == expected

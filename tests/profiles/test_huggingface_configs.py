import math
from itertools import pairwise

import pytest

from planner.spec.errors import InputError
from planner.spec.model import DenseFeedForward, LatentAttention, MoeFeedForward
from profiles import model_from_config, model_preset, model_types

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
}
MIXTRAL = {
    **LLAMA,
    "model_type": "mixtral",
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_hidden_layers": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 6}
BERT = {**LLAMA, "model_type": "bert"}
VIT = {
    "model_type": "vit",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {
    "model_type": "swin",
    "image_size": 56,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [2, 1, 3],
    "num_heads": [3, 6, 12],
}
T5 = {"model_type": "t5", "vocab_size": 96, "d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 3, "num_heads": 6}
DEFAULTS = ("model_type", "num_key_value_heads", "image_size", "patch_size")
REQUIRED = [
    (config, key)
    for config in (LLAMA, MIXTRAL, DEEPSEEK, GPT2, BERT, VIT, SWIN, T5)
    for key in config
    if key not in DEFAULTS
]
NO_COUNTS = [0, -1, 2.0, "4", True, math.nan, math.inf, [4], 2**60, None]


def fields(config):
    with pytest.raises(InputError) as caught:
        model_from_config(config)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0].field


def without(config, key):
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(("config", "key"), REQUIRED)
def test_a_missing_size_is_an_error_that_names_it(config, key):
    assert fields(without(config, key)) == f"hf_config.{key}"


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
@pytest.mark.parametrize(("config", "key"), [(LLAMA, "hidden_size"), (MIXTRAL, "num_local_experts"), (GPT2, "n_head")])
def test_a_size_that_is_no_count_is_an_error_that_names_it(config, key, value):
    assert fields({**config, key: value}) == f"hf_config.{key}"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**LLAMA, "num_attention_heads": 5}, "hidden_size"),
        ({**LLAMA, "num_key_value_heads": 4}, "num_attention_heads"),
        ({**LLAMA, "head_dim": 0}, "head_dim"),
        ({**LLAMA, "mlp_bias": 1}, "mlp_bias"),
        ({**LLAMA, "tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({**LLAMA, "num_hidden_layers": 1_000_000_000}, "num_hidden_layers"),
        ({**MIXTRAL, "num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({**MIXTRAL, "sliding_window": 0}, "sliding_window"),
        ({**GPT2, "n_embd": 50}, "n_embd"),
        ({**BERT, "is_decoder": True}, "is_decoder"),
        ({**VIT, "image_size": 33}, "image_size"),
        ({**VIT, "image_size": [32, 32, 3]}, "image_size"),
        ({**VIT, "id2label": {}}, "id2label"),
        ({**SWIN, "num_heads": [3, 6]}, "num_heads"),
        ({**SWIN, "depths": 3}, "depths"),
        ({**SWIN, "depths": []}, "depths"),
        ({**SWIN, "window_size": 5}, "window_size"),
        ({**SWIN, "image_size": 30, "window_size": 15}, "image_size"),
        ({**SWIN, "mlp_ratio": 0}, "mlp_ratio"),
        ({**T5, "feed_forward_proj": "swish"}, "feed_forward_proj"),
        ({**T5, "num_layers": 9000, "num_decoder_layers": 9000}, "num_decoder_layers"),
        ({**T5, "model_type": "switch_transformers", "num_sparse_encoder_layers": 4}, "num_sparse_encoder_layers"),
        ({**LLAMA, "model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention"),
        ({**DEEPSEEK, "q_lora_rank": 0}, "q_lora_rank"),
        ({**DEEPSEEK, "moe_layer_freq": 0}, "moe_layer_freq"),
        ({**DEEPSEEK, "first_k_dense_replace": -1}, "first_k_dense_replace"),
        ({**DEEPSEEK, "model_type": "deepseek_v2", "mlp_bias": True}, "mlp_bias"),
        ({**DEEPSEEK, "n_group": 3, "topk_group": 1}, "n_routed_experts"),
        ({**DEEPSEEK, "n_group": 2, "topk_group": 4}, "topk_group"),
        ({**DEEPSEEK, "n_group": 8, "topk_group": 1, "num_experts_per_tok": 2}, "topk_group"),
        ({**LLAMA, "model_type": "qwen2", "num_key_value_heads": 6, "layer_types": "full"}, "layer_types"),
        ({**LLAMA, "model_type": "qwen2", "num_key_value_heads": 6, "layer_types": ["full_attention"]}, "layer_types"),
        ({**LLAMA, "model_type": "qwen2", "num_key_value_heads": 6, "layer_types": ["linear"] * 4}, "layer_types"),
        ({**MIXTRAL, "model_type": "olmoe", "num_experts": 4, "head_dim": 16}, "head_dim"),
        (
            {
                **MIXTRAL,
                "model_type": "qwen3_moe",
                "num_experts": 4,
                "moe_intermediate_size": 8,
                "mlp_only_layers": [4],
            },
            "mlp_only_layers",
        ),
    ],
)
def test_what_cannot_be_built_is_an_error_that_names_the_key(config, field):
    assert fields(config) == f"hf_config.{field}"


@pytest.mark.parametrize("model_type", ["mamba", "", 7, ["llama"], None])
def test_an_unknown_model_type_is_an_error_that_lists_the_known_ones(model_type):
    with pytest.raises(InputError) as caught:
        model_from_config({**LLAMA, "model_type": model_type})
    (problem,) = caught.value.problems
    assert problem.field == "hf_config.model_type"
    assert all(known in problem.message for known in model_types())


def test_a_config_without_model_type_is_an_error_that_says_so():
    with pytest.raises(InputError, match=r"hf_config\.model_type: is required"):
        model_from_config(without(LLAMA, "model_type"))


def test_equal_neighbours_are_one_run():
    assert [run.num_layers for run in model_preset("mixtral-8x7b").runs] == [1, 32, 1]
    assert [run.num_layers for run in model_preset("deepseek-v3").runs] == [1, 3, 58, 1]


def test_no_two_neighbouring_runs_are_equal_where_windows_alternate():
    runs = model_preset("gpt-oss-20b").runs
    assert all(run.layer != following.layer for run, following in pairwise(runs))
    assert [run.layer.attention.window for run in runs[1:5]] == [128, None, 128, None]


def test_deepseek_v3_has_latent_attention_shared_experts_and_dense_layers_first():
    model = model_preset("deepseek-v3")
    first, last = model.layers[1], model.layers[-2]
    assert first.feed_forward == DenseFeedForward(width=18432)
    assert last.feed_forward == MoeFeedForward(
        num_experts=256, top_k=8, expert_width=2048, shared_width=2048, num_groups=8, groups_per_token=4
    )
    assert isinstance(last.attention, LatentAttention)
    assert model.moe_layers == tuple(range(4, 62))


def test_deepseek_v2_limits_routing_to_groups_where_its_method_says_so():
    limit = {"n_group": 4, "topk_group": 2, "model_type": "deepseek_v2"}
    greedy = model_from_config({**DEEPSEEK, **limit}).layers[-2].feed_forward
    limited = model_from_config({**DEEPSEEK, **limit, "topk_method": "group_limited_greedy"}).layers[-2].feed_forward
    assert (greedy.num_groups, greedy.groups_per_token) == (1, 1)
    assert (limited.num_groups, limited.groups_per_token) == (4, 2)
    preset = model_preset("deepseek-v2").layers[-2].feed_forward
    assert (preset.num_groups, preset.groups_per_token) == (8, 3)


def test_deepseek_layers_that_the_frequency_skips_are_dense():
    model = model_from_config({**DEEPSEEK, "first_k_dense_replace": 1, "moe_layer_freq": 2})
    assert model.moe_layers == (3, 5)


def test_qwen_layers_that_the_sparse_step_skips_are_dense():
    config = {**MIXTRAL, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8}
    model = model_from_config({**config, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert model.moe_layers == (2,)


def test_key_value_heads_default_to_all_heads_in_llama():
    attention = model_from_config(LLAMA).layers[1].attention
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (6, 6, 8)


def test_a_model_is_called_by_its_path_or_by_its_type_and_size():
    assert model_from_config({**LLAMA, "_name_or_path": "somebody/tiny-llama/"}).name == "tiny-llama"
    assert model_from_config(model_config_of_mixtral()).name == "mixtral-46.7b"
    assert model_from_config(LLAMA, "mine").name == "mine"


def model_config_of_mixtral():
    return {
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }

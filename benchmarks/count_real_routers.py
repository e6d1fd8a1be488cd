"""Counts of the frameworks that are too large for the dev extra, or exclude a newer one, against a second source.

By hand, each in an environment of its own that sees torch (PYTHONPATH is the repository):

    pip install --no-deps torchtitan==0.3.0 && pip install spmd_types==0.2.3 tyro einops triton
    pip install transformers==4.57.6
    PYTHONPATH=$PWD OMP_NUM_THREADS=1 python benchmarks/count_real_routers.py torchtitan | transformers

The second source: torchtitan's own counter in plain training; in transformers 4 the rows that each expert is called
with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.hooks import TokenMask, attach

CPU = torch.device("cpu")
EXPERTS, TOP_K = 8, 2


def torchtitan_layer() -> nn.Module:
    from torchtitan.models.common.linear import Linear  # noqa: PLC0415
    from torchtitan.models.common.moe import GroupedExperts, MoE, RoutedExperts, TokenChoiceTopKRouter  # noqa: PLC0415
    from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher  # noqa: PLC0415

    gate = Linear.Config(in_features=16, out_features=EXPERTS, bias=False)
    routed = RoutedExperts.Config(
        inner_experts=GroupedExperts.Config(dim=16, hidden_dim=32, num_experts=EXPERTS),
        token_dispatcher=LocalTokenDispatcher.Config(num_experts=EXPERTS, top_k=TOP_K),
    )
    router = TokenChoiceTopKRouter.Config(num_experts=EXPERTS, top_k=TOP_K, gate=gate)
    layer = MoE.Config(num_experts=EXPERTS, load_balance_coeff=None, router=router, routed_experts=routed).build()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer


def count_torchtitan() -> None:
    layer, mask = torchtitan_layer(), TokenMask()
    [counter] = attach(layer, mask=mask)
    hidden = torch.randn(2, 12, 16, requires_grad=True)
    layer(hidden).sum().backward()
    once = counter.take(CPU).tolist()
    assert once == layer.tokens_per_expert_E.tolist(), "its own counter"
    for reentrant in (False, True):
        checkpoint(layer, hidden, use_reentrant=reentrant).sum().backward()
        assert counter.take(CPU).tolist() == once, "recomputed"
    mask.real = torch.arange(24) < 10
    layer(hidden).sum().backward()
    assert counter.take(CPU).sum() == 10 * TOP_K, "masked"
    print("torchtitan: counts as its own counter; once when recomputed; masked")


def families() -> dict[str, Callable[[], Any]]:
    import transformers as hf  # noqa: PLC0415

    moe, width = {"moe_intermediate_size": 16}, {"shared_expert_intermediate_size": 16, "head_dim": 8}
    every_layer = {"expert_layer_period": 1, "expert_layer_offset": 0, "attn_layer_period": 1, "attn_layer_offset": 0}
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    groups = {"n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    return {
        "mixtral": lambda: hf.MixtralConfig(**small(num_local_experts=EXPERTS)),
        "qwen2_moe": lambda: hf.Qwen2MoeConfig(**small(num_experts=EXPERTS), **moe, **width),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(**small(num_experts=EXPERTS), **moe, head_dim=8),
        "qwen3_next": lambda: hf.Qwen3NextConfig(
            **small(num_experts=EXPERTS), **moe, **width, **linear, linear_value_head_dim=8
        ),
        "olmoe": lambda: hf.OlmoeConfig(**small(num_experts=EXPERTS)),
        "flex_olmo": lambda: hf.FlexOlmoConfig(**small(num_experts=EXPERTS), pad_token_id=1, eos_token_id=2),
        "minimax": lambda: hf.MiniMaxConfig(**small(num_local_experts=EXPERTS), head_dim=8),
        "jamba": lambda: hf.JambaConfig(
            **small(num_experts=EXPERTS), **every_layer, use_mamba_kernels=False, mamba_dt_rank=4
        ),
        "glm4_moe": lambda: hf.Glm4MoeConfig(**small(n_routed_experts=EXPERTS), **moe, head_dim=8),
        "dots1": lambda: hf.Dots1Config(
            **small(n_routed_experts=EXPERTS), **moe, routed_scaling_factor=1.0, n_shared_experts=1
        ),
        "deepseek_v3": lambda: hf.DeepseekV3Config(**small(num_key_value_heads=4), **moe, **latent, **groups),
    }


def small(**changes: int) -> dict[str, int]:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return sizes | heads | {"num_experts_per_tok": TOP_K} | changes


def count_transformers() -> None:
    import transformers  # noqa: PLC0415

    for name, config in families().items():
        model = transformers.AutoModelForCausalLM.from_config(config()).train()
        counters, rows = attach(model), rows_of_experts(model)
        model(input_ids=torch.randint(64, (2, 10)), use_cache=False).logits.sum().backward()
        assert [counter.take(CPU).tolist() for counter in counters] == list(rows.values()), name
        print(f"transformers {transformers.__version__}, {name}: {len(counters)} routers count what their experts got")


def rows_of_experts(model: nn.Module) -> dict[str, list[int]]:
    """Per layer the rows that each expert is called with; filled by its forward pass."""
    rows: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        *layer, experts, number = ("", "", *name.split("."))
        if experts == "experts" and number.isdigit():

            def note(_: nn.Module, inputs: Any, layer: str = ".".join(layer), number: str = number) -> None:
                rows.setdefault(layer, [0] * EXPERTS)[int(number)] += len(inputs[0])

            module.register_forward_pre_hook(note)
    return rows


if __name__ == "__main__":
    {"torchtitan": count_torchtitan, "transformers": count_transformers}[sys.argv[1]]()

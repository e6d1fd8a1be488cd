"""Megatron-LM's options as facts, and the way from them to megatron-core's own configuration.

Source: megatron/training/arguments.py of NVIDIA/Megatron-LM at 000c4ac: names, types, choices and destinations of the
options below; what `validate_args` and `core_transformer_config_from_args` make of them. `--moe-shared-expert-gate` is
made of the field of `TransformerConfig` (argument_utils.py, ArgumentGroupFactory) since core 0.16.
"""

from __future__ import annotations

import argparse
import re

import torch
import torch.nn.functional as F
from export_samples import quietly

FLAGS = (
    "--accumulate-allreduce-grads-in-fp32",
    "--add-qkv-bias",
    "--bf16",
    "--disable-bias-linear",
    "--fp16",
    "--grad-reduce-in-bf16",
    "--group-query-attention",
    "--moe-grouped-gemm",
    "--moe-router-pre-softmax",
    "--moe-shared-expert-gate",
    "--multi-latent-attention",
    "--no-bias-dropout-fusion",
    "--no-gradient-accumulation-fusion",
    "--overlap-grad-reduce",
    "--overlap-param-gather",
    "--qk-layernorm",
    "--sequence-parallel",
    "--swiglu",
    "--untie-embeddings-and-output-weights",
    "--use-distributed-optimizer",
    "--use-megatron-fsdp",
)
NUMBERS = (
    "--context-parallel-size",
    "--expert-model-parallel-size",
    "--expert-tensor-parallel-size",
    "--ffn-hidden-size",
    "--global-batch-size",
    "--hidden-size",
    "--kv-channels",
    "--kv-lora-rank",
    "--make-vocab-size-divisible-by",
    "--max-position-embeddings",
    "--micro-batch-size",
    "--moe-ffn-hidden-size",
    "--moe-router-group-topk",
    "--moe-router-num-groups",
    "--moe-router-topk",
    "--moe-shared-expert-intermediate-size",
    "--num-attention-heads",
    "--num-distributed-optimizer-instances",
    "--num-experts",
    "--num-layers",
    "--num-query-groups",
    "--num-virtual-stages-per-pipeline-rank",
    "--pipeline-model-parallel-size",
    "--q-lora-rank",
    "--qk-head-dim",
    "--qk-pos-emb-head-dim",
    "--recompute-num-layers",
    "--seq-length",
    "--tensor-model-parallel-size",
    "--v-head-dim",
)
FLOATS = ("--attention-dropout", "--hidden-dropout", "--moe-expert-capacity-factor")
CHOICES = {
    "--attention-backend": ["flash", "fused", "unfused", "local", "auto"],
    "--ckpt-format": ["torch", "torch_dist", "zarr", "torch_dcp", "fsdp_dtensor"],
    "--data-parallel-sharding-strategy": ["no_shard", "optim", "optim_grads", "optim_grads_params"],
    "--fp4-format": ["e2m1"],
    "--fp4-recipe": ["nvfp4", "custom"],
    "--fp8-format": ["e4m3", "hybrid"],
    "--fp8-recipe": ["tensorwise", "delayed", "mxfp8", "blockwise", "custom"],
    "--moe-token-dispatcher-type": ["allgather", "alltoall", "flex"],
    "--normalization": ["LayerNorm", "RMSNorm"],
    "--optimizer": ["adam", "sgd", "muon", "dist_muon"],
    "--position-embedding-type": ["learned_absolute", "rope", "mrope", "relative", "none"],
    "--recompute-granularity": ["full", "selective"],
    "--recompute-method": ["uniform", "block"],
    "--softmax-type": ["learnable", "vanilla", "off-by-one"],
}
TEXTS = ("--moe-layer-freq", "--pipeline-model-parallel-layout", "--window-attn-skip-freq", "--window-size")
LISTS = ("--cp-comm-type", "--recompute-modules")


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments as Megatron-LM reads them; exits on an option, a type or a choice that it has not."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in FLAGS:
        parser.add_argument(option, action="store_true")
    for options, kind in ((NUMBERS, int), (FLOATS, float), (TEXTS, str)):
        for option in options:
            parser.add_argument(option, type=kind)
    for option, choices in CHOICES.items():
        parser.add_argument(option, choices=choices)
    for option in LISTS:
        parser.add_argument(option, nargs="+")
    return parser.parse_args(words)


def pattern(text: str) -> list[int]:
    """A list of one number for each layer, as `_eval_pattern` reads it."""
    assert not re.search(r"[^,\d\[\]\(\)\+\*]", text)
    return eval(text)


def transformer_config(read: argparse.Namespace, megatron):
    """megatron-core's configuration, which checks itself; `megatron`: its module of configurations."""
    latent = read.multi_latent_attention
    kind = megatron.MLATransformerConfig if latent else megatron.TransformerConfig
    taken = {name: value for name, value in vars(read).items() if name in _SAME_NAME and value is not None}
    virtual = read.num_virtual_stages_per_pipeline_rank
    if read.window_size:
        taken["window_size"] = tuple(int(side) for side in read.window_size.split(","))
    if read.window_attn_skip_freq:
        taken["window_attn_skip_freq"] = pattern(read.window_attn_skip_freq)
    if read.moe_layer_freq:
        taken["moe_layer_freq"] = pattern(read.moe_layer_freq)
    if latent:
        # The option's default is None, and is handed on: queries without a low rank.
        taken |= {key: value for key, value in vars(read).items() if key in _LATENT}
    arguments = dict(
        **taken,
        num_query_groups=read.num_query_groups if read.group_query_attention else None,
        num_moe_experts=read.num_experts,
        virtual_pipeline_model_parallel_size=virtual,
        gated_linear_unit=read.swiglu,
        activation_func=F.silu if read.swiglu else F.gelu,
        add_bias_linear=not read.disable_bias_linear,
        context_parallel_size=read.context_parallel_size or 1,
        pipeline_dtype=torch.bfloat16,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=not read.no_bias_dropout_fusion,
    )
    with quietly():
        return kind(**arguments)


_SAME_NAME = {
    "add_qkv_bias",
    "attention_dropout",
    "bf16",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "ffn_hidden_size",
    "fp16",
    "hidden_dropout",
    "hidden_size",
    "kv_channels",
    "moe_expert_capacity_factor",
    "moe_ffn_hidden_size",
    "moe_grouped_gemm",
    "moe_router_group_topk",
    "moe_router_num_groups",
    "moe_router_pre_softmax",
    "moe_router_topk",
    "moe_shared_expert_gate",
    "moe_shared_expert_intermediate_size",
    "moe_token_dispatcher_type",
    "normalization",
    "num_attention_heads",
    "num_layers",
    "pipeline_model_parallel_layout",
    "pipeline_model_parallel_size",
    "qk_layernorm",
    "recompute_granularity",
    "recompute_method",
    "recompute_modules",
    "recompute_num_layers",
    "sequence_parallel",
    "softmax_type",
    "tensor_model_parallel_size",
}
_LATENT = {"kv_lora_rank", "q_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"}

"""A model and a recipe as arguments of Megatron-LM's `pretrain_gpt.py`. Passes megatron_rules.py.

Source: `megatron/training/arguments.py` of Megatron-LM 000c4ac; megatron-core 0.16.1, `transformer_config.py`, for
`--moe-shared-expert-gate`, which is made of its field. Windows: Transformer Engine counts the tokens to the left, so a
window of w tokens, the token itself included, is w - 1.
"""

from __future__ import annotations

from itertools import groupby

from planner.export.job import Job
from planner.export.megatron_rules import dense_of, experts_of, windows
from planner.export.shell import Arguments, argument
from planner.spec.cluster import Precision
from planner.spec.model import Embedding, GroupedQueryAttention, Head, LatentAttention, Norm
from planner.spec.training import AttentionKernel, Optimizer

VOCABULARY_MULTIPLE = 128
"""Rows of the vocabulary on a rank are a multiple of it."""


def model_arguments(job: Job) -> Arguments:
    """Sizes and parts of the blocks."""
    dense, experts = dense_of(job), experts_of(job)
    block = job.blocks[0]
    width = dense.width if dense else experts[0].expert_width
    head = job.model.layers[-1]
    untied = isinstance(head, Head) and not head.tied
    return (
        argument("--num-layers", len(job.blocks)),
        argument("--hidden-size", job.model.hidden_size),
        argument("--ffn-hidden-size", width),
        *_attention(job),
        argument("--normalization", "RMSNorm" if block.norm is Norm.RMS else "LayerNorm"),
        *([argument("--swiglu")] if block.feed_forward.gated else []),
        *_biases(job),
        *_positions(job),
        *([argument("--untie-embeddings-and-output-weights")] if untied else []),
        argument("--make-vocab-size-divisible-by", VOCABULARY_MULTIPLE),
    )


def padded_vocabulary(job: Job) -> tuple[int, int]:
    """Tokens of the vocabulary, and rows of the padded matrix."""
    first = job.model.layers[0]
    assert isinstance(first, Embedding)
    multiple = VOCABULARY_MULTIPLE * job.first.tp
    return first.vocab_size, -(-first.vocab_size // multiple) * multiple


def _attention(job: Job) -> Arguments:
    attention = job.blocks[0].attention
    heads = (argument("--num-attention-heads", attention.num_heads),)
    if isinstance(attention, LatentAttention):
        ranks = [argument("--q-lora-rank", attention.q_lora_rank)] if attention.q_lora_rank else []
        return (
            *heads,
            argument("--multi-latent-attention"),
            *ranks,
            argument("--kv-lora-rank", attention.kv_lora_rank),
            argument("--qk-head-dim", attention.qk_nope_head_dim),
            argument("--qk-pos-emb-head-dim", attention.qk_rope_head_dim),
            argument("--v-head-dim", attention.v_head_dim),
            argument("--qk-layernorm"),
        )
    grouped = attention.num_kv_heads < attention.num_heads
    groups = [argument("--group-query-attention"), argument("--num-query-groups", attention.num_kv_heads)]
    return (
        *heads,
        *(groups if grouped else []),
        argument("--kv-channels", attention.head_dim),
        *([argument("--qk-layernorm")] if attention.qk_norm == "per_head" else []),
        *([argument("--softmax-type", "learnable")] if attention.sinks else []),
        *_windows(job),
    )


def _windows(job: Job) -> Arguments:
    size = next((window for window in windows(job) if window is not None), None)
    if size is None:
        return ()
    narrow = [isinstance(b.attention, GroupedQueryAttention) and b.attention.window is not None for b in job.blocks]
    which = () if all(narrow) else (argument("--window-attn-skip-freq", pattern(narrow)),)
    return (argument("--window-size", f"{size - 1},0"), *which)


def _biases(job: Job) -> Arguments:
    block = job.blocks[0]
    if block.feed_forward.bias:
        return (argument("--no-bias-dropout-fusion"),) if experts_of(job) else ()
    queries = isinstance(block.attention, GroupedQueryAttention) and block.attention.qkv_bias
    return (argument("--disable-bias-linear"), *([argument("--add-qkv-bias")] if queries else []))


def _positions(job: Job) -> Arguments:
    first = job.model.layers[0]
    learned = first.num_positions if isinstance(first, Embedding) else 0
    longest = learned or max(job.plan.sequence_length, job.model.max_sequence_length or 0)
    kind = "learned_absolute" if learned else "rope"
    return (argument("--position-embedding-type", kind), argument("--max-position-embeddings", longest))


def expert_arguments(job: Job) -> Arguments:
    """Router, experts, shared experts; empty without them. The user's loss for balance is a variable of the script.

    One expert for each token needs softmax before the choice: after it, its gradient would be zero
    (`TransformerConfig.__post_init__`).
    """
    if not experts_of(job):
        return ()
    experts = experts_of(job)[0]
    dense = [block.moe is None for block in job.blocks]
    groups = [
        argument("--moe-router-num-groups", experts.num_groups),
        argument("--moe-router-group-topk", experts.groups_per_token),
    ]
    shared = [argument("--moe-shared-expert-intermediate-size", experts.shared_width)]
    shared += [argument("--moe-shared-expert-gate")] if experts.shared_gate else []
    capacity = job.training.capacity_factor
    half = job.training.precision in (Precision.FP16, Precision.FP32)
    return (
        argument("--num-experts", experts.num_experts),
        argument("--moe-ffn-hidden-size", experts.expert_width),
        argument("--moe-router-topk", experts.top_k),
        *([argument("--moe-router-pre-softmax")] if experts.top_k == 1 else []),
        *([argument("--moe-layer-freq", pattern([not each for each in dense]))] if any(dense) else []),
        *(groups if experts.num_groups > 1 else []),
        *(shared if experts.shared_width else []),
        *([] if half else [argument("--moe-grouped-gemm")]),
        argument("--moe-token-dispatcher-type", "alltoall"),
        *([] if capacity is None else [argument("--moe-expert-capacity-factor", capacity)]),
    )


def recipe_arguments(job: Job) -> Arguments:
    """Batch, sequence, number formats, optimizer, dropout."""
    plan, training = job.plan, job.training
    kernel = (
        [argument("--attention-backend", "unfused")] if training.attention_kernel is AttentionKernel.UNFUSED else []
    )
    return (
        argument("--micro-batch-size", plan.micro_batch_size),
        argument("--global-batch-size", plan.global_batch_size),
        argument("--seq-length", plan.sequence_length),
        argument("--optimizer", "adam" if training.optimizer is Optimizer.ADAM else "sgd"),
        argument("--attention-dropout", 0.0),
        argument("--hidden-dropout", 0.1 if training.dropout else 0.0),
        *kernel,
        *_FORMATS[training.precision],
        *_gradients(job),
    )


_BF16 = argument("--bf16")
_FORMATS: dict[Precision, Arguments] = {
    Precision.FP32: (),
    Precision.FP16: (argument("--fp16"),),
    Precision.BF16: (_BF16,),
    Precision.FP8: (_BF16, argument("--fp8-format", "hybrid"), argument("--fp8-recipe", "tensorwise")),
    Precision.MXFP8: (_BF16, argument("--fp8-format", "e4m3"), argument("--fp8-recipe", "mxfp8")),
    Precision.NVFP4: (_BF16, argument("--fp4-format", "e2m1"), argument("--fp4-recipe", "nvfp4")),
}


def _gradients(job: Job) -> Arguments:
    if job.training.precision is Precision.FP32:
        return ()
    if job.training.gradient_precision is Precision.FP32:
        return (argument("--accumulate-allreduce-grads-in-fp32"),)
    return (argument("--grad-reduce-in-bf16"),) if job.training.gradient_precision is Precision.BF16 else ()


def pattern(flags: list[bool]) -> str:
    """`[0]*1+[1]*26`, or `[1,0,1,0]` where that is shorter: what Megatron-LM reads as one number for each block."""
    runs = [(int(flag), len(list(equal))) for flag, equal in groupby(flags)]
    short = "+".join(f"[{flag}]*{count}" for flag, count in runs)
    return min(short, f"[{','.join(str(int(flag)) for flag in flags)}]", key=len)

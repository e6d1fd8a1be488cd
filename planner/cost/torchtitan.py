"""What torchtitan can run. Read in commit b5bcd76 (2026-08-21); where v0.2.2 differs, that is said.

Stages of any size are written as `module_fqns_per_model_part`. Its zero-bubble schedules (InterleavedZeroBubble,
ZBVZeroBubble, DualPipeV) hold two stages per rank or more, so our `zero_bubble`, which is ZB-H1, is none of them.
Activation checkpointing is one mode for the model; `selective_ac_option` that takes every n-th block is not used.
"""

from __future__ import annotations

from planner.cost.framework import Framework, Pipelined, Used, can_shard
from planner.spec.cluster import Precision
from planner.spec.model import Block, GroupedQueryAttention, Head
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import AxisKind, Recompute, Sharding


def torchtitan_key_value_heads(used: Used) -> str | None:
    """Groups of keys and values are cut, never replicated (torchtitan#4016)."""
    attention = used.layer.attention if isinstance(used.layer, Block) else None
    if isinstance(attention, GroupedQueryAttention) and attention.num_kv_heads % used.strategy.tp:
        return f"tp {used.strategy.tp} must divide the {attention.num_kv_heads} key-value heads for torchtitan"
    return None


def torchtitan_sequence_divides(used: Used) -> str | None:
    """`ParallelDims.seq_len_divisor`: twice tp x cp, whether or not there is context or sequence parallelism."""
    divisor = 2 * used.strategy.tp * used.strategy.cp
    if divisor > 2 and used.training.sequence_length % divisor:
        return f"2 x tp x cp = {divisor} must divide the sequence length {used.training.sequence_length} for torchtitan"
    return None


def torchtitan_plain_data_parallelism_alone(used: Used) -> str | None:
    """DDP "has not supported > 1D parallelism"; with cp or ep there is always FSDP (`parallelize.py`)."""
    strategy = used.strategy
    if strategy.sharding is not Sharding.NONE or not can_shard(strategy):
        return None
    other = strategy.tp * strategy.cp * (strategy.experts.expert_parallel_size if strategy.experts else 1)
    if other > 1:
        return "sharding must be gradients or full for torchtitan where dp is not the only axis"
    return None


def torchtitan_expert_tensor_parallelism(used: Used) -> str | None:
    """Experts are cut by tp without expert parallelism and whole with it (v0.2.2 also: etp = tp with it)."""
    experts = used.strategy.experts
    if experts is None:
        return None
    right = used.strategy.tp if experts.expert_parallel_size == 1 else 1
    if experts.expert_tensor_parallel_size != right:
        return (
            f"expert_tensor_parallel_size must be {right} for torchtitan with tp {used.strategy.tp} and "
            f"expert_parallel_size {experts.expert_parallel_size}"
        )
    return None


def torchtitan_experts_inside_shards(used: Used) -> str | None:
    """`dp_shard * cp * tp % ep == 0`: expert parallelism does not cross replicas of hybrid sharding."""
    experts, sdp = used.strategy.experts, used.strategy.degree(AxisKind.SDP)
    inner = sdp * used.strategy.cp * used.strategy.tp
    if experts is not None and sdp > 1 and inner % experts.expert_parallel_size:
        return f"expert_parallel_size {experts.expert_parallel_size} must divide sdp x cp x tp = {inner} for torchtitan"
    return None


def torchtitan_untied_pipeline(pipelined: Pipelined) -> str | None:
    """Weight tying is refused with a pipeline."""
    last = pipelined.model.layers[-1]
    if pipelined.num_stages > 1 and isinstance(last, Head) and last.tied:
        return "there must be one stage for torchtitan, because embedding and head share a matrix"
    return None


def torchtitan_micro_batches_fill_stages(pipelined: Pipelined) -> str | None:
    """torch's Schedule1F1B raises with fewer micro-batches than stages."""
    plain = pipelined.schedule.kind is ScheduleKind.ONE_F_ONE_B
    if plain and pipelined.num_micro_batches < pipelined.num_stages:
        return (
            f"1f1b needs as many micro-batches as the {pipelined.num_stages} stages for torchtitan, not "
            f"{pipelined.num_micro_batches}"
        )
    return None


TORCHTITAN = Framework(
    name="torchtitan",
    version="b5bcd76",
    axes=("dp", "sdp", "tp", "pp", "ep", "cp", "sp"),
    # The mesh is pp, dp_replicate, dp_shard, cp, tp, outermost first.
    order=(AxisKind.DP, AxisKind.SDP, AxisKind.CP, AxisKind.TP),
    # No ZeRO-1: plain DDP, or FSDP2 with fsdp_reshard_after_forward never (ZeRO-2) or always (ZeRO-3).
    shardings=(Sharding.NONE, Sharding.GRADIENTS, Sharding.FULL),
    pipelined_shardings=(Sharding.GRADIENTS, Sharding.FULL),
    recompute=tuple(Recompute),
    recomputes_first_blocks=False,
    schedules=(ScheduleKind.ONE_F_ONE_B, ScheduleKind.INTERLEAVED, ScheduleKind.GPIPE),
    # training.mixed_precision_param is bfloat16 or float32; Float8 and MXFP8 are converters.
    precisions=(Precision.FP32, Precision.BF16, Precision.FP8, Precision.MXFP8),
    # training.mixed_precision_reduce has float32 alone.
    gradient_precisions=(Precision.FP32,),
    strategy_rules=(
        torchtitan_key_value_heads,
        torchtitan_sequence_divides,
        torchtitan_plain_data_parallelism_alone,
        torchtitan_expert_tensor_parallelism,
        torchtitan_experts_inside_shards,
    ),
    pipeline_rules=(torchtitan_untied_pipeline, torchtitan_micro_batches_fill_stages),
)

"""What DeepSpeed can run. Read in 0.19.6; its partition functions were run beside `deepspeed_cuts`.

Without a pipeline there are ZeRO, AutoTP, `MoE` and AutoEP (which has MoE layers with ZeRO-3), with one there is
`PipelineModule`. A pipeline with tp takes tensor-parallel layers of the client (its mpu). Sequence parallelism in
Megatron's sense and ring attention are not there; and because tokens of MoE layers under tp need the former (rules.py),
MoE layers have no tp here. MoE in a pipeline works since DeepSpeed#5338.
"""

from __future__ import annotations

from planner.cost.framework import Framework, Starts, Used
from planner.spec.cluster import Precision
from planner.spec.model import Block, GroupedQueryAttention, Model
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import AxisKind, Recompute, Sharding


def deepspeed_key_value_heads(used: Used) -> str | None:
    """AutoTP only warns where tp exceeds the key-value heads, and does not replicate them."""
    attention = used.layer.attention if isinstance(used.layer, Block) else None
    if isinstance(attention, GroupedQueryAttention) and attention.num_kv_heads % used.strategy.tp:
        return f"tp {used.strategy.tp} must divide the {attention.num_kv_heads} key-value heads for DeepSpeed"
    return None


def deepspeed_hybrid_sharding_without_tp(used: Used) -> str | None:
    """Shards that are replicated are MiCS (`mics_shard_size`), which is not known to go with tensor parallelism."""
    if used.strategy.degree(AxisKind.SDP) > 1 and used.strategy.tp > 1:
        return "tp must be 1 where dp replicates sdp (MiCS) for DeepSpeed"
    return None


def deepspeed_whole_experts(used: Used) -> str | None:
    """`expert_tensor_parallel_size` must be 1 yet; `MoE` cuts experts only as tp cuts the rest, which is not there."""
    experts = used.strategy.experts
    if experts is not None and experts.expert_tensor_parallel_size > 1:
        return "expert_tensor_parallel_size must be 1 for DeepSpeed"
    return None


def deepspeed_experts_without_mics(used: Used) -> str | None:
    """MoE layers go with ZeRO-3 through AutoEP alone, which refuses MiCS."""
    if used.strategy.experts is not None and used.strategy.degree(AxisKind.SDP) > 1:
        return "axes must not replicate sdp (MiCS) for DeepSpeed's MoE layers"
    return None


def deepspeed_cuts(model: Model, num_stages: int) -> tuple[Starts, ...]:
    """`partition_method` type:Block, if the blocks divide, and uniform, which counts embedding and head as layers.

    Of uniform stages the first ones are one layer longer where layers are left over. `parameters`, which depends on
    sizes, is not used.
    """
    size, rest = divmod(len(model.layers), num_stages)
    found = [tuple(stage * size + min(stage, rest) for stage in range(num_stages))] if size else []
    blocks = [number for number, layer in enumerate(model.layers) if isinstance(layer, Block)]
    if len(blocks) % num_stages == 0:
        found.append((0, *blocks[:: len(blocks) // num_stages][1:]))
    return tuple(dict.fromkeys(found))


DEEPSPEED = Framework(
    name="DeepSpeed",
    version="0.19.6",
    axes=("dp", "sdp", "tp", "pp", "ep"),
    # The topology is pipe, data, model, outermost first.
    order=(AxisKind.DP, AxisKind.SDP, AxisKind.TP),
    shardings=tuple(Sharding),
    # "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism".
    pipelined_shardings=(Sharding.NONE, Sharding.OPTIMIZER),
    # Whole layers: activation_checkpoint_interval 1 of a PipelineModule, or the model's own.
    recompute=(Recompute.NONE, Recompute.FULL),
    recomputes_first_blocks=False,
    schedules=(ScheduleKind.ONE_F_ONE_B,),
    precisions=(Precision.FP32, Precision.FP16, Precision.BF16),
    gradient_precisions=(Precision.FP32, Precision.FP16, Precision.BF16),
    strategy_rules=(
        deepspeed_key_value_heads,
        deepspeed_hybrid_sharding_without_tp,
        deepspeed_whole_experts,
        deepspeed_experts_without_mics,
    ),
    cuts=deepspeed_cuts,
)

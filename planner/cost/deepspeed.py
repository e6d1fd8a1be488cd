"""What DeepSpeed can run. Read in 0.19.6 and 0.19.8; its partition functions were run beside `deepspeed_cuts`.

Without a pipeline there are ZeRO, AutoTP, `MoE` and AutoEP (which has MoE layers with ZeRO-3), with one there is
`PipelineModule`. A pipeline with tp takes tensor-parallel layers of the client (its mpu). Sequence parallelism in
Megatron's sense and ring attention are not there; and because tokens of MoE layers under tp need the former (rules.py),
MoE layers have no tp here. MoE in a pipeline works since DeepSpeed#5338.
"""

from __future__ import annotations

from planner.cost.framework import Framework, Starts, Used, can_shard
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


def deepspeed_without_mics(used: Used) -> str | None:
    """ "MiCS ZeRO-3 sharding has been removed" (0.19.8), and with it shards that are replicated."""
    if used.strategy.degree(AxisKind.SDP) > 1:
        return "axes must not replicate shards (dp beside sdp) for DeepSpeed, which has no MiCS any more"
    return None


def deepspeed_gradients_under_zero(used: Used) -> str | None:
    """Without ZeRO "unsupported mix of model_dtype and grad_accum_dtype" (`_do_optimizer_sanity_check`).

    Where there is nothing to shard, ZeRO-1 over one rank sums gradients in other numbers than weights have.
    """
    precision, gradients = used.training.precision, used.training.gradient_precision
    plain = used.strategy.sharding is Sharding.NONE and can_shard(used.strategy)
    if plain and gradients is not precision and not precision.is_quantised:
        return f"sharding must not be none for DeepSpeed with gradient_precision {gradients} and precision {precision}"
    return None


def deepspeed_whole_experts(used: Used) -> str | None:
    """`expert_tensor_parallel_size` must be 1 yet; `MoE` cuts experts only as tp cuts the rest, which is not there."""
    experts = used.strategy.experts
    if experts is not None and experts.expert_tensor_parallel_size > 1:
        return "expert_tensor_parallel_size must be 1 for DeepSpeed"
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
    version="0.19.8",
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
        deepspeed_without_mics,
        deepspeed_gradients_under_zero,
        deepspeed_whole_experts,
    ),
    cuts=deepspeed_cuts,
)

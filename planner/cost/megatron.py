"""What Megatron-LM can run. Read in commit d98e8a6 (2026-08-22), tried on megatron-core 0.16.1.

What binds Megatron but holds for every plan, or is a rule for all (rules.py), is not repeated here: ranks are
pp x tp x cp x dp and pp x etp x ep x edp at once, heads divide by tp, query groups divide or are divided, the sequence
by twice cp, experts by ep, and expert parallelism with tp needs sequence parallelism (a warning there, an error here).
Uneven and interleaved stages of any size are written as `--pipeline-model-parallel-layout`.
"""

from __future__ import annotations

from planner.cost.framework import Framework, Used
from planner.spec.cluster import Precision
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import AxisKind, Recompute, Sharding
from planner.spec.training import Optimizer


def megatron_experts_inside_replicas(used: Used) -> str | None:
    """`parallel_state`: `--num-distributed-optimizer-instances`, our dp beside sdp, must divide edp."""
    experts, sdp = used.strategy.experts, used.strategy.degree(AxisKind.SDP)
    replicas = used.strategy.degree(AxisKind.DP)
    if experts is not None and sdp > 1 and experts.expert_data_parallel_size % replicas:
        return f"dp {replicas} beside sdp must divide edp {experts.expert_data_parallel_size} for Megatron-LM"
    return None


def megatron_experts_without_fp16(used: Used) -> str | None:
    """`validate_args`: "Expert parallelism is not supported with fp16 training"."""
    experts = used.strategy.experts
    if experts is not None and experts.expert_parallel_size > 1 and used.training.precision is Precision.FP16:
        return "expert_parallel_size must be 1 with precision fp16 for Megatron-LM"
    return None


def megatron_adam_where_sharded(used: Used) -> str | None:
    """The distributed optimizer, and Megatron-FSDP with it, takes Adam alone (`optimizer/distrib_optimizer.py`)."""
    if used.strategy.sharding is not Sharding.NONE and used.training.optimizer is not Optimizer.ADAM:
        return f"sharding must be none with optimizer {used.training.optimizer} for Megatron-LM"
    return None


MEGATRON = Framework(
    name="Megatron-LM",
    version="d98e8a6",
    axes=("dp", "sdp", "tp", "pp", "ep", "cp", "sp"),
    # --use-tp-pp-dp-mapping aside, parallel_state's order is tp-cp-ep-dp-pp, innermost first; a stage is outermost.
    order=(AxisKind.DP, AxisKind.SDP, AxisKind.CP, AxisKind.TP),
    # ZeRO-1 is --use-distributed-optimizer; ZeRO-2 and 3 are --use-megatron-fsdp, for the whole model.
    shardings=tuple(Sharding),
    # Its guide names TP, EP and CP as what Megatron-FSDP goes with, not PP; torch-fsdp2 refuses PP.
    pipelined_shardings=(Sharding.NONE, Sharding.OPTIMIZER),
    # --recompute-granularity is one for the model.
    recompute=tuple(Recompute),
    # --recompute-method block --recompute-num-layers n: of each model chunk, which is a virtual stage.
    recomputes_first_blocks=True,
    schedules=(ScheduleKind.ONE_F_ONE_B, ScheduleKind.INTERLEAVED),
    precisions=tuple(Precision),
    gradient_precisions=(Precision.FP32, Precision.FP16, Precision.BF16),
    strategy_rules=(
        megatron_experts_inside_replicas,
        megatron_experts_without_fp16,
        megatron_adam_where_sharded,
    ),
)

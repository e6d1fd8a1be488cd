"""What Galvatron can run of a plan, as rules with names. Each layer may have its own strategy.

Source: PKU-DAIR/Hetu-Galvatron 2.4 and 3.0: `utils/config_utils.py`, `core/runtime/args_schema.py`,
`core/runtime/arguments.py`. Files with experts exist (`ep_sizes_enc`, `tp_of_ep_sizes_enc`), but how their ranks are
numbered under tensor parallelism is not described here, so that they are not written. The search has no target of this
name: plans of any search that pass are exported.
"""

from __future__ import annotations

from planner.cost.framework import can_shard
from planner.export.job import Job
from planner.export.rules import ExportRule, decoder_only, gradients_as_weights, nodes_of_one_size
from planner.spec.cluster import Precision
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import Optimizer

_ORDER = (AxisKind.DP, AxisKind.CP, AxisKind.ULYSSES, AxisKind.TP)
_SCHEDULES = (ScheduleKind.ONE_F_ONE_B, ScheduleKind.GPIPE)
_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)


def galvatron_dense_blocks(job: Job) -> str | None:
    """No experts."""
    return "the model must have no experts for Galvatron" if job.model.moe_layers else None


def galvatron_axes(job: Job) -> str | None:
    """dp, cp, then tensor parallelism or Ulysses, nearest last: with a file, ranks are numbered in no other way."""
    for _, strategy in job.strategies:
        kinds = [axis.kind for axis in strategy.axes]
        if AxisKind.SDP in kinds or (strategy.tp > 1 and strategy.ulysses > 1):
            return "axes must be dp, cp, and one of ulysses and tp for Galvatron"
        if kinds != [kind for kind in _ORDER if kind in kinds]:
            return "axes must stand in Galvatron's order, outermost first: dp cp ulysses tp"
    return None


def galvatron_stages(job: Job) -> str | None:
    """Stages of equally many devices, each with a block, forward and back or all forward first."""
    if len({stage.num_devices for stage in job.plan.stages}) > 1:
        return "all stages must have equally many devices for Galvatron"
    if not all(piece.blocks for piece in job.pieces):
        return "every stage must have a block for Galvatron"
    if job.plan.schedule.kind not in _SCHEDULES:
        return f"the schedule must be {' or '.join(_SCHEDULES)} for Galvatron"
    return None


def galvatron_one_default_sharding(job: Job) -> str | None:
    """Layers are under ZeRO-3 or the default: none, ZeRO-2, or, where gradients are summed whole, ZeRO-1."""
    kinds = default_shardings(job)
    if len(kinds) > 1:
        return f"sharding must be full or one other for Galvatron, not {' and '.join(sorted(kinds))}"
    if Sharding.OPTIMIZER in kinds and job.plan.num_micro_batches == 1:
        return "sharding must be none, gradients or full with one micro-batch for Galvatron"
    return None


def galvatron_one_edge(job: Job) -> str | None:
    """Embedding and head have one set of keys."""
    first, last = _edges(job)
    if first != last:
        return "embedding and head must have one strategy for Galvatron"
    return None


def galvatron_one_sequence_parallel(job: Job) -> str | None:
    """`sequence_parallel` is one for all layers that tensor parallelism cuts."""
    if len({strategy.sequence_parallel for _, strategy in job.strategies if strategy.tp > 1}) > 1:
        return "sequence_parallel must be the same in all layers under tensor parallelism for Galvatron"
    return None


def galvatron_recompute(job: Job) -> str | None:
    """`checkpoint` is a flag of each block: nothing, or the whole of it."""
    if any(strategy.recompute is Recompute.SELECTIVE for _, strategy in job.strategies):
        return "recompute must be none or full for Galvatron"
    if any(strategy.recompute is not Recompute.NONE for strategy in _edges(job)):
        return "recompute must be none for embedding and head for Galvatron"
    return None


def galvatron_recipe(job: Job) -> str | None:
    """16 or 32 bits, Adam, no offload."""
    if job.training.precision not in _PRECISIONS:
        return f"precision must be {' or '.join(_PRECISIONS)} for Galvatron"
    if job.training.optimizer is not Optimizer.ADAM:
        return "the optimizer must be adam for Galvatron"
    if any(strategy.offload for _, strategy in job.strategies):
        return "offload must be false for Galvatron"
    return None


def default_shardings(job: Job) -> frozenset[Sharding]:
    """Of the layers that have something to shard and are not under ZeRO-3."""
    return frozenset(s.sharding for _, s in job.strategies if can_shard(s) and s.sharding is not Sharding.FULL)


def _edges(job: Job) -> tuple[Strategy, ...]:
    return job.strategies[0][1], job.strategies[-1][1]


GALVATRON_EXPORT_RULES: tuple[ExportRule, ...] = (
    nodes_of_one_size,
    decoder_only,
    gradients_as_weights,
    galvatron_dense_blocks,
    galvatron_axes,
    galvatron_stages,
    galvatron_one_default_sharding,
    galvatron_one_edge,
    galvatron_one_sequence_parallel,
    galvatron_recompute,
    galvatron_recipe,
)

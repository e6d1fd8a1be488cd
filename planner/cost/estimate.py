"""estimate(): the only front door to the price of a plan."""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.assumptions import assumptions
from planner.cost.band import error_band
from planner.cost.flops import model_flops_per_sample
from planner.cost.layer import PASS_PARTS
from planner.cost.pipeline import Pace
from planner.cost.prepared import Prepared
from planner.cost.step import Bill, Condition, bill_of, bills_under, host_s, whole_step_s
from planner.spec.cluster import Cluster
from planner.spec.estimate import Estimate, StageEstimate, StageTime
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.placement import Placement
from planner.spec.plan import Plan
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload


def estimate(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workload: Workload = BALANCED,
    placement: Placement | None = None,
) -> Estimate:
    """Predicted seconds per step and bytes per stage of a plan, in named parts.

    `placement` holds for the plan's expert-parallel ranks, its replicas take memory; None: experts in order. Raises
    InputError if the values do not match each other. A plan that does not fit has a price too: see `fits` and
    `missing_bytes`.
    """
    [price] = estimates(model, cluster, training, plan, ((workload, placement),))
    return price


def estimates(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    conditions: Sequence[Workload | Condition],
) -> list[Estimate]:
    """The price of a plan under each workload, or workload and placement, as `estimate` tells it.

    What they have in common is priced once; `planner.cost.StepPrices` tells no more than the time, more quickly.
    """
    pairs = [(each, None) if isinstance(each, Workload) else each for each in conditions]
    if not pairs:
        return []
    prepared = Prepared(model, cluster, training, plan)
    made = bills_under(prepared, pairs)
    if len(pairs) == 1:
        return [_estimate(prepared, made, pairs[0])]
    return [_estimate(prepared, [bill_of(bill, i) for bill in made], pair) for i, pair in enumerate(pairs)]


def stage_paces(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workload: Workload = BALANCED,
    placement: Placement | None = None,
) -> list[Pace]:
    """What `estimate` tells the closed forms of pipelines, by stage: messages are counted with the stage entered."""
    return [bill.pace for bill in bills_under(Prepared(model, cluster, training, plan), [(workload, placement)])]


def _estimate(prepared: Prepared, made: list[Bill], condition: Condition) -> Estimate:
    model, cluster, plan, training = prepared.model, prepared.cluster, prepared.plan, prepared.training
    step = whole_step_s(prepared, made)
    tokens = plan.global_batch_size * plan.sequence_length
    flops = model_flops_per_sample(model, plan.sequence_length, training.encoder_length) * plan.global_batch_size
    flops_per_s = flops / step
    times = {pace: _stage_time(pace) for pace in {bill.pace for bill in made}}
    groups = [cluster.group_of(stage.first_device, stage.num_devices) for stage in plan.stages]
    stages = tuple(_stage_estimate(bill, times[bill.pace], group) for bill, group in zip(made, groups, strict=True))
    return Estimate(
        plan_id=plan.id,
        workload=condition[0].name,
        step_time_s=step,
        tokens_per_s=tokens / step,
        tokens_per_s_per_device=tokens / step / cluster.num_devices,
        tflops_per_device=flops_per_s / cluster.num_devices / 1e12,
        mfu=flops_per_s / _peak_flops_per_s(cluster, training),
        time=_time_parts(plan, made, step, host_s(cluster)),
        stages=stages,
        fits=all(stage.missing_bytes == stage.missing_host_bytes == 0 for stage in stages),
        provenance=cluster.provenance,
        error_band=error_band(model, cluster, step),
        assumptions=assumptions(model, cluster, training, plan, *condition),
    )


def _peak_flops_per_s(cluster: AnyCluster, training: Training) -> float:
    """Of all devices together."""
    total = 0.0
    for group in cluster.groups:
        peak = group.device.peak(training.precision)
        assert peak is not None, "conditions() has checked the number format"
        total += group.num_devices * peak
    return total


def _stage_time(pace: Pace) -> StageTime:
    return StageTime(micro_batch_s=pace.forward_s + pace.backward_s, once_per_step_s=pace.once_s)


def _stage_estimate(bill: Bill, time: StageTime, group: Cluster) -> StageEstimate:
    return StageEstimate(
        device=group.device.name,
        memory=bill.memory,
        peak_memory_bytes=sum(bill.memory.values()),
        limit_bytes=group.usable_bytes,
        time=time,
        host_bytes=bill.host_bytes,
        host_limit_bytes=group.device.host.memory_bytes if group.device.host else 0,
    )


def _time_parts(plan: Plan, bills: list[Bill], step: float, host_s: float) -> dict[str, float]:
    """The step as its slowest stage spends it; what that stage waits for others is the bubble."""
    paces = [bill.pace for bill in bills]
    slowest = max(range(len(bills)), key=lambda i: (paces[i].forward_s + paces[i].backward_s, -i))
    last = max(range(len(bills)), key=lambda i: (paces[i].once_s, -i))
    bill, turns = bills[slowest], plan.num_micro_batches
    parts = {name: (bill.forward[i] + bill.backward[i]) * turns for i, name in enumerate(PASS_PARTS)}
    parts["layout_change"] = bill.transition_s * turns
    parts["pipeline_communication"] = bill.boundary_s * turns
    parts["data_parallel_communication"] += bills[last].once_communication_s
    parts["optimizer"] = bills[last].optimizer_s
    parts["host"] += host_s
    parts["pipeline_bubble"] = max(0.0, step - sum(parts.values())) if len(bills) > 1 else 0.0
    return {name: seconds for name, seconds in parts.items() if seconds}

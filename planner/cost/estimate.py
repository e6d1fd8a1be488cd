"""estimate(): the only front door to the price of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from typing import NamedTuple

from planner.cost.assumptions import assumptions
from planner.cost.band import error_band
from planner.cost.boundary import Entry, entry_into, tied_gradient_s, transition_s
from planner.cost.check import check_plan, tied_stage
from planner.cost.flops import model_flops_per_sample
from planner.cost.layer import PASS_PARTS, LayerCost, layer_cost
from planner.cost.load import check_placement, check_workload, load_ratio
from planner.cost.part import Conditions, at_entry, conditions, stage_conditions
from planner.cost.pipeline import Pace, head_in_flight, in_flight, step_s
from planner.cost.work import Work, summed
from planner.spec.cluster import Cluster
from planner.spec.estimate import Estimate, StageEstimate, StageTime
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import AnyLayer, Block, Model
from planner.spec.placement import Placement
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Strategy
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload


class _Bill(NamedTuple):
    """One stage: what its layers and boundaries cost, summed."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    once_communication_s: float
    optimizer_s: float
    boundary_s: float
    """Both passes' messages between stages."""
    transition_s: float
    pace: Pace
    memory: dict[str, int]
    host_bytes: int


class _Known(NamedTuple):
    """What was found out once for all stages; layers and strategies are told apart by identity."""

    moe_layers: dict[int, int]
    """Which MoE layer a layer is."""
    strategies: dict[int, Strategy]
    """The first of equal ones, by identity."""
    costs: dict[_Priced, LayerCost]
    loads: dict[tuple[int, int, int], float]
    work: dict[tuple[object, ...], Work]
    entries: dict[tuple[int, ...], Entry]
    conditions: tuple[Conditions, ...]
    """Of each group of the cluster."""
    places: dict[tuple[int, int], Conditions]
    """Of a stage, by its first device and number of devices."""


_Priced = tuple[int, int, int, float, float]
"""What a layer's price depends on: conditions, layer, strategy, load, copies of experts."""


class _Case(NamedTuple):
    """What an estimate is asked about."""

    model: Model
    cluster: AnyCluster
    training: Training
    plan: Plan
    workload: Workload
    placement: Placement | None
    known: _Known


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
    [price] = _estimates(model, cluster, training, plan, (workload,), placement)
    return price


def estimates(
    model: Model, cluster: AnyCluster, training: Training, plan: Plan, workloads: Sequence[Workload]
) -> list[Estimate]:
    """The price of a plan under each workload, as `estimate` tells it; what they have in common is priced once."""
    return list(_estimates(model, cluster, training, plan, workloads, None))


def _estimates(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workloads: Sequence[Workload],
    placement: Placement | None,
) -> Iterator[Estimate]:
    for case in _cases(model, cluster, training, plan, workloads, placement):
        yield _estimate(case)


def _estimate(case: _Case) -> Estimate:
    model, cluster, plan, training = case.model, case.cluster, case.plan, case.training
    bills = _bills(case)
    host_s = max(group.stack.step_host_s for group in cluster.groups)
    step = step_s(plan.schedule, [bill.pace for bill in bills], plan.num_micro_batches) + host_s
    tokens = plan.global_batch_size * plan.sequence_length
    flops = model_flops_per_sample(model, plan.sequence_length, training.encoder_length) * plan.global_batch_size
    flops_per_s = flops / step
    times = {pace: _stage_time(pace) for pace in {bill.pace for bill in bills}}
    groups = [cluster.group_of(stage.first_device, stage.num_devices) for stage in plan.stages]
    stages = tuple(_stage_estimate(bill, times[bill.pace], group) for bill, group in zip(bills, groups, strict=True))
    return Estimate(
        plan_id=plan.id,
        workload=case.workload.name,
        step_time_s=step,
        tokens_per_s=tokens / step,
        tokens_per_s_per_device=tokens / step / cluster.num_devices,
        tflops_per_device=flops_per_s / cluster.num_devices / 1e12,
        mfu=flops_per_s / _peak_flops_per_s(cluster, training),
        time=_time_parts(plan, bills, step, host_s),
        stages=stages,
        fits=all(stage.missing_bytes == stage.missing_host_bytes == 0 for stage in stages),
        provenance=cluster.provenance,
        error_band=error_band(model, cluster, step),
        assumptions=assumptions(model, cluster, training, plan, case.workload, case.placement),
    )


def _peak_flops_per_s(cluster: AnyCluster, training: Training) -> float:
    """Of all devices together."""
    total = 0.0
    for group in cluster.groups:
        peak = group.device.peak(training.precision)
        assert peak is not None, "conditions() has checked the number format"
        total += group.num_devices * peak
    return total


def stage_paces(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workload: Workload = BALANCED,
    placement: Placement | None = None,
) -> list[Pace]:
    """What `estimate` tells the closed forms of pipelines, by stage: messages are counted with the stage entered."""
    [case] = _cases(model, cluster, training, plan, (workload,), placement)
    return [bill.pace for bill in _bills(case)]


def _cases(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workloads: Sequence[Workload],
    placement: Placement | None,
) -> Iterator[_Case]:
    check_plan(model, cluster, training, plan)
    check_placement(len(model.moe_layers), placement)
    of_groups = tuple(conditions(model.hidden_size, group, training) for group in cluster.groups)
    moe_layers = dict(zip(model.moe_layers, count(), strict=False))
    known = _Known(moe_layers, _first_of_equal(plan), {}, {}, {}, {}, of_groups, {})
    for workload in workloads:
        check_workload(len(model.moe_layers), workload)
        yield _Case(model, cluster, training, plan, workload, placement, known._replace(loads={}))


def _bills(case: _Case) -> list[_Bill]:
    return [_bill(case, number, stage) for number, stage in enumerate(case.plan.stages)]


def _conditions(case: _Case, stage: Stage) -> Conditions:
    """Of a stage; the same object for stages of one group that find the same."""
    place = (stage.first_device, stage.num_devices)
    if place not in case.known.places:
        number = case.cluster.group_number(*place)
        first = stage.first_device - case.cluster.first_devices[number]
        case.known.places[place] = stage_conditions(case.known.conditions[number], first, stage.num_devices)
    return case.known.places[place]


def _first_of_equal(plan: Plan) -> dict[int, Strategy]:
    first = {strategy: strategy for strategy in plan.distinct_strategies}
    objects = {id(run.strategy): run.strategy for stage in plan.stages for run in stage.runs}
    return {number: first[strategy] for number, strategy in objects.items()}


def _stage_time(pace: Pace) -> StageTime:
    return StageTime(micro_batch_s=pace.forward_s + pace.backward_s, once_per_step_s=pace.once_s)


def _stage_estimate(bill: _Bill, time: StageTime, group: Cluster) -> StageEstimate:
    return StageEstimate(
        device=group.device.name,
        memory=bill.memory,
        peak_memory_bytes=sum(bill.memory.values()),
        limit_bytes=group.usable_bytes,
        time=time,
        host_bytes=bill.host_bytes,
        host_limit_bytes=group.device.host.memory_bytes if group.device.host else 0,
    )


def _bill(case: _Case, number: int, stage: Stage) -> _Bill:
    plan, here, work = case.plan, _conditions(case, stage), _work(case, stage)
    entries = [_entry(case, number, piece, runs[0]) for piece, runs in enumerate(stage.pieces)]
    tied = 0.0
    if not tied_stage(case.model, plan):
        last = stage.runs[-1]
        layer = case.model.layers[last.end_layer - 1]
        tied = tied_gradient_s(here, layer, last.strategy, case.cluster.link_between(0, stage.first_device))
    flight = in_flight(plan.schedule, len(plan.stages), plan.num_micro_batches, number)
    # Only the head has logits; its backward pass follows its forward pass at once, unless the schedule parts them.
    heads = head_in_flight(plan.schedule, plan.num_micro_batches)
    boundary_s = sum(found.pass_s for found in entries)
    kept_bytes = work.kept_bytes + sum(found.carried_bytes for found in entries)
    forward_s, backward_s = boundary_s + work.moves[0], boundary_s + work.moves[1]
    once_communication_s = work.once_communication_s + tied
    return _Bill(
        forward=work.forward,
        backward=work.backward,
        once_communication_s=once_communication_s,
        optimizer_s=work.optimizer_s,
        boundary_s=2.0 * boundary_s,
        transition_s=work.transition_s,
        pace=Pace(
            work.pass_s[0] + forward_s,
            work.pass_s[1] + backward_s,
            once_communication_s + work.optimizer_s,
            work.weight_gradient_s,
        ),
        memory={
            **work.held_bytes,
            "activations": -(-flight.numerator * kept_bytes // flight.denominator) + heads * work.head_bytes,
            "logits": heads * work.logits_bytes,
            "workspace": work.workspace_bytes,
            "buffers": sum(found.buffer_bytes for found in entries),
            "reserve": case.cluster.group_of(stage.first_device, stage.num_devices).reserve_bytes,
        },
        host_bytes=work.host_bytes,
    )


def _work(case: _Case, stage: Stage) -> Work:
    """What the layers take; stages with the same numbers of equal layers are summed once."""
    equal = _layer_costs(case, stage)
    known, layers = case.known.strategies, case.model.layers
    changing = [runs for runs in stage.pieces if len(runs) > 1]
    orders = [tuple([(id(known[id(run.strategy)]), id(layers[run.first_layer])) for run in runs]) for runs in changing]
    key = (tuple(equal.items()), tuple(orders))
    if key not in case.known.work:
        costs = [(case.known.costs[priced], number) for priced, number in equal.items()]
        case.known.work[key] = summed(costs, list(_transitions(case, stage)))
    return case.known.work[key]


def _layer_costs(case: _Case, stage: Stage) -> dict[_Priced, int]:
    """How many of the stage's layers have which price; equal ones are priced once in all stages."""
    equal: dict[_Priced, int] = {}
    here = _conditions(case, stage)
    for run in stage.runs:
        strategy = case.known.strategies[id(run.strategy)]
        for layer, first, end in _alike(case, run):
            load, copies = _load_ratio(case, first, layer, strategy), _copies_ratio(case, first, layer)
            key = (id(here), id(layer), id(strategy), load, copies)
            if key not in case.known.costs:
                case.known.costs[key] = layer_cost(
                    here,
                    layer,
                    strategy,
                    case.plan.samples_per_micro_batch,
                    case.plan.sequence_length,
                    load_ratio=load,
                    own_copy=not tied_stage(case.model, case.plan),
                    copies_ratio=copies,
                )
            equal[key] = equal.get(key, 0) + end - first
    return equal


def _alike(case: _Case, run: StageRun) -> Iterator[tuple[AnyLayer, int, int]]:
    """Neighbours whose experts have equal loads: one by one where each MoE layer has its own."""
    for layer, first, end in case.model.stretches(run.first_layer, run.end_layer):
        if _has_own_load(case) and isinstance(layer, Block) and layer.moe is not None:
            yield from ((layer, number, number + 1) for number in range(first, end))
        else:
            yield layer, first, end


def _has_own_load(case: _Case) -> bool:
    """Whether workload or placement tell MoE layers apart."""
    return case.placement is not None or len(case.workload.expert_shares) > 1


def _load_ratio(case: _Case, number: int, layer: AnyLayer, strategy: Strategy) -> float:
    if strategy.experts is None or not isinstance(layer, Block) or layer.moe is None:
        return 1.0
    moe_layer = case.known.moe_layers[number]
    key = (id(layer), moe_layer if _has_own_load(case) else 0, strategy.experts.expert_parallel_size)
    if key not in case.known.loads:
        case.known.loads[key] = load_ratio(
            layer.moe,
            moe_layer,
            strategy.experts.expert_parallel_size,
            case.workload,
            case.placement,
            case.training.capacity_factor,
        )
    return case.known.loads[key]


def _copies_ratio(case: _Case, number: int, layer: AnyLayer) -> float:
    """Expert slots of a rank over its even share; after `_load_ratio`, which checks that the placement matches."""
    if case.placement is None or not isinstance(layer, Block) or layer.moe is None:
        return 1.0
    slots = len(case.placement.layers[case.known.moe_layers[number]])
    return slots / layer.moe.num_experts


def _entry(case: _Case, number: int, piece: int, run: StageRun) -> Entry:
    """Nothing enters the first piece of the model; later pieces are entered from the stage before, in a ring."""
    plan = case.plan
    if number == 0 and piece == 0:
        return Entry(0.0, 0)
    stage, before = plan.stages[number], plan.stages[number - 1]
    here = _conditions(case, stage)
    link = case.cluster.link_between(before.first_device, stage.first_device + stage.num_devices - 1)
    layer, strategy, samples = case.model.layers[run.first_layer], run.strategy, plan.samples_per_micro_batch
    key = (id(here), id(case.known.strategies[id(strategy)]), before.num_devices, id(link), id(layer))
    if key not in case.known.entries:
        case.known.entries[key] = entry_into(here, layer, strategy, samples, link, before.num_devices)
    return case.known.entries[key]


def _transitions(case: _Case, stage: Stage) -> Iterator[tuple[float, float]]:
    here = _conditions(case, stage)
    for runs in stage.pieces:
        for before, after in pairwise(runs):
            arriving, tokens = at_entry(here, case.model.layers[after.first_layer], case.plan.sequence_length)
            yield transition_s(arriving, before.strategy, after.strategy, case.plan.samples_per_micro_batch, tokens)


def _time_parts(plan: Plan, bills: list[_Bill], step: float, host_s: float) -> dict[str, float]:
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

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
from planner.cost.part import Conditions, at_entry, conditions
from planner.cost.pipeline import Pace, head_in_flight, in_flight, step_s
from planner.spec.cluster import Cluster
from planner.spec.estimate import Estimate, StageEstimate, StageTime
from planner.spec.model import AnyLayer, Block, Model
from planner.spec.placement import Placement
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Strategy
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload


class _Work(NamedTuple):
    """What the layers of a stage take and hold, wherever the stage stands in the pipeline."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    pass_s: tuple[float, float]
    """The sums of both."""
    once_communication_s: float
    optimizer_s: float
    weight_gradient_s: float
    moves: tuple[float, float]
    """Transitions between its layers, forward and backward."""
    transition_s: float
    held_bytes: dict[str, int]
    """Weights, gradients and optimizer states."""
    kept_bytes: int
    """Activations of a micro-batch in flight, but for the head's."""
    head_bytes: int
    logits_bytes: int
    workspace_bytes: int
    host_bytes: int


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
    work: dict[tuple[object, ...], _Work]
    entries: dict[tuple[int, int, int], Entry]


_Priced = tuple[int, int, float, float]
"""What a layer's price depends on: layer, strategy, load, copies of experts."""


class _Case(NamedTuple):
    """What an estimate is asked about."""

    model: Model
    cluster: Cluster
    plan: Plan
    workload: Workload
    placement: Placement | None
    conditions: Conditions
    known: _Known


def estimate(
    model: Model,
    cluster: Cluster,
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
    model: Model, cluster: Cluster, training: Training, plan: Plan, workloads: Sequence[Workload]
) -> list[Estimate]:
    """The price of a plan under each workload, as `estimate` tells it; what they have in common is priced once."""
    return list(_estimates(model, cluster, training, plan, workloads, None))


def _estimates(
    model: Model,
    cluster: Cluster,
    training: Training,
    plan: Plan,
    workloads: Sequence[Workload],
    placement: Placement | None,
) -> Iterator[Estimate]:
    for case in _cases(model, cluster, training, plan, workloads, placement):
        yield _estimate(case)


def _estimate(case: _Case) -> Estimate:
    model, cluster, plan, training = case.model, case.cluster, case.plan, case.conditions.training
    bills = _bills(case)
    step = step_s(plan.schedule, [bill.pace for bill in bills], plan.num_micro_batches) + cluster.stack.step_host_s
    tokens = plan.global_batch_size * plan.sequence_length
    flops = model_flops_per_sample(model, plan.sequence_length, training.encoder_length) * plan.global_batch_size
    flops_per_s_per_device = flops / step / cluster.num_devices
    peak = cluster.device.peak(training.precision)
    assert peak is not None, "conditions() has checked the number format"
    times = {pace: _stage_time(pace) for pace in {bill.pace for bill in bills}}
    stages = tuple(_stage_estimate(bill, times[bill.pace], cluster) for bill in bills)
    return Estimate(
        plan_id=plan.id,
        workload=case.workload.name,
        step_time_s=step,
        tokens_per_s=tokens / step,
        tokens_per_s_per_device=tokens / step / cluster.num_devices,
        tflops_per_device=flops_per_s_per_device / 1e12,
        mfu=flops_per_s_per_device / peak,
        time=_time_parts(plan, bills, step, cluster.stack.step_host_s),
        stages=stages,
        fits=all(stage.missing_bytes == stage.missing_host_bytes == 0 for stage in stages),
        provenance=cluster.provenance,
        error_band=error_band(model, cluster, step),
        assumptions=assumptions(model, training, cluster.stack, plan, case.workload, case.placement),
    )


def stage_paces(
    model: Model,
    cluster: Cluster,
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
    cluster: Cluster,
    training: Training,
    plan: Plan,
    workloads: Sequence[Workload],
    placement: Placement | None,
) -> Iterator[_Case]:
    check_plan(model, cluster, training, plan)
    check_placement(len(model.moe_layers), placement)
    known = _Known(dict(zip(model.moe_layers, count(), strict=False)), _first_of_equal(plan), {}, {}, {}, {})
    common = conditions(model.hidden_size, cluster, training)
    for workload in workloads:
        check_workload(len(model.moe_layers), workload)
        yield _Case(model, cluster, plan, workload, placement, common, known._replace(loads={}))


def _bills(case: _Case) -> list[_Bill]:
    return [_bill(case, number, stage) for number, stage in enumerate(case.plan.stages)]


def _first_of_equal(plan: Plan) -> dict[int, Strategy]:
    first = {strategy: strategy for strategy in plan.distinct_strategies}
    objects = {id(run.strategy): run.strategy for stage in plan.stages for run in stage.runs}
    return {number: first[strategy] for number, strategy in objects.items()}


def _stage_time(pace: Pace) -> StageTime:
    return StageTime(micro_batch_s=pace.forward_s + pace.backward_s, once_per_step_s=pace.once_s)


def _stage_estimate(bill: _Bill, time: StageTime, cluster: Cluster) -> StageEstimate:
    return StageEstimate(
        memory=bill.memory,
        peak_memory_bytes=sum(bill.memory.values()),
        limit_bytes=cluster.usable_bytes,
        time=time,
        host_bytes=bill.host_bytes,
        host_limit_bytes=cluster.device.host.memory_bytes if cluster.device.host else 0,
    )


def _bill(case: _Case, number: int, stage: Stage) -> _Bill:
    plan, work = case.plan, _work(case, stage)
    entries = [_entry(case, number, piece, runs[0]) for piece, runs in enumerate(stage.pieces)]
    tied = 0.0
    if not tied_stage(case.model, plan):
        last = stage.runs[-1]
        layer = case.model.layers[last.end_layer - 1]
        tied = tied_gradient_s(case.conditions, layer, last.strategy, (0, stage.first_device))
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
            "reserve": case.cluster.reserve_bytes,
        },
        host_bytes=work.host_bytes,
    )


def _work(case: _Case, stage: Stage) -> _Work:
    """What the layers take; stages with the same numbers of equal layers are summed once."""
    equal = _layer_costs(case, stage)
    known, layers = case.known.strategies, case.model.layers
    changing = [runs for runs in stage.pieces if len(runs) > 1]
    orders = [tuple([(id(known[id(run.strategy)]), id(layers[run.first_layer])) for run in runs]) for runs in changing]
    key = (tuple(equal.items()), tuple(orders))
    if key not in case.known.work:
        costs = [(case.known.costs[priced], number) for priced, number in equal.items()]
        case.known.work[key] = _summed(costs, list(_transitions(case, stage)))
    return case.known.work[key]


def _summed(costs: list[tuple[LayerCost, int]], moves: list[tuple[float, float]]) -> _Work:
    """`costs`: (cost, how many); `moves`: (forward, backward)."""
    forward = tuple(sum(cost.forward[i] * n for cost, n in costs) for i in range(len(PASS_PARTS)))
    backward = tuple(sum(cost.backward[i] * n for cost, n in costs) for i in range(len(PASS_PARTS)))
    return _Work(
        forward=forward,
        backward=backward,
        pass_s=(sum(forward), sum(backward)),
        once_communication_s=sum(cost.once_communication_s * n for cost, n in costs),
        optimizer_s=sum(cost.optimizer_s * n for cost, n in costs),
        weight_gradient_s=sum(cost.weight_gradient_s * n for cost, n in costs),
        moves=(sum(forward for forward, _ in moves), sum(backward for _, backward in moves)),
        transition_s=sum(forward + backward for forward, backward in moves),
        held_bytes={
            "weights": sum(cost.weights_bytes * n for cost, n in costs),
            "gradients": sum(cost.gradients_bytes * n for cost, n in costs),
            "optimizer_states": sum(cost.optimizer_bytes * n for cost, n in costs),
        },
        kept_bytes=sum(cost.activation_bytes * n for cost, n in costs if not cost.logits_bytes),
        head_bytes=sum(cost.activation_bytes * n for cost, n in costs if cost.logits_bytes),
        logits_bytes=sum(cost.logits_bytes * n for cost, n in costs),
        workspace_bytes=max(cost.workspace_bytes for cost, _ in costs),
        host_bytes=sum(cost.host_bytes * n for cost, n in costs),
    )


def _layer_costs(case: _Case, stage: Stage) -> dict[_Priced, int]:
    """How many of the stage's layers have which price; equal ones are priced once in all stages."""
    equal: dict[_Priced, int] = {}
    for run in stage.runs:
        strategy = case.known.strategies[id(run.strategy)]
        for layer, first, end in _alike(case, run):
            load, copies = _load_ratio(case, first, layer, strategy), _copies_ratio(case, first, layer)
            key = (id(layer), id(strategy), load, copies)
            if key not in case.known.costs:
                case.known.costs[key] = layer_cost(
                    case.conditions,
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
            case.conditions.training.capacity_factor,
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
    stage = plan.stages[number]
    hop = (plan.stages[number - 1].first_device, stage.first_device + stage.num_devices - 1)
    # The price depends on the hop only by the nearest level whose islands hold both ends.
    begin, end = hop
    sizes = (level.num_devices for level in case.cluster.levels)
    level = next(size for size in sizes if begin // size == end // size)
    layer, strategy, samples = case.model.layers[run.first_layer], run.strategy, plan.samples_per_micro_batch
    key = (id(case.known.strategies[id(strategy)]), level, id(layer))
    if key not in case.known.entries:
        case.known.entries[key] = entry_into(case.conditions, layer, strategy, samples, hop)
    return case.known.entries[key]


def _transitions(case: _Case, stage: Stage) -> Iterator[tuple[float, float]]:
    for runs in stage.pieces:
        for before, after in pairwise(runs):
            arriving, tokens = at_entry(
                case.conditions, case.model.layers[after.first_layer], case.plan.sequence_length
            )
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

"""The online policy on recorded loads, beside two yardsticks: never moving, and the best fixed placement in hindsight.

`replay(tokens, steps, context)` is all that a command needs; `replay_context` makes the context for a trace that
comes without a model. The policy sees window i only after it is over: what it decides holds from window i + 1 on.
Pauses of moves are part of the total time. The yardsticks start with their placement and never pay for a move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost import estimate
from planner.cost.balance import Floats, rank_loads
from planner.online.candidates import Price, Pricing, placement_imbalance, served
from planner.online.forecast import window_shares
from planner.online.placement import options
from planner.online.policy import decide
from planner.online.state import begin, placement_of, plan_of
from planner.spec.decision import Action
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Block, Embedding, GroupedQueryAttention, Head, LayerRun, Model, MoeFeedForward, Norm
from planner.spec.placement import Placement
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.run import RunContext
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import Training
from planner.spec.window import Window

TRACE_SEQUENCE_LENGTH = 1024
"""Of the model that `trace_model` makes up, as in SmartMoE's runs."""


class Outcome(TypedDict):
    """What a policy made of a trace."""

    imbalance_mean: float
    """Max over mean load of the ranks, mean over windows and layers, under the placement in force."""
    moved_experts: int
    """Experts copied, over all layers."""
    decisions: int
    """Times that something was changed."""
    step_time_s_mean: float
    """Without the pauses."""
    total_time_s: float
    """All steps and pauses."""


class Replay(TypedDict):
    """Outcome by policy."""

    policies: dict[str, Outcome]


class _Trace(NamedTuple):
    windows: tuple[Window, ...]
    pricing: Pricing


def replay(
    tokens: ArrayLike,
    steps: ArrayLike,
    context: RunContext,
    price: Price = estimate,
    report: Callable[[float, str], None] = lambda progress, message: None,
) -> Replay:
    """Outcomes of `trimtab`, `static` and `hindsight` on tokens [samples, layers, experts] counted at `steps`.

    Sample i stands for all steps until sample i + 1, the last for as many as the one before. `static` keeps the
    placement that the run begins with. `hindsight` is the best fixed placement of the first plan that was found
    knowing the whole trace. Raises InputError if the trace does not match the model.
    """
    trace = _Trace(windows_of(tokens, steps), Pricing(context, price))
    report(0.0, "replaying the policy")
    outcomes = {"trimtab": _adaptive(trace, report)}
    start = begin(context)
    plan = plan_of(context, start.plan_id, "plan_id")
    report(0.8, "pricing the yardsticks")
    outcomes["static"] = _fixed(trace, plan, start.placement)
    report(0.9, "pricing hindsight")
    known = None if start.placement is None else best_fixed(trace.windows, start.placement, context.training)
    outcomes["hindsight"] = _fixed(trace, plan, known)
    report(1.0, "done")
    return {"policies": outcomes}


def windows_of(tokens: ArrayLike, steps: ArrayLike) -> tuple[Window, ...]:
    """One window for each sample; raises InputError at `tokens` or `steps` if the arrays are not a trace."""
    counts, at = np.asarray(tokens), np.asarray(steps)
    if counts.ndim != 3 or not np.issubdtype(counts.dtype, np.integer):
        raise InputError.at(
            "tokens", f"must be whole numbers [samples, layers, experts], got {counts.dtype} {counts.shape}"
        )
    if at.shape != counts.shape[:1] or len(at) < 2 or not np.issubdtype(at.dtype, np.integer):
        raise InputError.at("steps", f"must be {len(counts)} whole numbers (at least 2), got {at.dtype} {at.shape}")
    lengths = np.append(np.diff(at), at[-1] - at[-2])
    if at[0] < 0 or (lengths <= 0).any():
        raise InputError.at("steps", "must grow from sample to sample, from 0 on")
    if (counts < 0).any() or not counts.sum(axis=2).all():
        raise InputError.at("tokens", "must not be negative, and every layer needs at least one token in every sample")
    return tuple(
        Window(index=index, first_step=first, num_steps=length, tokens=tuple(map(tuple, rows)))
        for index, (first, length, rows) in enumerate(zip(at.tolist(), lengths.tolist(), counts.tolist(), strict=True))
    )


def best_fixed(windows: tuple[Window, ...], start: Placement, training: Training) -> Placement:
    """Of the placements made for the mean load, for each layer the one with the least hottest rank over all windows."""
    loads = np.stack([served(window_shares(window), training) for window in windows])
    lengths = np.array([window.num_steps for window in windows], dtype=np.float64)
    mean: Floats = np.average(loads, axis=0, weights=lengths)
    choices = options(mean, start.num_ranks, np.array(start.layers)).slots
    hottest = np.stack([_mean_hottest(loads, lengths, slots, start.num_ranks) for slots in choices])
    best = hottest.argmin(axis=0)
    return placement_of(choices[best, np.arange(choices.shape[1])], start.num_ranks)


def replay_context(
    tokens: ArrayLike, top_k: int, cluster: AnyCluster, num_ranks: int, extra_slots: int = 0, model: Model | None = None
) -> RunContext:
    """A context for a trace: all devices data parallel, experts over `num_ranks` of them, ZeRO-1.

    Without a model, `trace_model`. The batch is what the trace's tokens are, in sequences, rounded up to whole
    samples for each device. Raises InputError if the ranks do not divide devices and experts, or if the model's MoE
    layers are not those of the trace.
    """
    counts = np.asarray(tokens)
    layers, experts = counts.shape[1:]
    if num_ranks < 1 or cluster.num_devices % num_ranks or experts % num_ranks:
        raise InputError.at(
            "num_ranks", f"must divide the {cluster.num_devices} devices and the {experts} experts, got {num_ranks}"
        )
    planned = trace_model(layers, experts, top_k) if model is None else model
    shape = {planned.moe(layer).num_experts for layer in planned.moe_layers}
    if len(planned.moe_layers) != layers or shape != {experts}:
        raise InputError.at("model", f"must have {layers} MoE layers of {experts} experts, as the trace has")
    length = min(TRACE_SEQUENCE_LENGTH, planned.max_sequence_length or TRACE_SEQUENCE_LENGTH)
    samples = int(counts[0, 0].sum()) // (top_k * length)
    batch = max(1, -(-samples // cluster.num_devices)) * cluster.num_devices
    training = Training(global_batch_size=batch, sequence_length=length)
    plan = _expert_parallel_plan(planned, training, batch, cluster.num_devices, num_ranks)
    return RunContext(
        model=planned, cluster=cluster, training=training, plans=(plan,), extra_slots_per_rank=extra_slots
    )


def trace_model(num_layers: int, num_experts: int, top_k: int) -> Model:
    """A GPT of the width of SmartMoE's (hidden size 2048, 16 heads, experts of 8192), every block with experts.

    Source: SmartMoE artifact logs, GPT-L8-H2048-32MoE. The recorded trace does not say its own width.
    """
    block = Block(
        attention=GroupedQueryAttention(num_heads=16, num_kv_heads=16, head_dim=128),
        feed_forward=MoeFeedForward(num_experts=num_experts, top_k=top_k, expert_width=8192, gated=False),
        norm=Norm.LAYER,
    )
    runs = (
        LayerRun(layer=Embedding(vocab_size=50304, num_positions=TRACE_SEQUENCE_LENGTH)),
        LayerRun(layer=block, num_layers=num_layers),
        LayerRun(layer=Head(vocab_size=50304, norm=Norm.LAYER)),
    )
    return Model(name="gpt-moe-of-the-trace", hidden_size=2048, runs=runs)


def _expert_parallel_plan(model: Model, training: Training, batch: int, devices: int, num_ranks: int) -> Plan:
    axes = (Axis(AxisKind.DP, devices),) if devices > 1 else ()
    dense = Strategy(axes=axes, sharding=Sharding.OPTIMIZER if devices > 1 else Sharding.NONE)
    spread = ExpertStrategy(expert_parallel_size=num_ranks, expert_data_parallel_size=devices // num_ranks)
    moe = dense.model_copy(update={"experts": spread})
    runs: list[StageRun] = []
    for layer in range(len(model.layers)):
        strategy = moe if layer in model.moe_layers else dense
        if runs and runs[-1].strategy == strategy:
            runs[-1] = runs[-1].model_copy(update={"num_layers": runs[-1].num_layers + 1})
        else:
            runs.append(StageRun(first_layer=layer, num_layers=1, strategy=strategy))
    return Plan(
        global_batch_size=batch,
        sequence_length=training.sequence_length,
        micro_batch_size=1,
        num_micro_batches=batch // devices,
        stages=(Stage(first_device=0, num_devices=devices, runs=tuple(runs)),),
    )


def _adaptive(trace: _Trace, report: Callable[[float, str], None]) -> Outcome:
    context = trace.pricing.context
    state = begin(context)
    imbalances, step_times, pauses, moved, acted = [], [], 0.0, 0, 0
    for window in trace.windows:
        plan = plan_of(context, state.plan_id, "plan_id")
        step_s, imbalance = _priced(trace.pricing, plan, state.placement, window)
        step_times.append(step_s)
        imbalances.append(imbalance)
        decision, state = decide(window, state, context, trace.pricing.price)
        if decision.action is not Action.KEEP:
            pauses, moved, acted = pauses + decision.cost_s, moved + len(decision.moves), acted + 1
        report(0.8 * (window.index + 1) / len(trace.windows), f"window {window.index}: {decision.action.value}")
    return _outcome(trace, imbalances, step_times, pauses, moved, acted)


def _fixed(trace: _Trace, plan: Plan, placement: Placement | None) -> Outcome:
    priced = [_priced(trace.pricing, plan, placement, window) for window in trace.windows]
    return _outcome(trace, [imbalance for _, imbalance in priced], [step_s for step_s, _ in priced], 0.0, 0, 0)


def _priced(pricing: Pricing, plan: Plan, placement: Placement | None, window: Window) -> tuple[float, float]:
    """(seconds of a step, imbalance) under the load of a window."""
    shares = window_shares(window)
    step_s = pricing.step(plan, shares, placement).seconds
    if placement is None:
        return step_s, 1.0
    return step_s, placement_imbalance(served(shares, pricing.context.training), placement)


def _outcome(
    trace: _Trace, imbalances: list[float], step_times: list[float], pauses: float, moved: int, acted: int
) -> Outcome:
    lengths = np.array([window.num_steps for window in trace.windows])
    steps_s = float(np.dot(lengths, step_times))
    return {
        "imbalance_mean": float(np.mean(imbalances)),
        "moved_experts": moved,
        "decisions": acted,
        "step_time_s_mean": steps_s / int(lengths.sum()),
        "total_time_s": steps_s + pauses,
    }


def _mean_hottest(loads: Floats, lengths: Floats, slots: NDArray[np.intp], num_ranks: int) -> Floats:
    """[layers]: load of the hottest rank, mean over the steps of the trace."""
    carried = rank_loads(loads, np.broadcast_to(slots, (len(loads), *slots.shape)), num_ranks)
    return np.asarray(np.average(carried.max(axis=-1), axis=0, weights=lengths), dtype=np.float64)

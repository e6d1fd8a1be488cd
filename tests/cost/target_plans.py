"""Small plans for the rules of frameworks: uniform ones, and strategies of hypothesis from a framework's own parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby, pairwise
from math import prod

from hypothesis import strategies as st

from planner.cost.framework import Framework, Pipelined, Used, broken_pipeline_rules, broken_strategy_rules
from planner.cost.rules import broken_rules
from planner.search.tree import divisors
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Model,
    MoeFeedForward,
)
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training


def a_model(blocks: int = 4, experts: int = 0, kv_heads: int = 8, dense_first: int = 0, tied: bool = False) -> Model:
    """Embedding, `blocks` blocks of 8 heads, head; with `experts`, all blocks but the first `dense_first` have them."""
    attention = GroupedQueryAttention(num_heads=8, num_kv_heads=kv_heads, head_dim=16)
    dense = Block(attention=attention, feed_forward=DenseFeedForward(width=256))
    first = blocks if not experts else dense_first
    runs = [LayerRun(layer=Embedding(vocab_size=1000)), *([LayerRun(layer=dense, num_layers=first)] if first else [])]
    if blocks > first:
        moe = MoeFeedForward(num_experts=experts, top_k=1, expert_width=256)
        runs.append(LayerRun(layer=Block(attention=attention, feed_forward=moe), num_layers=blocks - first))
    return Model(name="small", hidden_size=128, runs=(*runs, LayerRun(layer=Head(vocab_size=1000, tied=tied))))


def axes(**degrees: int) -> tuple[Axis, ...]:
    """Axes in the given order, outermost first; degrees of 1 are left out."""
    return tuple(Axis(AxisKind(kind), degree) for kind, degree in degrees.items() if degree > 1)


def spread(parallel: int = 1, tensor: int = 1, data: int = 1) -> ExpertStrategy:
    """ep, etp, edp."""
    return ExpertStrategy(
        expert_parallel_size=parallel, expert_tensor_parallel_size=tensor, expert_data_parallel_size=data
    )


def uniform(model: Model, strategy: Strategy) -> list[Strategy]:
    """One strategy for all layers: experts where a layer has them, recomputation in blocks."""
    return [_as_layer(layer, strategy) for layer in model.layers]


@cache
def _as_layer(layer: Embedding | Block | Head, strategy: Strategy) -> Strategy:
    block = isinstance(layer, Block)
    experts = strategy.experts if block and layer.moe else None
    dense = strategy.data_parallel_size * strategy.cp > 1
    return strategy.model_copy(
        update={
            "recompute": strategy.recompute if block else Recompute.NONE,
            "experts": experts,
            "sharding": strategy.sharding if dense or experts else Sharding.NONE,
        }
    )


def a_plan(
    model: Model,
    strategies: Sequence[Strategy],
    starts: Sequence[int] = (0,),
    schedule: ScheduleKind = ScheduleKind.ONE_F_ONE_B,
    virtual_stages: int = 1,
    micro_batches: int = 4,
    sequence_length: int = 256,
) -> Plan:
    """`starts`: the first layer of each piece, dealt to the stages in turn; one sample per rank and micro-batch."""
    bounds = list(pairwise((*starts, len(model.layers))))
    num_stages = len(starts) // virtual_stages
    devices = strategies[0].num_devices
    samples = max(strategy.data_parallel_size for strategy in strategies)
    return Plan(
        global_batch_size=samples * micro_batches,
        sequence_length=sequence_length,
        micro_batch_size=samples // strategies[0].data_parallel_size,
        num_micro_batches=micro_batches,
        schedule=Schedule(kind=schedule, virtual_stages=virtual_stages),
        stages=tuple(
            Stage(
                first_device=stage * devices,
                num_devices=devices,
                runs=tuple(run for piece in bounds[stage::num_stages] for run in _runs(strategies, *piece)),
            )
            for stage in range(num_stages)
        ),
    )


def _runs(strategies: Sequence[Strategy], first: int, end: int) -> list[StageRun]:
    runs = []
    for strategy, layers in groupby(range(first, end), key=lambda layer: strategies[layer]):
        members = list(layers)
        runs.append(StageRun(first_layer=members[0], num_layers=len(members), strategy=strategy))
    return runs


models = st.builds(
    a_model,
    blocks=st.integers(3, 9),
    experts=st.sampled_from([0, 8]),
    kv_heads=st.sampled_from([2, 8]),
    dense_first=st.integers(0, 2),
    tied=st.booleans(),
)


@st.composite
def plans_of_parts(draw, framework: Framework):
    """(model, training, plan) of parts that the framework allows, one by one, put together uniformly."""
    model = draw(models)
    training = Training(global_batch_size="max", sequence_length=draw(st.sampled_from([96, 256])))
    pipelined = draw(_pipelines(framework, model))
    strategy = draw(_strategies(framework, frozenset(model.layers), training, pipelined.num_stages > 1))
    starts = draw(_starts(framework, pipelined))
    strategies = uniform(model, strategy)
    if framework.recomputes_first_blocks and strategy.recompute is Recompute.FULL:
        strategies = _first_recomputed(model, strategies, starts, draw(st.integers(1, 9)))
    plan = a_plan(
        model,
        strategies,
        starts,
        pipelined.schedule.kind,
        pipelined.schedule.virtual_stages,
        pipelined.num_micro_batches,
        training.sequence_length,
    )
    return model, training, plan


def _pipelines(framework: Framework, model: Model) -> st.SearchStrategy[Pipelined]:
    kinds = [Schedule(kind=kind) for kind in ScheduleKind if kind is not ScheduleKind.INTERLEAVED]
    schedules = [*kinds, Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=2)]
    every = [
        Pipelined(model, stages, micro_batches, schedule)
        for stages in (1, 2, 3, 4)
        for micro_batches in (1, 2, 4, 12)
        for schedule in schedules
        if schedule.virtual_stages == 1 or (stages > 1 and micro_batches % stages == 0)
        if stages * schedule.virtual_stages <= len(model.layers)
    ]
    return st.sampled_from([each for each in every if not [*broken_pipeline_rules(framework, each)]])


@cache
def _strategies(framework: Framework, layers: frozenset, training: Training, staged: bool) -> st.SearchStrategy:
    """Strategies on up to 32 devices that pass the rules for all, and the framework's, on every one of the layers."""
    moe = any(isinstance(layer, Block) and layer.moe is not None for layer in layers)
    kept = [
        strategy
        for strategy in _every_strategy(moe)
        if all(_passes(framework, layer, _as_layer(layer, strategy), training, staged) for layer in layers)
    ]
    return st.sampled_from(kept)


@cache
def _every_strategy(moe: bool) -> list[Strategy]:
    return [
        Strategy(axes=cut, sharding=sharding, sequence_parallel=sp, recompute=recompute, experts=experts)
        for cut in _all_axes()
        for experts in (_expert_grids(cut) if moe else [None])
        for sharding in Sharding
        for sp in (False, True)
        for recompute in Recompute
        if _possible(cut, sharding, sp, experts)
    ]


def _passes(framework, layer, strategy, training, staged) -> bool:
    used = Used(layer, strategy, training, num_stages=2 if staged else 1)
    return not [*broken_rules(layer, strategy, training), *broken_strategy_rules(framework, used)]


def _all_axes() -> list[tuple[Axis, ...]]:
    degrees = [(dp, sdp, cp, tp) for dp in (1, 2, 4) for sdp in (1, 2) for cp in (1, 2) for tp in (1, 2)]
    cuts = [axes(dp=dp, sdp=sdp, cp=cp, tp=tp) for dp, sdp, cp, tp in degrees if dp > 1 or sdp == 1]
    return [*cuts, axes(tp=4), axes(tp=2, dp=2), axes(cp=2, dp=2)]


def _expert_grids(cut: tuple[Axis, ...]) -> list[ExpertStrategy | None]:
    devices = prod(axis.degree for axis in cut)
    return [
        spread(parallel, tensor, devices // parallel // tensor)
        for parallel in divisors(devices)
        for tensor in divisors(devices // parallel)
    ]


def _possible(cut: tuple[Axis, ...], sharding: Sharding, sp: bool, experts: ExpertStrategy | None) -> bool:
    degrees = {axis.kind: axis.degree for axis in cut}
    if AxisKind.SDP in degrees and sharding is not Sharding.FULL:
        return False
    if sp and AxisKind.TP not in degrees:
        return False
    shards = AxisKind.DP in degrees or AxisKind.CP in degrees or (experts and experts.expert_data_parallel_size > 1)
    return sharding is Sharding.NONE or bool(shards)


def _starts(framework: Framework, pipelined: Pipelined) -> st.SearchStrategy[tuple[int, ...]]:
    pieces, layers = pipelined.num_stages * pipelined.schedule.virtual_stages, len(pipelined.model.layers)
    if framework.cuts is not None:
        return st.sampled_from(framework.cuts(pipelined.model, pieces))
    later = st.lists(st.integers(1, layers - 1), min_size=pieces - 1, max_size=pieces - 1, unique=True)
    return later.map(lambda found: (0, *sorted(found)))


def _first_recomputed(model: Model, strategies: list[Strategy], starts: Sequence[int], count: int) -> list[Strategy]:
    """Of each piece the first `count` blocks as they are, the others without recomputation."""
    changed = list(strategies)
    for first, end in pairwise((*starts, len(model.layers))):
        blocks = [layer for layer in range(first, end) if isinstance(model.layers[layer], Block)]
        for layer in blocks[count:]:
            changed[layer] = strategies[layer].model_copy(update={"recompute": Recompute.NONE})
    return changed

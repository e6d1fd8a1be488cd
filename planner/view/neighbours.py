"""The plans one step away from a plan: one degree, level or schedule changed, the rest as it is as far as that can be.

    exchanges     one axis shrinks by the smallest prime of its degree, another grows by it; pp is an axis here
    of experts    the same among ep, etp and edp
    of samples    larger and smaller micro-batches
    of pieces     the next numbers of virtual stages that cut the blocks into equal pieces, other schedules
    of levels     sharding and recomputation one level up and down, sequence parallelism on and off

A change reaches every layer that can make it, and some block at least; one that would only divide a degree of 1 is no
step. With other stages or pieces the layers are cut anew, evenly. Samples per micro-batch and rank stay, so
micro-batches change with dp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

from pydantic import ValidationError

from planner.cost.rules import Broken, broken_rules
from planner.spec.errors import InputError
from planner.spec.model import Block, Model
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage
from planner.spec.strategy import AxisKind, Sharding, Strategy
from planner.spec.stretches import Stretches, equal_pieces, even_stretches, runs_of
from planner.spec.training import Training
from planner.view import captions, respread
from planner.view.differences import change_in_words
from planner.view.match import check_model

_AXES = (AxisKind.TP, AxisKind.DP, AxisKind.CP)


class Step(NamedTuple):
    """One change, and the plan that it leads to or the rule that forbids it."""

    change: str
    result: Plan | Broken


class _Parts(NamedTuple):
    """A plan taken apart."""

    stages: tuple[Stretches, ...]
    devices: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    """One for each layer."""
    schedule: Schedule
    samples: int
    """Of a micro-batch, over all data-parallel ranks."""


class _Place(NamedTuple):
    """Where steps begin."""

    model: Model
    plan: Plan
    parts: _Parts
    main: int
    """A layer under the plan's main strategy, after which degrees are named."""
    setting: respread.Setting

    @property
    def main_strategy(self) -> Strategy:
        return self.parts.strategies[self.main]


_Remade = Callable[[Strategy], Strategy | None]
_Change = tuple[str, Callable[[], _Parts | Broken | None]]
"""The change in words, and what makes it: None if it changes nothing."""


def neighbours(model: Model, training: Training, plan: Plan) -> tuple[Step, ...]:
    """All steps from the plan, each plan once; raises InputError if the plan is for other layers."""
    place = _place(model, plan)
    found: list[Step] = []
    known = {plan.id}
    for words, make in _changes(place):
        step = _step(place, training, words, make)
        if step is None or (isinstance(step.result, Plan) and step.result.id in known):
            continue
        if isinstance(step.result, Plan):
            known.add(step.result.id)
        found.append(step)
    return tuple(found)


def _place(model: Model, plan: Plan) -> _Place:
    check_model(model, plan)
    by_layer = dict(pair for stage in plan.stages for pair in stage.strategies())
    strategies = tuple(by_layer[layer] for layer in range(len(model.layers)))
    stretches = tuple(
        tuple((runs[0].first_layer, runs[-1].end_layer) for runs in stage.pieces) for stage in plan.stages
    )
    devices = tuple(stage.num_devices for stage in plan.stages)
    parts = _Parts(stretches, devices, strategies, plan.schedule, plan.samples_per_micro_batch)
    shardings = Counter(strategy.sharding for strategy in strategies if respread.is_shardable(strategy))
    fresh = max(shardings, key=lambda sharding: (shardings[sharding], sharding), default=Sharding.OPTIMIZER)
    setting = respread.Setting(plan.sequence_length, fresh)
    return _Place(model, plan, parts, strategies.index(plan.main_strategy), setting)


def _step(place: _Place, training: Training, words: str, make: Callable[[], _Parts | Broken | None]) -> Step | None:
    try:
        made = make()
        if made is None or made == place.parts:
            return None
        result = made if isinstance(made, Broken) else _plan(place, made)
    except ValidationError as error:
        result = Broken("valid-plan", str(InputError.from_validation(error).problems[0]))
    if isinstance(result, Broken):
        return Step(words, result)
    words = change_in_words(place.model, place.plan, result)
    return Step(words, _first_broken(place.model, training, result) or result)


def _plan(place: _Place, parts: _Parts) -> Plan | Broken:
    batch = place.plan.global_batch_size
    if batch % parts.samples:
        return Broken("batch-divides", f"micro-batches of {parts.samples} samples must divide the batch of {batch}")
    for cut in (strategy.data_parallel_size for strategy in parts.strategies):
        if parts.samples % cut:
            return Broken("samples-divide", f"dp {cut} must divide the {parts.samples} samples of a micro-batch")
    count, pieces = batch // parts.samples, parts.schedule.virtual_stages
    if pieces > 1 and count % len(parts.stages):
        message = f"{len(parts.stages)} stages must divide the {count} micro-batches"
        return Broken("interleaving-in-rounds-of-stages", message)
    return Plan(
        global_batch_size=batch,
        sequence_length=place.plan.sequence_length,
        micro_batch_size=parts.samples // parts.strategies[0].data_parallel_size,
        num_micro_batches=count,
        schedule=parts.schedule,
        stages=tuple(
            Stage(
                first_device=sum(parts.devices[:number]),
                num_devices=parts.devices[number],
                runs=runs_of(stretches, [parts.strategies[n] for first, end in stretches for n in range(first, end)]),
            )
            for number, stretches in enumerate(parts.stages)
        ),
    )


def _first_broken(model: Model, training: Training, plan: Plan) -> Broken | None:
    pairs = (pair for stage in plan.stages for pair in stage.strategies())
    for layer, strategy in dict.fromkeys((model.layers[number], strategy) for number, strategy in pairs):
        for broken in broken_rules(layer, strategy, training):
            return broken
    return None


def _changes(place: _Place) -> Iterator[_Change]:
    yield from _exchanges(place)
    yield from _stages(place)
    yield from _experts(place)
    yield from _samples(place)
    yield from _pieces(place)
    yield from _levels(place)


def _exchanges(place: _Place) -> Iterator[_Change]:
    for giver, taker in permutations(_AXES, 2):
        degree = _degree(place, giver)
        if degree > 1:
            factor = respread.smallest_factor(degree)
            words = _exchanged(giver, degree, taker, place.main_strategy.degree(taker), factor)
            yield (
                words,
                lambda giver=giver, taker=taker, factor=factor: _everywhere(  # type: ignore[misc]
                    place, lambda s: respread.exchange(s, giver, taker, factor, place.setting)
                ),
            )


def _degree(place: _Place, kind: AxisKind) -> int:
    """Of the main strategy, or else of the first that has the axis; 1 if none has."""
    degrees = (strategy.degree(kind) for strategy in (place.main_strategy, *place.parts.strategies))
    return next((degree for degree in degrees if degree > 1), 1)


def _exchanged(giver: str, given: int, taker: str, taken: int, factor: int) -> str:
    """The exchange in words, in the order in which differences are told."""
    words = {taker: f"{taker} {taken} → {taken * factor}", giver: f"{giver} {given} → {given // factor}"}
    order = ("pp", *AxisKind, *respread.EXPERT_DEGREES)
    return ", ".join(words[name] for name in sorted(words, key=order.index))


def _everywhere(place: _Place, change: _Remade, only_blocks: bool = False) -> _Parts | None:
    """The change in every layer that can make it; None if no block can."""
    known: dict[Strategy, Strategy] = {}
    strategies = list(place.parts.strategies)
    reaches_blocks = False
    for number, strategy in enumerate(strategies):
        is_block = isinstance(place.model.layers[number], Block)
        if only_blocks and not is_block:
            continue
        if strategy not in known:
            known[strategy] = change(strategy) or strategy
        strategies[number] = known[strategy]
        reaches_blocks = reaches_blocks or (is_block and known[strategy] != strategy)
    if not reaches_blocks:
        return None
    return place.parts._replace(strategies=tuple(strategies), samples=_samples_with(place, strategies[place.main]))


def _samples_with(place: _Place, main: Strategy) -> int:
    """Samples of a micro-batch, of which each rank of the main layer gets as many as before."""
    return place.parts.samples // place.main_strategy.data_parallel_size * main.data_parallel_size


def _stages(place: _Place) -> Iterator[_Change]:
    """More stages on fewer devices each, fewer on more."""
    count = len(place.parts.stages)
    for kind in _AXES:
        degree = place.main_strategy.degree(kind)
        if degree > 1:
            factor = respread.smallest_factor(degree)
            words = _exchanged(kind, degree, "pp", count, factor)
            yield words, lambda kind=kind, factor=factor: _more_stages(place, kind, factor)  # type: ignore[misc]
        if count > 1:
            factor = respread.smallest_factor(count)
            words = _exchanged("pp", count, kind, place.main_strategy.degree(kind), factor)
            yield words, lambda kind=kind, factor=factor: _fewer_stages(place, kind, factor)  # type: ignore[misc]


def _more_stages(place: _Place, giver: AxisKind, factor: int) -> _Parts | Broken:
    return _with_stages(
        place,
        len(place.parts.stages) * factor,
        lambda strategy: respread.on_fewer_devices(strategy, giver, factor, place.setting),
    )


def _fewer_stages(place: _Place, taker: AxisKind, factor: int) -> _Parts | Broken:
    return _with_stages(
        place,
        len(place.parts.stages) // factor,
        lambda strategy: respread.on_more_devices(strategy, taker, factor, place.setting),
    )


def _with_stages(place: _Place, count: int, change: _Remade) -> _Parts | Broken:
    """Even stages with as many virtual stages as before, or the most below that cut the blocks into equal pieces."""
    if len(set(place.parts.devices)) > 1:
        return Broken("equal-stages", "stages of unlike numbers of devices are not cut anew")
    found = {strategy: change(strategy) for strategy in dict.fromkeys(place.parts.strategies)}
    changed = [found[strategy] for strategy in place.parts.strategies]
    strategies = tuple(strategy for strategy in changed if strategy is not None)
    if len(strategies) < len(changed):
        return Broken("equal-stages", f"the devices of a stage must divide into {count} stages under every strategy")
    devices = (strategies[0].num_devices,) * count
    samples = _samples_with(place, strategies[place.main])
    pieces = place.parts.schedule.virtual_stages if count > 1 else 1
    return _cut_anew(place, place.parts._replace(devices=devices, strategies=strategies, samples=samples), pieces)


def _cut_anew(place: _Place, parts: _Parts, pieces: int) -> _Parts | Broken:
    """The layers dealt evenly to as many stages as `parts` has devices for."""
    count = len(parts.devices)
    for virtual in range(pieces, 1, -1):
        cut = equal_pieces(place.model, count, virtual)
        if cut is not None:
            schedule = Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=virtual)
            return parts._replace(stages=cut, schedule=schedule)
    even = even_stretches(place.model, count)
    if even is None:
        return Broken("stages-need-layers", f"{_blocks(place.model)} blocks cannot fill {count} stages")
    kind = parts.schedule.kind
    plain = Schedule() if kind is ScheduleKind.INTERLEAVED or count == 1 else Schedule(kind=kind)
    return parts._replace(stages=even, schedule=plain)


def _blocks(model: Model) -> int:
    return sum(isinstance(layer, Block) for layer in model.layers)


def _experts(place: _Place) -> Iterator[_Change]:
    for giver, taker in permutations(respread.EXPERT_DEGREES, 2):
        given, taken = (respread.expert_degree(place.main_strategy, name) for name in (giver, taker))
        if given > 1:
            factor = respread.smallest_factor(given)
            yield (
                _exchanged(giver, given, taker, taken, factor),
                lambda giver=giver, taker=taker, factor=factor: _everywhere(  # type: ignore[misc]
                    place, lambda s: respread.exchange_experts(s, giver, taker, factor, place.setting)
                ),
            )


def _samples(place: _Place) -> Iterator[_Change]:
    parts, count = place.parts, place.plan.num_micro_batches
    each = parts.samples // place.main_strategy.data_parallel_size
    if count > 1:
        more = respread.smallest_factor(count)
        yield f"mbs {each} → {each * more}", lambda: parts._replace(samples=parts.samples * more)
    if each > 1:
        fewer = respread.smallest_factor(each)
        yield f"mbs {each} → {each // fewer}", lambda: parts._replace(samples=parts.samples // fewer)


def _pieces(place: _Place) -> Iterator[_Change]:
    """Other virtual stages and schedules; a stage alone has none."""
    count, now = len(place.parts.stages), place.parts.schedule
    if count == 1:
        return
    cuts = [v for v in range(2, _blocks(place.model) // count + 1) if equal_pieces(place.model, count, v)]
    for virtual in (next((v for v in cuts if v > now.virtual_stages), None), _next_fewer(cuts, now.virtual_stages)):
        if virtual is not None:
            words = f"vpp {now.virtual_stages} → {virtual}"
            yield words, lambda virtual=virtual: _cut_anew(place, place.parts, virtual)  # type: ignore[misc]
    for kind in ScheduleKind:
        if kind not in (now.kind, ScheduleKind.INTERLEAVED):
            made = Schedule(kind=kind)
            words = f"schedule {captions.schedule_short(now)} → {captions.schedule_short(made)}"
            yield words, lambda made=made: _under(place, made)  # type: ignore[misc]


def _next_fewer(cuts: list[int], virtual: int) -> int | None:
    return max((v for v in cuts if v < virtual), default=None)


def _under(place: _Place, schedule: Schedule) -> _Parts | Broken:
    """Another schedule without virtual stages; stages stay where they had none."""
    if place.parts.schedule.virtual_stages == 1:
        return place.parts._replace(schedule=schedule)
    return _cut_anew(place, place.parts._replace(schedule=schedule), 1)


def _levels(place: _Place) -> Iterator[_Change]:
    for up in (1, -1):
        direction = "up" if up > 0 else "down"
        yield (
            f"sharding one level {direction}",
            lambda up=up: _everywhere(place, lambda s: respread.shard(s, up)),  # type: ignore[misc]
        )
        yield (
            f"recompute one level {direction}",
            lambda up=up: _everywhere(  # type: ignore[misc]
                place, lambda s: respread.recompute(s, up), only_blocks=True
            ),
        )
        yield (
            f"sp {'on' if up > 0 else 'off'}",
            lambda up=up: _everywhere(place, lambda s: respread.turn_sequence_parallel(s, up > 0)),  # type: ignore[misc]
        )

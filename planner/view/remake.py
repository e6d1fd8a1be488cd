"""A plan taken apart, changed, and put together again. What no plan can be is Broken: a rule and what it says.

Layers keep their strategies by number; with other stages or pieces they are dealt anew, evenly. A rank of the main
layer gets as many samples of a micro-batch as before, so that micro-batches change with data parallelism.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from planner.cost.rules import Broken
from planner.spec.model import Block, Model
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage
from planner.spec.strategy import Sharding, Strategy
from planner.spec.stretches import Stretches, equal_pieces, even_stretches, runs_of
from planner.view import respread
from planner.view.match import check_model

Remade = Callable[[Strategy], Strategy | None]
"""A change of one strategy; None where it cannot be made."""


class Parts(NamedTuple):
    """A plan taken apart."""

    stages: tuple[Stretches, ...]
    devices: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    """One for each layer."""
    schedule: Schedule
    samples: int
    """Of a micro-batch, over all data-parallel ranks."""


class Place(NamedTuple):
    """Where changes begin."""

    model: Model
    plan: Plan
    parts: Parts
    main: int
    """A layer under the plan's main strategy, after which degrees are named."""
    setting: respread.Setting

    @property
    def main_strategy(self) -> Strategy:
        """The strategy with most layers."""
        return self.parts.strategies[self.main]


def take_apart(model: Model, plan: Plan) -> Place:
    """The plan as a place to change from; raises InputError if it is for other layers."""
    check_model(model, plan)
    by_layer = dict(pair for stage in plan.stages for pair in stage.strategies())
    strategies = tuple(by_layer[layer] for layer in range(len(model.layers)))
    stretches = tuple(
        tuple((runs[0].first_layer, runs[-1].end_layer) for runs in stage.pieces) for stage in plan.stages
    )
    devices = tuple(stage.num_devices for stage in plan.stages)
    parts = Parts(stretches, devices, strategies, plan.schedule, plan.samples_per_micro_batch)
    shardings = Counter(strategy.sharding for strategy in strategies if respread.is_shardable(strategy))
    fresh = max(shardings, key=lambda sharding: (shardings[sharding], sharding), default=Sharding.OPTIMIZER)
    setting = respread.Setting(plan.sequence_length, fresh)
    return Place(model, plan, parts, strategies.index(plan.main_strategy), setting)


def put_together(place: Place, parts: Parts) -> Plan | Broken:
    """The plan of these parts, with the batch of the old one."""
    batch = place.plan.global_batch_size
    if batch % parts.samples:
        return Broken("batch-divides", f"micro-batches of {parts.samples} samples must divide the batch of {batch}")
    for cut in (strategy.data_parallel_size for strategy in parts.strategies):
        if parts.samples % cut:
            return Broken("samples-divide", f"dp {cut} must divide the {parts.samples} samples of a micro-batch")
    count = batch // parts.samples
    if parts.schedule.virtual_stages > 1 and count % len(parts.stages):
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


def everywhere(place: Place, change: Remade, only_blocks: bool = False) -> Parts | None:
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


def _samples_with(place: Place, main: Strategy) -> int:
    """Samples of a micro-batch, of which each rank of the main layer gets as many as before."""
    return place.parts.samples // place.main_strategy.data_parallel_size * main.data_parallel_size


def with_stages(place: Place, count: int, change: Remade) -> Parts | Broken:
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
    return cut_anew(place, place.parts._replace(devices=devices, strategies=strategies, samples=samples), pieces)


def cut_anew(place: Place, parts: Parts, pieces: int) -> Parts | Broken:
    """The layers dealt evenly to as many stages as `parts` has devices for, in at most `pieces` virtual stages."""
    count = len(parts.devices)
    for virtual in range(pieces, 1, -1):
        cut = equal_pieces(place.model, count, virtual)
        if cut is not None:
            schedule = Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=virtual)
            return parts._replace(stages=cut, schedule=schedule)
    even = even_stretches(place.model, count)
    if even is None:
        return Broken("stages-need-layers", f"{num_blocks(place.model)} blocks cannot fill {count} stages")
    kind = parts.schedule.kind
    plain = Schedule() if kind is ScheduleKind.INTERLEAVED or count == 1 else Schedule(kind=kind)
    return parts._replace(stages=even, schedule=plain)


def under(place: Place, schedule: Schedule) -> Parts | Broken:
    """Another schedule without virtual stages; stages stay where they had none."""
    if place.parts.schedule.virtual_stages == 1:
        return place.parts._replace(schedule=schedule)
    return cut_anew(place, place.parts._replace(schedule=schedule), 1)


def num_blocks(model: Model) -> int:
    """Transformer blocks of the model."""
    return sum(isinstance(layer, Block) for layer in model.layers)

"""The plans one step away from a plan: one degree, level or schedule changed, the rest as it is as far as that can be.

    exchanges     one axis shrinks by the smallest prime of its degree, another grows by it
    of stages     the same with pp as one of the two
    of experts    the same among ep, etp and edp
    of samples    larger and smaller micro-batches
    of pieces     the next numbers of virtual stages that cut the blocks into equal pieces, other schedules
    of levels     sharding and recomputation one level up and down, sequence parallelism on and off

A change reaches every layer that can make it, and some block at least; one that would only divide a degree of 1 is no
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import NamedTuple

from pydantic import ValidationError

from planner.cost.check import tied_weights_are_cut_alike
from planner.cost.rules import Broken, broken_rules
from planner.spec.errors import InputError
from planner.spec.model import Model
from planner.spec.plan import Plan, Schedule, ScheduleKind
from planner.spec.strategy import AxisKind
from planner.spec.stretches import equal_pieces
from planner.spec.training import Training
from planner.view import captions, remake, respread
from planner.view.differences import change_in_words
from planner.view.remake import Parts, Place, everywhere

_AXES = tuple(kind for kind in AxisKind if kind is not AxisKind.SDP)
"""What gives and takes; sdp is written beside dp only, and keeps its degree."""


class Step(NamedTuple):
    """One change, and the plan that it leads to or the rule that forbids it."""

    change: str
    result: Plan | Broken


_Make = Callable[[], Parts | Broken | None]
"""Makes a change; None if it changes nothing."""
_Change = tuple[str, _Make]
"""The change in words, and what makes it."""


def neighbours(model: Model, training: Training, plan: Plan) -> tuple[Step, ...]:
    """All steps from the plan, each plan once; raises InputError if the plan is for other layers."""
    place = remake.take_apart(model, plan)
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


def _step(place: Place, training: Training, words: str, make: _Make) -> Step | None:
    try:
        made = make()
        if made is None or made == place.parts:
            return None
        result = made if isinstance(made, Broken) else remake.put_together(place, made)
    except ValidationError as error:
        result = Broken("valid-plan", str(InputError.from_validation(error).problems[0]))
    if isinstance(result, Broken):
        return Step(words, result)
    words = change_in_words(place.model, place.plan, result)
    return Step(words, _first_broken(place.model, training, result) or result)


def _first_broken(model: Model, training: Training, plan: Plan) -> Broken | None:
    pairs = (pair for stage in plan.stages for pair in stage.strategies())
    for layer, strategy in dict.fromkeys((model.layers[number], strategy) for number, strategy in pairs):
        for broken in broken_rules(layer, strategy, training):
            return broken
    return tied_weights_are_cut_alike(model, plan)


def _changes(place: Place) -> Iterator[_Change]:
    yield from _exchanges(place)
    yield from _of_stages(place)
    yield from _of_experts(place)
    yield from _of_samples(place)
    yield from _of_pieces(place)
    yield from _of_levels(place)


def _exchanges(place: Place) -> Iterator[_Change]:
    for giver, taker in permutations(_AXES, 2):
        degree = _degree(place, giver)
        if degree > 1:
            factor = respread.smallest_factor(degree)
            words = _exchanged(giver, degree, taker, place.main_strategy.degree(taker), factor)
            change = partial(respread.exchange, giver=giver, taker=taker, factor=factor, setting=place.setting)
            yield words, partial(everywhere, place, change)


def _degree(place: Place, kind: AxisKind) -> int:
    """Of the main strategy, or else of the first that has the axis; 1 if none has."""
    degrees = (strategy.degree(kind) for strategy in (place.main_strategy, *place.parts.strategies))
    return next((degree for degree in degrees if degree > 1), 1)


def _exchanged(giver: str, given: int, taker: str, taken: int, factor: int) -> str:
    """The exchange in words, in the order in which differences are told."""
    words = {taker: f"{taker} {taken} → {taken * factor}", giver: f"{giver} {given} → {given // factor}"}
    order = ("pp", *AxisKind, *respread.EXPERT_DEGREES)
    return ", ".join(words[name] for name in sorted(words, key=order.index))


def _of_stages(place: Place) -> Iterator[_Change]:
    """More stages on fewer devices each, fewer on more."""
    count = len(place.parts.stages)
    for kind in _AXES:
        degree = place.main_strategy.degree(kind)
        if degree > 1:
            factor = respread.smallest_factor(degree)
            fewer = partial(respread.on_fewer_devices, giver=kind, factor=factor, setting=place.setting)
            words = _exchanged(kind, degree, "pp", count, factor)
            yield words, partial(remake.with_stages, place, count * factor, fewer)
        if count > 1:
            factor = respread.smallest_factor(count)
            more = partial(respread.on_more_devices, taker=kind, factor=factor, setting=place.setting)
            words = _exchanged("pp", count, kind, degree, factor)
            yield words, partial(remake.with_stages, place, count // factor, more)


def _of_experts(place: Place) -> Iterator[_Change]:
    for giver, taker in permutations(respread.EXPERT_DEGREES, 2):
        given, taken = (respread.expert_degree(place.main_strategy, name) for name in (giver, taker))
        if given > 1:
            factor = respread.smallest_factor(given)
            change = partial(respread.exchange_experts, giver=giver, taker=taker, factor=factor, setting=place.setting)
            yield _exchanged(giver, given, taker, taken, factor), partial(everywhere, place, change)


def _of_samples(place: Place) -> Iterator[_Change]:
    parts, count = place.parts, place.plan.num_micro_batches
    each = parts.samples // place.main_strategy.data_parallel_size
    if count > 1:
        more = respread.smallest_factor(count)
        yield f"mbs {each} → {each * more}", lambda: parts._replace(samples=parts.samples * more)
    if each > 1:
        fewer = respread.smallest_factor(each)
        yield f"mbs {each} → {each // fewer}", lambda: parts._replace(samples=parts.samples // fewer)


def _of_pieces(place: Place) -> Iterator[_Change]:
    """Other virtual stages and schedules; a stage alone has none."""
    count, now = len(place.parts.stages), place.parts.schedule
    if count == 1:
        return
    most = remake.num_blocks(place.model) // count
    cuts = [virtual for virtual in range(2, most + 1) if equal_pieces(place.model, count, virtual)]
    more = [virtual for virtual in cuts if virtual > now.virtual_stages][:1]
    fewer = [virtual for virtual in cuts if virtual < now.virtual_stages][-1:]
    for virtual in (*more, *fewer):
        words = f"vpp {now.virtual_stages} → {virtual}"
        yield words, partial(remake.cut_anew, place, place.parts, virtual)
    for kind in ScheduleKind:
        if kind not in (now.kind, ScheduleKind.INTERLEAVED):
            made = Schedule(kind=kind)
            words = f"schedule {captions.schedule_short(now)} → {captions.schedule_short(made)}"
            yield words, partial(remake.under, place, made)


def _of_levels(place: Place) -> Iterator[_Change]:
    for levels, direction in ((1, "up"), (-1, "down")):
        yield f"sharding {direction}", partial(everywhere, place, partial(respread.shard, levels=levels))
        again = partial(respread.recompute, levels=levels)
        yield f"recompute {direction}", partial(everywhere, place, again, only_blocks=True)
    for on, word in ((True, "on"), (False, "off")):
        yield f"sp {word}", partial(everywhere, place, partial(respread.turn_sequence_parallel, on=on))

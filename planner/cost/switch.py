"""Seconds to go over from one plan to another: all state changes owners, then the job starts under the new plan.

What a device holds of a part of a layer is a box (see `planner.cost.holding`). A device receives its new box less what
of it lies in its old one; the other holders of the rest send it, each in proportion to what it has of it. Layers that
are held alike before and alike after are sent together; of them each part, and in it weights and optimizer state, by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from planner.cost.busy import Busy, Floats, Sends
from planner.cost.holding import Cuts, Devices, box
from planner.cost.nested import Flow, Integers, Moves, nested
from planner.cost.parameters import layer_parameters
from planner.cost.redistribution import Redistribution
from planner.cost.state import optimizer_bytes, weight_bytes
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import AnyLayer, Block, GroupedQueryAttention, Model
from planner.spec.plan import Plan
from planner.spec.strategy import Strategy
from planner.spec.training import Training

Known = dict[tuple[object, ...], object]
"""What was worked out before for a model, a cluster and a training, by what it depends on."""

Part = tuple[str, int]
"""A part of a layer, and its number of key-value heads; 0 for parts that have none."""

RESTART_PAUSE_S = 30.0
"""Assumed, not measured: what a job stands still besides the transfer, while processes, communicators and kernels
are made anew. Dominates for small jobs; replace it by the job's own start-up time where that is known."""


def switch_plan_s(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    current: Plan,
    target: Plan,
    restart_pause_s: float = RESTART_PAUSE_S,
    known: Known | None = None,
) -> float:
    """Seconds to redistribute weights and optimizer state from `current` to `target`, and to restart; 0 for one plan.

    Exact by the rules of `planner.cost.busy`, in closed form where degrees, stages and islands nest (as powers of two
    do), over all devices where they do not. `known`: a dictionary, empty at first, that callers with many pairs of
    plans of one model, cluster and training pass along. Raises InputError if the plans do not cover the layers of the
    model.
    """
    if current.id == target.id:
        return 0.0
    known = {} if known is None else known
    for name, plan in (("current", current), ("target", target)):
        if plan.num_layers != len(model.layers):
            raise InputError.at(name, f"the plan has {plan.num_layers} layers, the model {len(model.layers)}")
    busy = Busy(cluster.levels)
    sent: list[Sends] = []
    for moves in _moves(model, training, _layout(current, known), _layout(target, known), known):
        closed = nested(moves, cluster.levels)
        sent += [closed] if closed is not None else _one_by_one(moves, known)
    for each in sent:
        each.add(busy)
    return busy.longest_s(sent) + restart_pause_s


class _Layout(NamedTuple):
    """Who holds which layers under a plan: runs of layers in order, and stages."""

    first_layer: Integers
    stage: Integers
    """[runs]"""
    held: Integers
    """[runs]: which of `strategies`."""
    strategies: tuple[Strategy, ...]
    """One of all that hold layers alike."""
    first_device: Devices
    """[stages]"""
    num_devices: Devices
    boxes: tuple[dict[tuple[Part, bool], Cuts], ...]
    """[strategies]: what devices hold, as far as it was asked for."""

    def box(self, held: int, part: Part, is_weight: bool) -> Cuts:
        """What devices hold under one of the strategies."""
        known = self.boxes[held].get((part, is_weight))
        if known is None:
            known = self.boxes[held][part, is_weight] = box(self.strategies[held], part[0], is_weight, part[1])
        return known


class _Groups(NamedTuple):
    """Layers that are held alike before and alike after: in which stage, and how. All but the last [groups]."""

    old_stage: Integers
    new_stage: Integers
    old_held: Integers
    new_held: Integers
    parameters: Integers
    """[groups, parts]"""


def _layout(plan: Plan, known: Known) -> _Layout:
    key = ("layout", plan.id)
    if key not in known:
        known[key] = _new_layout(plan)
    found = known[key]
    assert isinstance(found, _Layout)
    return found


def _new_layout(plan: Plan) -> _Layout:
    rows: list[tuple[int, int, int]] = []
    strategies: dict[tuple[object, ...], tuple[int, Strategy]] = {}
    for number, stage in enumerate(plan.stages):
        for run in stage.runs:
            held, _ = strategies.setdefault(_cuts(run.strategy), (len(strategies), run.strategy))
            rows.append((run.first_layer, number, held))
    first_layer, stage_of, held_as = np.array(sorted(rows)).T
    first_device, num_devices = np.array([(stage.first_device, stage.num_devices) for stage in plan.stages]).T
    boxes: tuple[dict[tuple[Part, bool], Cuts], ...] = tuple({} for _ in strategies)
    alike = tuple(strategy for _, strategy in strategies.values())
    return _Layout(first_layer, stage_of, held_as, alike, first_device, num_devices, boxes)


def _cuts(strategy: Strategy) -> tuple[object, ...]:
    """What decides which device of a stage holds what of a layer."""
    return strategy.axes, strategy.sharding, strategy.experts


def _moves(model: Model, training: Training, current: _Layout, target: _Layout, known: Known) -> Iterator[Moves]:
    """What goes over, together for all stages of the same sizes."""
    parts, parameters = _parameters(model, known)
    groups = _groups(current, target, parameters)
    sizes = current.num_devices[groups.old_stage], target.num_devices[groups.new_stage]
    for old_size, new_size in sorted(set(zip(*(each.tolist() for each in sizes), strict=True))):
        chosen = (sizes[0] == old_size) & (sizes[1] == new_size)
        some = _Groups._make(column[chosen] for column in groups)
        flows, moved_bytes, pieces = _flows(training, current, target, some, parts)
        pairs, number = np.unique(some.old_stage * len(target.first_device) + some.new_stage, return_inverse=True)
        old_stage, new_stage = np.divmod(pairs, len(target.first_device))
        firsts = current.first_device[old_stage], target.first_device[new_stage]
        yield Moves(
            old_size, new_size, *firsts, flows, *(_summed(each, number, len(pairs)) for each in (moved_bytes, pieces))
        )


def _groups(current: _Layout, target: _Layout, parameters: Integers) -> _Groups:
    """`parameters`: [layers + 1, parts], of all layers before one."""
    begin = np.union1d(current.first_layer, target.first_layer)
    end = np.append(begin[1:], len(parameters) - 1)
    before = np.searchsorted(current.first_layer, begin, side="right") - 1
    after = np.searchsorted(target.first_layer, begin, side="right") - 1
    columns = (current.stage[before], target.stage[after], current.held[before], target.held[after])
    sizes = (len(current.first_device), len(target.first_device), len(current.strategies), len(target.strategies))
    key = np.ravel_multi_index(columns, sizes)
    _, where, number = np.unique(key, return_index=True, return_inverse=True)
    counts = np.zeros((len(where), parameters.shape[1]), dtype=np.int64)
    np.add.at(counts, number, parameters[end] - parameters[begin])
    old_stage, new_stage, old_held, new_held = (column[where] for column in columns)
    return _Groups(old_stage, new_stage, old_held, new_held, counts)


def _summed(rows: Floats, number: Integers, length: int) -> Floats:
    sums = np.zeros((length, rows.shape[1]))
    np.add.at(sums, number, rows)
    return sums


def _flows(
    training: Training, current: _Layout, target: _Layout, groups: _Groups, parts: tuple[Part, ...]
) -> tuple[tuple[Flow, ...], Floats, Floats]:
    """The kinds of state that go over, and [groups, flows] how many bytes of them, in how many pieces."""
    flows: dict[Flow, int] = {}
    columns: list[tuple[int, Integers, int, Floats]] = []
    held = groups.old_held * len(target.strategies) + groups.new_held
    for pair in np.unique(held).tolist():
        rows = np.flatnonzero(held == pair)
        old, new = divmod(pair, len(target.strategies))
        for number, part in enumerate(parts):
            counts = groups.parameters[rows, number]
            if not counts.any():
                continue
            for is_weight, width in ((True, weight_bytes(training)), (False, optimizer_bytes(training))):
                boxes = current.box(old, part, is_weight), target.box(new, part, is_weight)
                flow = flows.setdefault(boxes, len(flows))
                columns.append((flow, rows, width, counts))
    moved_bytes, pieces = np.zeros((2, len(held), len(flows)))
    for flow, rows, width, counts in columns:
        moved_bytes[rows, flow] += counts * width
        pieces[rows, flow] += counts > 0
    return tuple(flows), moved_bytes, pieces


def _one_by_one(moves: Moves, known: Known) -> Iterator[Redistribution]:
    for row, firsts in enumerate(zip(moves.old_first.tolist(), moves.new_first.tolist(), strict=True)):
        for number, flow in enumerate(moves.flows):
            size, pieces = float(moves.moved_bytes[row, number]), float(moves.pieces[row, number])
            unit = _unit((firsts[0], firsts[0] + moves.old_size), (firsts[1], firsts[1] + moves.new_size), flow, known)
            if pieces and not unit.is_idle:
                yield unit.of_size(size, pieces)


def _unit(
    old_stage: tuple[int, int], new_stage: tuple[int, int], flow: tuple[Cuts, Cuts], known: Known
) -> Redistribution:
    key = (old_stage, new_stage, flow)
    if key not in known:
        known[key] = Redistribution(1.0, old_stage, flow[0], new_stage, flow[1])
    found = known[key]
    assert isinstance(found, Redistribution)
    return found


def _parameters(model: Model, known: Known) -> tuple[tuple[Part, ...], Integers]:
    """The parts of the model's layers, and [layers + 1, parts] their parameters in all layers before one."""
    key = ("parameters",)
    if key not in known:
        runs = [(_parts(run.layer, model.hidden_size), run.num_layers) for run in model.runs]
        parts = tuple(dict.fromkeys(part for counts, _ in runs for part in counts))
        rows = [[counts.get(part, 0) for part in parts] for counts, length in runs for _ in range(length)]
        known[key] = (parts, np.cumsum([[0] * len(parts), *rows], axis=0))
    found = known[key]
    assert isinstance(found, tuple)
    return found


def _parts(layer: AnyLayer, hidden_size: int) -> dict[Part, int]:
    """Parameters of a layer by part."""
    parameters = layer_parameters(layer, hidden_size)
    heads, keys_values = _keys_values(layer, hidden_size)
    counts = {
        ("split", 0): parameters.split - keys_values,
        ("keys_values", heads): keys_values,
        ("replicated", 0): parameters.replicated,
        ("experts", 0): parameters.experts,
    }
    return {part: count for part, count in counts.items() if count}


def _keys_values(layer: AnyLayer, hidden_size: int) -> tuple[int, int]:
    """Key-value heads and the parameters that make them; 0 of 0 where there are none."""
    if not isinstance(layer, Block) or not isinstance(layer.attention, GroupedQueryAttention):
        return 0, 0
    attention = layer.attention
    inputs = (layer.hidden_size or hidden_size) + (1 if attention.qkv_bias else 0)
    return attention.num_kv_heads, 2 * attention.num_kv_heads * attention.head_dim * inputs

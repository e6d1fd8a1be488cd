"""The costs of all strategies of a layer at once. Every number comes from planner.cost.

A strategy's cost is made of parts that many strategies share: what its shape computes, what its experts compute, what
the parameters of either cost. Each part is priced once; numpy puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.experts import routed_experts, shared_experts
from planner.cost.layer import LayerCost, compose, part_without_experts, put_off_s
from planner.cost.load import load_ratio
from planner.cost.part import Conditions, Part, Share, add, at_entry, computed_tokens, of_layer, share
from planner.cost.state import State, state_of_experts, state_without_experts
from planner.search.grid import RECOMPUTE, SHARDING, Grid, Shape
from planner.spec.model import AnyLayer, Block, Model, MoeFeedForward
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.workload import Workload

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_DATA = (AxisKind.DP, AxisKind.SDP)


class LayerClass(NamedTuple):
    """Layers that cost the same: equal shape, and for experts an equal load."""

    layer: AnyLayer
    moe_layer: int
    """Which row of the workload holds; 0 where all rows are one."""


def classes(model: Model, workload: Workload) -> tuple[list[LayerClass], list[int]]:
    """The classes of a model's layers, and the class of each layer."""
    uniform = len(workload.expert_shares) <= 1
    found: dict[LayerClass, int] = {}
    sequence = []
    moe_layer = 0
    for layer in model.layers:
        moe = isinstance(layer, Block) and layer.moe is not None
        found_class = LayerClass(layer, moe_layer if moe and not uniform else 0)
        moe_layer += moe
        sequence.append(found.setdefault(found_class, len(found)))
    return list(found), sequence


class Cut(NamedTuple):
    """What a shape leaves of a layer to one device, whatever the number of data-parallel ranks."""

    shape: Shape
    """The innermost axes, data parallelism left out where it is outermost."""
    samples: int
    """Of one data-parallel rank."""


def cut(shape: Shape, samples: int) -> Cut:
    """The cut of a micro-batch of `samples` over all data-parallel ranks; they divide it."""
    inner, ranks = shape.axes, 1
    while inner and inner[0].kind in _DATA:
        ranks, inner = ranks * inner[0].degree, inner[1:]
    if all(axis.kind is not AxisKind.DP for axis in inner):
        # Strategies write sdp only beside dp; here it stands for samples alone.
        inner = tuple(Axis(AxisKind.DP, axis.degree) if axis.kind is AxisKind.SDP else axis for axis in inner)
    return Cut(Shape(inner, shape.sequence_parallel), samples // ranks)


class Pricing:
    """Prices layers of one model under one workload; parts that strategies share are priced once."""

    def __init__(self, model: Model, conditions: Conditions, workload: Workload) -> None:
        self.model = model
        self.conditions = conditions
        self.workload = workload
        self._parts: dict[tuple[int, Cut], Part] = {}
        self._shares: dict[tuple[int, Cut], Share] = {}
        self._states: dict[tuple[object, ...], State] = {}
        self._arriving: dict[int, tuple[Conditions, int]] = {}
        self._routed: dict[tuple[int, float, int, int], Part] = {}
        self._spread: dict[tuple[int, float, int], Floats] = {}
        self._ratios: dict[tuple[int, int, int], float] = {}

    def under(self, workload: Workload) -> Pricing:
        """Prices under another workload; what does not depend on it is not priced again."""
        other = Pricing(self.model, self.conditions, workload)
        other._parts, other._shares, other._states = self._parts, self._shares, self._states
        return other

    @cached_property
    def layer_classes(self) -> tuple[list[LayerClass], list[int]]:
        """Classes of the model's layers, and the class of each layer."""
        return classes(self.model, self.workload)

    def costs(self, number: int, grid: Grid, samples: int, own_copy: bool) -> LayerCost:
        """Costs of a layer of class `number` under each strategy, as arrays; each equals planner.cost's layer_cost.

        `samples` of a micro-batch over all data-parallel ranks, which divide them in every strategy. `own_copy`: a tied
        head sits on another stage than the embedding.
        """
        layer, _ = self.layer_classes[0][number]
        shapes = _present(grid.shape, len(grid.shapes))
        cuts = {int(shape): cut(grid.shapes[shape], samples) for shape in shapes}
        edges = {shape: self.share(number, cuts[shape]).edge_tokens for shape in cuts}
        edge_tokens = self._by_shape(grid, [(shape, [edges[shape]]) for shape in cuts])[:, 0]
        whole = Part(*self._by_shape(grid, [(shape, self.part(number, cuts[shape])) for shape in cuts]).T)
        held = self._states_of(layer, grid, own_copy)
        if isinstance(layer, Block) and layer.moe is not None:
            routed = [(shape, self.routed(number, edges[shape], grid.spreads)) for shape in cuts]
            whole = add_columns(whole, Part(*self._by_shape(grid, routed)[np.arange(len(grid)), grid.spread].T))
            held = State._make(map(np.add, held, self._states_of_experts(layer, grid)))
        costs = _compose_each(self.conditions_of(number), grid.recompute, edge_tokens, whole, held)
        return costs._replace(weight_gradient_s=put_off_s(layer, costs))

    def conditions_of(self, number: int) -> Conditions:
        """Conditions of a layer of class `number`."""
        return of_layer(self.conditions, self.layer_classes[0][number].layer)

    def at_entry(self, number: int) -> tuple[Conditions, int]:
        """(conditions, tokens of a sample) of what crosses into a layer of class `number`."""
        if number not in self._arriving:
            layer, length = self.layer_classes[0][number].layer, self.conditions.training.sequence_length
            self._arriving[number] = at_entry(self.conditions, layer, length)
        return self._arriving[number]

    def share(self, number: int, of: Cut) -> Share:
        """What one device gets of a micro-batch in a layer of class `number`."""
        training, layer = self.conditions.training, self.layer_classes[0][number].layer
        key = computed_tokens(layer, training.sequence_length, training.encoder_length), of
        if key not in self._shares:
            self._shares[key] = share(of.shape.strategy(), of.samples, key[0])
        return self._shares[key]

    def part(self, number: int, of: Cut) -> Part:
        """A layer of class `number` but for its routed experts."""
        layer = self.layer_classes[0][number].layer
        key = (id(layer), of)
        if key not in self._parts:
            strategy, part_of, given = of.shape.strategy(), self.share(number, of), self.conditions_of(number)
            found = part_without_experts(given, layer, strategy, part_of)
            if isinstance(layer, Block) and layer.moe is not None:
                found = add((found, shared_experts(given, layer.moe, strategy, part_of)))
            self._parts[key] = found
        return self._parts[key]

    def routed(self, number: int, edge_tokens: float, spreads: Sequence[ExpertStrategy | None]) -> Floats:
        """[spreads, numbers of a Part] of the routed experts, where each device has so many tokens to route."""
        key = (number, edge_tokens, id(spreads))
        if key not in self._spread:
            layer, moe_layer = self.layer_classes[0][number]
            assert isinstance(layer, Block)
            assert layer.moe is not None
            rows = [self._routed_part(number, layer.moe, moe_layer, edge_tokens, spread) for spread in spreads]
            self._spread[key] = np.array(rows, dtype=np.float64)
        return self._spread[key]

    def _routed_part(
        self, number: int, moe: MoeFeedForward, moe_layer: int, edge_tokens: float, spread: ExpertStrategy | None
    ) -> Part:
        assert spread is not None
        ranks, tensor = spread.expert_parallel_size, spread.expert_tensor_parallel_size
        if moe.num_experts % ranks:
            # No strategy has it.
            return Part()
        key = (number, edge_tokens, ranks, tensor)
        if key not in self._routed:
            ratio = self._load_ratio(number, moe, moe_layer, ranks)
            self._routed[key] = routed_experts(self.conditions_of(number), moe, spread, edge_tokens, ratio)
        return self._routed[key]

    def _load_ratio(self, number: int, moe: MoeFeedForward, moe_layer: int, ranks: int) -> float:
        key = (number, moe_layer, ranks)
        if key not in self._ratios:
            capacity = self.conditions.training.capacity_factor
            self._ratios[key] = load_ratio(moe, moe_layer, ranks, self.workload, capacity_factor=capacity)
        return self._ratios[key]

    def _states_of(self, layer: AnyLayer, grid: Grid, own_copy: bool) -> State:
        """[rows] of everything but routed experts."""

        def state(shape: int, sharding: Sharding, offload: bool) -> State:
            strategy = _sharded(grid.shapes[shape], sharding, offload)
            return state_without_experts(self.conditions, layer, strategy, own_copy)

        return self._by_part((id(layer), id(grid.shapes), own_copy), grid.shape, grid, state)

    def _states_of_experts(self, layer: Block, grid: Grid) -> State:
        """[rows] of routed experts."""

        def state(spread: int, sharding: Sharding, offload: bool) -> State:
            return state_of_experts(self.conditions, layer, _spread_strategy(grid.spreads[spread], sharding, offload))

        return self._by_part((id(layer), id(grid.spreads)), grid.spread, grid, state)

    def _by_part(
        self, known: tuple[object, ...], part: Integers, grid: Grid, state: Callable[[int, Sharding, bool], State]
    ) -> State:
        """[rows] of states that depend on a part, sharding and offload; `known` says of what else."""
        numbers = (part * len(SHARDING) + grid.sharding) * 2 + grid.offload
        columns = np.zeros((int(numbers.max(initial=0)) + 1, len(State._fields)))
        for number in _present(numbers, len(columns)).tolist():
            key = (*known, number)
            if key not in self._states:
                pair, offload = divmod(number, 2)
                one, sharding = divmod(pair, len(SHARDING))
                self._states[key] = state(one, SHARDING[sharding], bool(offload))
            columns[number] = self._states[key]
        return State(*columns[numbers].T)

    def _by_shape(self, grid: Grid, values: Sequence[tuple[int, Any]]) -> Floats:
        """[rows, ...] of values given for each shape."""
        columns = np.zeros((len(grid.shapes), *np.shape(values[0][1])))
        for shape, value in values:
            columns[shape] = value
        found: Floats = columns[grid.shape]
        return found


def _columns(arrays: Sequence[Any], own: slice) -> list[Any]:
    """Some rows of each column."""
    return [column[own] for column in arrays]


def add_columns(one: Part, other: Part) -> Part:
    """planner.cost.part.add for two parts that hold arrays."""
    summed = Part._make(map(np.add, one, other))
    return summed._replace(transient_bytes=np.maximum(one.transient_bytes, other.transient_bytes))


def _present(indices: Integers, size: int) -> Integers:
    """The different indices, ascending."""
    return np.flatnonzero(np.bincount(indices, minlength=size))


def _sharded(shape: Shape, sharding: Sharding, offload: bool) -> Strategy:
    """The strategy of a shape for prices of its parameters, also where experts alone have replicas to shard."""
    devices = prod(axis.degree for axis in shape.axes)
    copies = ExpertStrategy(expert_data_parallel_size=devices) if devices > 1 else None
    return Strategy(
        axes=shape.axes,
        sequence_parallel=shape.sequence_parallel,
        sharding=sharding,
        experts=copies,
        offload=offload,
    )


def _spread_strategy(spread: ExpertStrategy | None, sharding: Sharding, offload: bool) -> Strategy:
    """A strategy with these experts, for prices of their parameters."""
    assert spread is not None
    axes = (Axis(AxisKind.DP, spread.num_devices),) if spread.num_devices > 1 else ()
    return Strategy(axes=axes, experts=spread, sharding=sharding if axes else Sharding.NONE, offload=offload)


def _compose_each(
    conditions: Conditions, recompute: Integers, edge_tokens: Floats, whole: Part, held: State
) -> LayerCost:
    """compose() for strategies that differ in recomputation, of which the rows are in order."""
    ends = np.searchsorted(recompute, np.arange(len(RECOMPUTE) + 1))
    found = []
    for kind, (first, end) in zip(RECOMPUTE, pairwise(ends.tolist()), strict=True):
        if end > first:
            own = slice(first, end)
            part, state = Part._make(_columns(whole, own)), State._make(_columns(held, own))
            found.append((end - first, compose(conditions, kind, edge_tokens[own], part, state)))

    def joined(columns: Sequence[Any]) -> Any:
        sizes = (size for size, _ in found)
        return np.concatenate([np.broadcast_to(column, size) for size, column in zip(sizes, columns, strict=True)])

    costs = [cost for _, cost in found]
    forward: Any = tuple(map(joined, zip(*(cost.forward for cost in costs), strict=True)))
    backward: Any = tuple(map(joined, zip(*(cost.backward for cost in costs), strict=True)))
    return LayerCost(forward, backward, *map(joined, zip(*(cost[2:] for cost in costs), strict=True)))

"""From layers and strategies to numbers: what solvers see. Every number comes from planner.cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.boundary import Entry, entry, layout, tied_gradient_s, transition_s
from planner.cost.experts import moe_feed_forward
from planner.cost.layer import LayerCost, compose, part_without_experts, put_off_s
from planner.cost.load import load_ratio
from planner.cost.part import Conditions, Part, Share, share
from planner.cost.pipeline import Beats, beat
from planner.cost.rules import AnyLayer
from planner.cost.state import State, state_of_experts, state_without_experts
from planner.search.pareto import undominated
from planner.spec.model import Block, Head, Model
from planner.spec.strategy import AxisKind, Recompute, Strategy
from planner.spec.workload import Workload

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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


class Choices(NamedTuple):
    """The strategies of one layer class, a row each."""

    strategies: tuple[Strategy, ...]
    beats_s: Floats
    """[strategies, beats]: passes over one micro-batch, in the columns of planner.cost.pipeline.beat."""
    once_s: Floats
    fixed_bytes: Integers
    flight_bytes: Integers
    """For each micro-batch in flight."""
    workspace_bytes: Integers
    layout: Integers
    """Index of the activation's layout; equal ones follow each other for free."""
    entry_s: Floats
    """[strategies, tiers]: one message from the stage before, by the tier of links that it crosses."""
    entry_bytes: Integers

    def rows(self, kept: Integers) -> Choices:
        """Only these rows."""
        return Choices(
            strategies=tuple(self.strategies[i] for i in kept),
            beats_s=self.beats_s[kept],
            once_s=self.once_s[kept],
            fixed_bytes=self.fixed_bytes[kept],
            flight_bytes=self.flight_bytes[kept],
            workspace_bytes=self.workspace_bytes[kept],
            layout=self.layout[kept],
            entry_s=self.entry_s[kept],
            entry_bytes=self.entry_bytes[kept],
        )


class Table(NamedTuple):
    """All classes for one stage size and one number of samples per micro-batch."""

    choices: tuple[Choices, ...]
    transition_s: Floats
    """[layouts, layouts, beats]: from the layout before to the one after."""
    message_beats: tuple[float, ...]
    """[beats]: of one second of messages in each pass."""


T = TypeVar("T")
_RECOMPUTE = tuple(Recompute)


class _Key(NamedTuple):
    """What parts of a strategy its prices depend on, each as a small number."""

    axes: int
    """With sequence parallelism."""
    state: int
    spread: int
    experts_state: int
    layout: int


class Pricing:
    """Prices layers of one model for tables; parts that strategies share are priced once."""

    def __init__(self, model: Model, conditions: Conditions, workload: Workload, beats: Beats) -> None:
        self.model = model
        self.conditions = conditions
        self.workload = workload
        self.beats = beats
        self._parts: dict[object, Part] = {}
        self._states: dict[object, State] = {}
        self._keys: dict[int, _Key] = {}
        self._numbers: dict[object, int] = {}
        self._messages: dict[object, list[Entry]] = {}
        self._routed: dict[object, Part] = {}
        self._ratios: dict[tuple[int, int, int], float] = {}

    def under(self, workload: Workload) -> Pricing:
        """Prices under another workload; what does not depend on it is not priced again."""
        other = Pricing(self.model, self.conditions, workload, self.beats)
        other._parts, other._states = self._parts, self._states
        other._keys, other._numbers, other._messages = self._keys, self._numbers, self._messages
        return other

    @cached_property
    def layer_classes(self) -> tuple[list[LayerClass], list[int]]:
        """Classes of the model's layers, and the class of each layer."""
        return classes(self.model, self.workload)

    def table(self, strategies: Sequence[Sequence[Strategy]], samples: int, own_copy: bool, tied_hop: int) -> Table:
        """Numbers for the strategies of each class, for micro-batches of `samples`.

        `own_copy`: a tied head sits on another stage than the embedding, which begins `tied_hop` devices before.
        """
        layouts: dict[int, int] = {}
        representatives: list[Strategy] = []
        all_choices = []
        for number, candidates in enumerate(strategies):
            keys = [self._key(strategy) for strategy in candidates]
            for strategy, key in zip(candidates, keys, strict=True):
                if key.layout not in layouts:
                    layouts[key.layout] = len(layouts)
                    representatives.append(strategy)
            cuts = np.array([layouts[key.layout] for key in keys], dtype=np.int64)
            costs = self.costs(number, candidates, samples, own_copy)
            all_choices.append(self._choices(number, candidates, costs, cuts, samples, tied_hop if own_copy else 0))
        message_beats = beat(self.beats, 1.0, 1.0, 0.0)
        return Table(tuple(all_choices), self._transitions(representatives, samples), message_beats)

    def _key(self, strategy: Strategy) -> _Key:
        """Small numbers that are equal where strategies share parts; strategies live as long as the search."""
        key = self._keys.get(id(strategy))
        if key is None:
            shape = (strategy.axes, strategy.sequence_parallel)
            spread = strategy.experts and (
                strategy.experts.expert_parallel_size,
                strategy.experts.expert_tensor_parallel_size,
                # Shared experts follow the tensor-parallel group, routed ones see the device's own tokens only.
                strategy.tp,
                strategy.stride(AxisKind.TP),
            )
            values = (
                shape,
                (shape, strategy.sharding),
                spread,
                (strategy.experts, strategy.sharding),
                layout(strategy),
            )
            key = _Key(
                *(self._numbers.setdefault((field, value), len(self._numbers)) for field, value in enumerate(values))
            )
            self._keys[id(strategy)] = key
        return key

    def costs(self, number: int, strategies: Sequence[Strategy], samples: int, own_copy: bool) -> LayerCost:
        """Costs of a layer of class `number` under each strategy, as arrays; each equals planner.cost's layer_cost."""
        layer, _ = self.layer_classes[0][number]
        keys = [self._key(strategy) for strategy in strategies]
        shares = {key.axes: share(s, samples, self._sequence_length) for s, key in zip(strategies, keys, strict=True)}
        whole = _columns(
            Part, [self._part(number, s, k, shares[k.axes]) for s, k in zip(strategies, keys, strict=True)]
        )
        held = _columns(State, [self._state(number, s, k, own_copy) for s, k in zip(strategies, keys, strict=True)])
        if isinstance(layer, Block) and layer.moe is not None:
            routed = [self._routed_part(number, s, k, shares[k.axes]) for s, k in zip(strategies, keys, strict=True)]
            whole = add_columns(whole, _columns(Part, routed))
            experts = [self._experts_state(layer, s, k) for s, k in zip(strategies, keys, strict=True)]
            held = State._make(map(np.add, held, _columns(State, experts)))
        edge_tokens = np.array([shares[key.axes].edge_tokens for key in keys])
        again = np.array([_RECOMPUTE.index(strategy.recompute) for strategy in strategies])
        costs = _compose_each(self.conditions, again, edge_tokens, whole, held)
        return costs._replace(weight_gradient_s=put_off_s(layer, costs))

    @property
    def _sequence_length(self) -> int:
        return self.conditions.training.sequence_length

    def _part(self, number: int, strategy: Strategy, key: _Key, part_of: Share) -> Part:
        layer = self.layer_classes[0][number].layer
        found = self._parts.get((id(layer), key.axes, part_of.samples))
        if found is None:
            found = part_without_experts(self.conditions, layer, strategy, part_of)
            self._parts[(id(layer), key.axes, part_of.samples)] = found
        return found

    def _state(self, number: int, strategy: Strategy, key: _Key, own_copy: bool) -> State:
        layer = self.layer_classes[0][number].layer
        found = self._states.get((id(layer), key.state, own_copy))
        if found is None:
            found = state_without_experts(self.conditions, layer, strategy, own_copy)
            self._states[(id(layer), key.state, own_copy)] = found
        return found

    def _routed_part(self, number: int, strategy: Strategy, key: _Key, part_of: Share) -> Part:
        found = self._routed.get((number, key.spread, part_of.edge_tokens, part_of.tokens))
        if found is None:
            layer, moe_layer = self.layer_classes[0][number]
            assert isinstance(layer, Block)
            assert layer.moe is not None
            assert strategy.experts is not None
            ratio = self._load_ratio(number, layer, moe_layer, strategy.experts.expert_parallel_size)
            found = moe_feed_forward(self.conditions, layer.moe, strategy, part_of, ratio)
            self._routed[(number, key.spread, part_of.edge_tokens, part_of.tokens)] = found
        return found

    def _experts_state(self, layer: Block, strategy: Strategy, key: _Key) -> State:
        found = self._states.get((id(layer), key.experts_state, None))
        if found is None:
            found = self._states[(id(layer), key.experts_state, None)] = state_of_experts(
                self.conditions, layer, strategy
            )
        return found

    def _load_ratio(self, number: int, layer: Block, moe_layer: int, ranks: int) -> float:
        key = (number, moe_layer, ranks)
        if key not in self._ratios:
            assert layer.moe is not None
            capacity = self.conditions.training.capacity_factor
            self._ratios[key] = load_ratio(layer.moe, moe_layer, ranks, self.workload, capacity_factor=capacity)
        return self._ratios[key]

    def _choices(
        self,
        number: int,
        strategies: Sequence[Strategy],
        costs: LayerCost,
        layouts: Integers,
        samples: int,
        tied_hop: int,
    ) -> Choices:
        layer = self.layer_classes[0][number].layer
        beats = beat(self.beats, costs.forward_s, costs.backward_s, costs.weight_gradient_s)
        tied = [tied_gradient_s(self.conditions, layer, s, (0, tied_hop)) if tied_hop else 0.0 for s in strategies]
        entries = [self._entries(strategy, samples) for strategy in strategies]
        flying = costs.activation_bytes + costs.logits_bytes
        # planner.cost.pipeline.head_in_flight: one micro-batch, but for GPipe, which alone parts its passes here.
        held = flying if isinstance(layer, Head) and self.beats is not Beats.PASSES else np.zeros(len(strategies))
        return Choices(
            strategies=tuple(strategies),
            beats_s=np.stack(beats, axis=1),
            once_s=costs.once_s + np.array(tied),
            fixed_bytes=(costs.fixed_bytes + held).astype(np.int64),
            flight_bytes=(flying - held).astype(np.int64),
            workspace_bytes=costs.workspace_bytes.astype(np.int64),
            layout=layouts,
            entry_s=np.array([[message.pass_s for message in found] for found in entries]),
            entry_bytes=np.array([found[0].buffer_bytes for found in entries], dtype=np.int64),
        )

    def _entries(self, strategy: Strategy, samples: int) -> list[Entry]:
        """One message over each tier of links."""
        key = (self._key(strategy).axes, samples)
        if key not in self._messages:
            # The nearest device that only this tier reaches.
            peers = [0, *(level.num_devices for level in self.conditions.levels)]
            hops = [(0, max(1, below) if level > 1 else 0) for below, level in pairwise(peers)]
            found = [entry(self.conditions, strategy, samples, self._sequence_length, hop) for hop in hops]
            self._messages[key] = found
        return self._messages[key]

    def _transitions(self, representatives: list[Strategy], samples: int) -> Floats:
        table = np.zeros((len(representatives), len(representatives), len(beat(self.beats, 0.0, 0.0, 0.0))))
        for i, before in enumerate(representatives):
            for j, after in enumerate(representatives):
                passes = transition_s(self.conditions, before, after, samples, self._sequence_length)
                table[i, j] = beat(self.beats, *passes, 0.0)
        return table


def add_columns(one: Part, other: Part) -> Part:
    """planner.cost.part.add for two parts that hold arrays."""
    summed = Part._make(map(np.add, one, other))
    return summed._replace(transient_bytes=np.maximum(one.transient_bytes, other.transient_bytes))


def _columns(kind: Callable[..., T], rows: Sequence[Sequence[float]]) -> T:
    """One tuple of arrays from many tuples of numbers."""
    return kind(*np.array(rows, dtype=np.float64).T)


def _compose_each(
    conditions: Conditions, recompute: NDArray[np.intp], edge_tokens: Floats, whole: Part, held: State
) -> LayerCost:
    """compose() for strategies that differ in recomputation."""
    found = [compose(conditions, each, edge_tokens, whole, held) for each in _RECOMPUTE]

    def chosen(*columns: Floats) -> Floats:
        return np.choose(recompute, [np.broadcast_to(column, edge_tokens.shape) for column in columns])

    forward: Any = tuple(map(chosen, *(cost.forward for cost in found)))
    backward: Any = tuple(map(chosen, *(cost.backward for cost in found)))
    return LayerCost(forward, backward, *(chosen(*columns) for columns in zip(*(c[2:] for c in found), strict=True)))


def without_dominated(choices: Choices) -> Choices:
    """Only strategies that no other with the same layout and entry beats or equals in every number."""
    known: dict[tuple[object, ...], int] = {}
    places = zip(
        choices.layout.tolist(), map(tuple, choices.entry_s.tolist()), choices.entry_bytes.tolist(), strict=True
    )
    labels = np.array([known.setdefault(place, len(known)) for place in places], dtype=np.int64)
    values = np.column_stack(
        [choices.beats_s, choices.once_s, choices.fixed_bytes, choices.flight_bytes, choices.workspace_bytes]
    )
    return choices.rows(undominated(values, labels))

"""From layers and strategies to numbers: what solvers see. Every number comes from planner.cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.boundary import Entry, Layout, entry, layout, tied_gradient_s, transition_s
from planner.cost.experts import moe_feed_forward
from planner.cost.layer import LayerCost, compose, part_without_experts
from planner.cost.load import load_ratio
from planner.cost.part import Conditions, Part, add, share
from planner.cost.rules import AnyLayer
from planner.cost.state import State, add_states, state_of_experts, state_without_experts
from planner.search.pareto import undominated
from planner.spec.model import Block, Model
from planner.spec.strategy import AxisKind, Strategy
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
    """[strategies, rhythms]: passes over one micro-batch; one column, or forward and backward apart for GPipe."""
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
    """[layouts, layouts, rhythms]: from the layout before to the one after."""


class Pricing:
    """Prices layers of one model for tables; parts that strategies share are priced once."""

    def __init__(self, model: Model, conditions: Conditions, workload: Workload, split_passes: bool) -> None:
        self.model = model
        self.conditions = conditions
        self.workload = workload
        self.split_passes = split_passes
        self._parts: dict[object, Part] = {}
        self._states: dict[object, State] = {}
        self._layouts: dict[object, Layout] = {}
        self._messages: dict[object, list[Entry]] = {}
        self._routed: dict[object, Part] = {}
        self._ratios: dict[tuple[int, int, int], float] = {}

    def under(self, workload: Workload) -> Pricing:
        """Prices under another workload; what does not depend on it is not priced again."""
        other = Pricing(self.model, self.conditions, workload, self.split_passes)
        other._parts, other._states = self._parts, self._states
        other._layouts, other._messages = self._layouts, self._messages
        return other

    @cached_property
    def layer_classes(self) -> tuple[list[LayerClass], list[int]]:
        """Classes of the model's layers, and the class of each layer."""
        return classes(self.model, self.workload)

    def table(self, strategies: Sequence[Sequence[Strategy]], samples: int, own_copy: bool, tied_hop: int) -> Table:
        """Numbers for the strategies of each class, for micro-batches of `samples`.

        `own_copy`: a tied head sits on another stage than the embedding, which begins `tied_hop` devices before.
        """
        layouts: dict[object, int] = {}
        representatives: list[Strategy] = []
        all_choices = []
        for number, candidates in enumerate(strategies):
            rows = []
            for strategy in candidates:
                cut = self._layout(strategy)
                if cut not in layouts:
                    layouts[cut] = len(layouts)
                    representatives.append(strategy)
                rows.append((strategy, self.cost(number, strategy, samples, own_copy), layouts[cut]))
            all_choices.append(self._choices(number, rows, samples, tied_hop if own_copy else 0))
        return Table(tuple(all_choices), self._transitions(representatives, samples))

    def _layout(self, strategy: Strategy) -> Layout:
        key = (strategy.axes, strategy.sequence_parallel)
        if key not in self._layouts:
            self._layouts[key] = layout(strategy)
        return self._layouts[key]

    def cost(self, class_number: int, strategy: Strategy, samples: int, own_copy: bool) -> LayerCost:
        """The cost of a layer of this class; equals planner.cost.layer.layer_cost."""
        layer, moe_layer = self.layer_classes[0][class_number]
        sequence_length = self.conditions.training.sequence_length
        part_of = share(strategy, samples, sequence_length)
        key = (id(layer), strategy.axes, strategy.sequence_parallel, part_of.samples)
        whole = self._parts.get(key)
        if whole is None:
            whole = self._parts[key] = part_without_experts(self.conditions, layer, strategy, part_of)
        state_key = (id(layer), strategy.axes, strategy.sharding, own_copy)
        held = self._states.get(state_key)
        if held is None:
            held = self._states[state_key] = state_without_experts(self.conditions, layer, strategy, own_copy)
        if strategy.experts is not None:
            assert isinstance(layer, Block)
            whole, held = self._with_experts(class_number, layer, moe_layer, strategy, samples, whole, held)
        return compose(self.conditions, strategy.recompute, part_of, whole, held)

    def _with_experts(
        self, number: int, layer: Block, moe_layer: int, strategy: Strategy, samples: int, whole: Part, held: State
    ) -> tuple[Part, State]:
        assert strategy.experts is not None
        assert layer.moe is not None
        part_of = share(strategy, samples, self.conditions.training.sequence_length)
        spread = (strategy.experts.expert_parallel_size, strategy.experts.expert_tensor_parallel_size)
        # Shared experts follow the tensor-parallel group, routed ones see the device's own tokens only.
        tensor = (strategy.tp, strategy.stride(AxisKind.TP))
        key = (number, spread, part_of.edge_tokens, part_of.tokens, tensor)
        routed = self._routed.get(key)
        if routed is None:
            ratio = self._load_ratio(number, layer, moe_layer, spread[0])
            routed = moe_feed_forward(self.conditions, layer.moe, strategy, part_of, ratio)
            self._routed[key] = routed
        state_key = (id(layer), strategy.experts, strategy.sharding)
        experts = self._states.get(state_key)
        if experts is None:
            experts = self._states[state_key] = state_of_experts(self.conditions, layer, strategy)
        return add((whole, routed)), add_states(held, experts)

    def _load_ratio(self, number: int, layer: Block, moe_layer: int, ranks: int) -> float:
        key = (number, moe_layer, ranks)
        if key not in self._ratios:
            assert layer.moe is not None
            capacity = self.conditions.training.capacity_factor
            self._ratios[key] = load_ratio(layer.moe, moe_layer, ranks, self.workload, capacity_factor=capacity)
        return self._ratios[key]

    def _choices(
        self, number: int, rows: list[tuple[Strategy, LayerCost, int]], samples: int, tied_hop: int
    ) -> Choices:
        layer = self.layer_classes[0][number].layer
        costs = [cost for _, cost, _ in rows]
        passes = np.array([(cost.forward_s, cost.backward_s) for cost in costs]).reshape(len(rows), 2)
        tied = [
            tied_gradient_s(self.conditions, layer, strategy, (0, tied_hop)) if tied_hop else 0.0
            for strategy, _, _ in rows
        ]
        entries = [self._entries(strategy, samples) for strategy, _, _ in rows]
        return Choices(
            strategies=tuple(strategy for strategy, _, _ in rows),
            beats_s=passes if self.split_passes else passes.sum(axis=1, keepdims=True),
            once_s=np.array([cost.once_s for cost in costs]) + np.array(tied),
            fixed_bytes=np.array([cost.fixed_bytes for cost in costs], dtype=np.int64),
            flight_bytes=np.array([cost.activation_bytes + cost.logits_bytes for cost in costs], dtype=np.int64),
            workspace_bytes=np.array([cost.workspace_bytes for cost in costs], dtype=np.int64),
            layout=np.array([cut for _, _, cut in rows], dtype=np.int64),
            entry_s=np.array([[pass_s for pass_s, _ in found] for found in entries]).reshape(len(rows), -1),
            entry_bytes=np.array([found[0][1] for found in entries], dtype=np.int64),
        )

    def _entries(self, strategy: Strategy, samples: int) -> list[Entry]:
        """One message over each tier of links."""
        sequence_length = self.conditions.training.sequence_length
        edge = share(strategy, samples, sequence_length).edge_tokens
        key = (edge, strategy.sequence_parallel, strategy.tp, strategy.stride(AxisKind.TP))
        if key not in self._messages:
            # The nearest device that only this tier reaches.
            peers = [0, *(level.num_devices for level in self.conditions.levels)]
            hops = [(0, max(1, below) if level > 1 else 0) for below, level in pairwise(peers)]
            found = [entry(self.conditions, strategy, samples, sequence_length, hop) for hop in hops]
            self._messages[key] = found
        return self._messages[key]

    def _transitions(self, representatives: list[Strategy], samples: int) -> Floats:
        sequence_length = self.conditions.training.sequence_length
        rhythms = 2 if self.split_passes else 1
        table = np.zeros((len(representatives), len(representatives), rhythms))
        for i, before in enumerate(representatives):
            for j, after in enumerate(representatives):
                passes = transition_s(self.conditions, before, after, samples, sequence_length)
                table[i, j] = passes if self.split_passes else sum(passes)
        return table


def without_dominated(choices: Choices) -> Choices:
    """Only strategies that no other with the same layout and entry beats or equals in every number."""
    groups = np.column_stack([choices.layout, choices.entry_s, choices.entry_bytes])
    values = np.column_stack(
        [choices.beats_s, choices.once_s, choices.fixed_bytes, choices.flight_bytes, choices.workspace_bytes]
    )
    return choices.rows(undominated(values, groups))

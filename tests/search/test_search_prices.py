"""The arrays that the search prices with, against planner.cost one strategy at a time."""

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_questions import questions, workloads

from planner.cost.boundary import entry_into, tied_gradient_s, transition_s
from planner.cost.layer import LayerCost, layer_cost
from planner.cost.load import load_ratio
from planner.cost.part import at_entry, conditions
from planner.cost.pipeline import Beats, beat
from planner.search.pricing import Pricing
from planner.search.removed import Removed
from planner.search.space import Space
from planner.search.table import Boundaries, Priced, all_choices
from planner.spec.cluster import link_between
from planner.spec.request import ALL_AXES, Options
from planner.spec.strategy import Strategy

RULES_OFF = ("dp-and-sdp-apart", "tp-on-nearest-devices", "cp-inside-dp", "tp-within-node")
WHOLE = Options(axes=ALL_AXES, without_rules=(*RULES_OFF, "sequence-parallel-where-possible"))
SIZES = st.sampled_from([(1,), (2,), (3,), (4,), (6,), (2, 4), (3, 6), (2, 4, 8)])


class Case:
    """Pricing of one question, and the strategies of a stage of some of its devices."""

    def __init__(self, data) -> None:
        self.model, cluster, self.training = data.draw(questions(st.integers(1, 3), SIZES, st.just(1000), st.just(24)))
        self.workload = data.draw(workloads(self.model))
        stages = data.draw(st.sampled_from([n for n in (1, 2, 3, 4) if cluster.num_devices % n == 0]))
        self.devices, self.samples = cluster.num_devices // stages, 24
        self.apart = stages > 1
        self.conditions = conditions(self.model.hidden_size, cluster, self.training)
        self.pricing = Pricing(self.model, self.conditions, self.workload)
        space = Space(cluster, self.training, WHOLE, Removed())
        self.classes = self.pricing.layer_classes[0]
        grids = [space.grid(each.layer, self.devices) for each in self.classes]
        even = [np.flatnonzero(self.samples % grid.ranks[grid.shape] == 0) for grid in grids]
        self.grids = tuple(grid.rows(rows) for grid, rows in zip(grids, even, strict=True))
        assume(all(map(len, self.grids)))

    def costs(self, number: int) -> LayerCost:
        return self.pricing.costs(number, self.grids[number], self.samples, self.apart)

    def layer_cost(self, number: int, strategy: Strategy) -> LayerCost:
        layer, moe_layer = self.classes[number]
        ratio = 1.0
        if strategy.experts is not None:
            ranks, capacity = strategy.experts.expert_parallel_size, self.training.capacity_factor
            ratio = load_ratio(layer.moe, moe_layer, ranks, self.workload, capacity_factor=capacity)
        length = self.training.sequence_length
        return layer_cost(self.conditions, layer, strategy, self.samples, length, ratio, own_copy=self.apart)


def some_rows(data, size: int, most: int = 12) -> list[int]:
    return data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=most, unique=True))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_row_of_the_arrays_is_the_price_of_its_layer_under_its_strategy(data):
    case = Case(data)
    for number, grid in enumerate(case.grids):
        found = case.costs(number)
        for row in some_rows(data, len(grid)):
            expected = case.layer_cost(number, grid[row])
            for field, column in zip(LayerCost._fields, found, strict=True):
                wanted, got = getattr(expected, field), np.array(column)[..., row]
                assert got == pytest.approx(np.array(wanted), rel=1e-12, abs=1e-15), (field, grid[row])
                if field.endswith("_bytes"):
                    assert got == wanted, (field, grid[row])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(list(Beats)))
def test_every_number_of_a_table_is_what_the_cost_model_says_of_its_strategy(data, beats):
    case = Case(data)
    boundaries = Boundaries(case.pricing, case.grids[0].shapes, case.samples)
    priced = Priced(case.grids, tuple(map(case.costs, range(len(case.classes)))))
    length, levels = case.training.sequence_length, case.conditions.levels
    link = link_between(levels, 0, case.devices) if case.apart else None
    every = all_choices(case.pricing, priced, boundaries, beats, link)
    transitions = boundaries.transitions(beats)
    for number, choices in enumerate(every):
        for row in some_rows(data, len(choices.once_s), 6):
            strategy, cost = choices.strategies[row], case.layer_cost(number, choices.strategies[row])
            tied = tied_gradient_s(case.conditions, case.classes[number].layer, strategy, link) if link else 0.0
            in_beats = beat(beats, cost.forward_s, cost.backward_s, cost.weight_gradient_s)
            assert choices.beats_s[row] == pytest.approx(np.array(in_beats), rel=1e-12, abs=1e-15)
            assert choices.once_s[row] == pytest.approx(cost.once_s + tied, rel=1e-12)
            assert choices.workspace_bytes[row] == cost.workspace_bytes
            held = cost.fixed_bytes + cost.activation_bytes + cost.logits_bytes
            assert choices.fixed_bytes[row] + choices.flight_bytes[row] == held
            for tier, level in enumerate(levels):
                layer = case.classes[number].layer
                wanted = entry_into(case.conditions, layer, strategy, case.samples, level.link)
                assert choices.entry_s[row, tier] == pytest.approx(wanted.pass_s, rel=1e-12)
                assert choices.entry_bytes[row] == wanted.buffer_bytes
                assert choices.carried_bytes[row] == wanted.carried_bytes
    picked = [(number, c, r) for number, c in enumerate(every) for r in some_rows(data, len(c.once_s), 4)]
    for (_, one, a), (number, other, b) in product(picked, picked):
        arriving, tokens = at_entry(case.conditions, case.classes[number].layer, length)
        passes = transition_s(arriving, one.strategies[a], other.strategies[b], case.samples, tokens)
        found = transitions[one.layout[a], other.layout[b]]
        assert found == pytest.approx(np.array(beat(beats, *passes, 0.0)), rel=1e-12)

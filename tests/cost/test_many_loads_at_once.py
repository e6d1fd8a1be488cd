"""StepPrices and estimates tell of many loads and placements what estimate tells of each."""

import numpy as np
import pytest
from cost_samples import even_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from price_instances import EXPERTS, Instance, instances

from planner.cost import Seats, StepPrices, estimate, estimates
from planner.cost.migration import expert_ranks
from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.workload import Workload


def question(instance, capacity_factor):
    """Model, cluster, recipe and plan of an instance."""
    training = instance.training.model_copy(update={"capacity_factor": capacity_factor})
    text = "-".join([*instance.words, f"recompute:{instance.recompute}"])
    model, where = instance.model, instance.cluster
    return model, where, training, even_plan(text, model, where, training)


@st.composite
def rows(draw, layers):
    weights = draw(
        st.lists(
            st.lists(st.integers(0, 20), min_size=EXPERTS, max_size=EXPERTS).filter(any),
            min_size=layers,
            max_size=layers,
        )
    )
    found = np.array(weights, dtype=float)
    return found / found.sum(axis=1, keepdims=True)


@st.composite
def placements(draw, layers, ranks):
    """Every expert somewhere, up to two slots more for each rank; perhaps split unevenly."""
    extra = ranks * draw(st.integers(0, 2))
    more = st.lists(st.integers(0, EXPERTS - 1), min_size=extra, max_size=extra)
    made = tuple(tuple(draw(st.permutations([*range(EXPERTS), *draw(more)]))) for _ in range(layers))
    if not draw(st.booleans()):
        return Placement(layers=made, num_ranks=ranks)
    parts = []
    for row in made:
        weights = np.array([draw(st.integers(1, 5)) for _ in row], dtype=float)
        sums = np.bincount(row, weights)
        parts.append(tuple((weights / sums[list(row)]).tolist()))
    return Placement(layers=made, num_ranks=ranks, split=tuple(parts))


@st.composite
def cases(draw):
    """A question and some pairs of workload and placement."""
    instance = draw(instances(moe=True))
    made = question(instance, draw(st.sampled_from([None, 0.75, 1.25])))
    layers, ranks = len(made[0].moe_layers), expert_ranks(made[0], made[3])
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        shares = draw(rows(draw(st.sampled_from([1, layers]))))
        placement = draw(st.none() | placements(layers, ranks))
        pairs.append((shares, placement))
    return made, pairs


def workload(shares):
    return Workload(name="drawn", expert_shares=tuple(map(tuple, shares.tolist())))


def seats(placement):
    if placement is None:
        return None
    split = None if placement.split is None else np.array(placement.split)
    return Seats(np.array(placement.layers), placement.num_ranks, split, placement.shadow_slots_per_rank)


@given(cases())
@settings(max_examples=120)
def test_steps_under_many_loads_and_placements_are_those_of_each_alone(case):
    made, pairs = case
    each = [estimate(*made, workload(shares), placement) for shares, placement in pairs]
    for given_pairs in (pairs, [(shares, seats(placement)) for shares, placement in pairs]):
        steps = StepPrices(*made).under(given_pairs)
        np.testing.assert_allclose(steps.seconds, [price.step_time_s for price in each], rtol=1e-9)
        assert steps.fits.tolist() == [price.fits for price in each]


@given(cases())
@settings(max_examples=60)
def test_estimates_of_many_pairs_are_those_of_each_alone(case):
    made, pairs = case
    asked = [(workload(shares), placement) for shares, placement in pairs]
    for one, other in zip(estimates(*made, asked), [estimate(*made, *pair) for pair in asked], strict=True):
        assert one.time == pytest.approx(other.time, rel=1e-9)
        assert [stage.memory for stage in one.stages] == [stage.memory for stage in other.stages]
        assert (one.fits, one.assumptions) == (other.fits, other.assumptions)


@given(cases())
@settings(max_examples=60)
def test_one_row_for_all_layers_costs_what_it_costs_written_for_each(case):
    made, pairs = case
    row, layers = pairs[0][0][:1], len(made[0].moe_layers)
    one, each = (estimate(*made, workload(np.tile(row, (times, 1)))) for times in (1, layers))
    assert one.time == pytest.approx(each.time, rel=1e-9)
    assert [stage.memory for stage in one.stages] == [stage.memory for stage in each.stages]


def asked():
    """Four MoE layers in two stages on eight devices, under even load."""
    made = question(
        Instance(True, 4, 256, 1, 2, 256, 16, ("pp2", "dp4", "ep4", "mbs1")),
        None,
    )
    return made, np.full((4, EXPERTS), 1.0 / EXPERTS)


def test_shares_and_placements_that_do_not_match_are_refused():
    made, even = asked()
    prices = StepPrices(*made)
    in_order = np.tile(np.arange(EXPERTS), (4, 1))
    wrong = [
        ("workload.expert_shares", even[:3], None),
        ("workload.expert_shares", even[:, :4], None),
        ("placement.layers", even, Seats(in_order[:3], 4)),
        ("placement.num_ranks", even, Seats(in_order, 2)),
        ("placement.layers[0]", even, Seats(in_order[:, :4], 4)),
    ]
    for field, shares, placement in wrong:
        with pytest.raises(InputError) as refused:
            prices.under([(shares, placement)])
        assert refused.value.problems[0].field == field


def test_a_plan_is_prepared_once_and_asked_again():
    made, even = asked()
    prices = StepPrices(*made)
    skewed = np.array([[0.5, *[0.5 / 7] * 7]] * 4)
    first, second = prices.under([(even, None)]), prices.under([(skewed, None), (even, None)])
    assert second.seconds[1] == pytest.approx(first.seconds[0], rel=1e-12)
    assert second.seconds[0] > second.seconds[1]


def test_no_conditions_have_no_prices():
    made, _ = asked()
    assert estimates(*made, ()) == []
    assert StepPrices(*made).under(()).seconds.tolist() == []

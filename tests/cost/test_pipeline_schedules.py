"""The time of a step and the micro-batches in flight, against a pipeline that is run event by event."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import (
    FLAT,
    GPIPE,
    ONE_F_ONE_B,
    PLACES,
    ZERO_BUBBLE,
    after_s,
    any_pace,
    at_least_s,
    counts,
    held,
    interleaved,
    near_equal,
    one_recipe,
    run,
    slack_after_s,
    slowest,
    whole_paces,
    whole_stage_s,
)

from planner.cost.pipeline import Pace, in_flight, step_s
from planner.cost.timeline import Messages, even_pieces, timeline

ROUNDING = 1e-9
places = pytest.mark.parametrize("place", PLACES)


# Equal stages, and GPipe: equality.


@pytest.mark.parametrize("schedule", FLAT)
@given(pace=any_pace, stages=st.integers(1, 6), count=counts)
@settings(max_examples=100, deadline=None)
def test_equal_stages_take_exactly_what_the_formula_says(schedule, pace, stages, count):
    predicted = step_s(schedule, [pace] * stages, count)
    assert predicted == run(schedule, [pace] * stages, count).last_end_s
    hidden = (min(stages, count) - 1) * pace.weight_gradient_s if schedule == ZERO_BUBBLE else 0
    assert predicted == (count + stages - 1) * whole_stage_s(pace) - hidden - (
        (stages - 1) * pace.weight_gradient_s if schedule == ZERO_BUBBLE else 0
    )


@given(paces=whole_paces, count=counts)
@settings(max_examples=200, deadline=None)
def test_gpipe_is_exact_with_any_stages(paces, count):
    assert step_s(GPIPE, paces, count) == run(GPIPE, paces, count).last_end_s


@pytest.mark.parametrize("virtual", [2, 3, 4])
@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_interleaving_shortens_the_bubble_by_the_number_of_virtual_stages(virtual, stages, rounds):
    count = stages * rounds
    pace = Pace(1.0 * virtual, 2.0 * virtual, 0.0)
    predicted = step_s(interleaved(virtual), [pace] * stages, count)
    assert predicted == pytest.approx((count + (stages - 1) / virtual) * whole_stage_s(pace), rel=1e-12)
    assert predicted == pytest.approx(run(interleaved(virtual), [pace] * stages, count).last_end_s, rel=1e-12)


@pytest.mark.parametrize("count", [8, 64])
def test_zero_bubble_leaves_a_third_of_the_bubble_where_its_three_passes_take_equally_long(count):
    """Qi et al. 2023 (arXiv 2401.10241), section 2.1."""
    paces = [Pace(1.0, 2.0, 0.0, 1.0)] * 8
    bubbles = [step_s(schedule, paces, count) - count * 3.0 for schedule in (ONE_F_ONE_B, ZERO_BUBBLE)]
    assert bubbles[0] == 3 * bubbles[1] == 7 * 3.0


# Unequal stages, the slowest in any place: bounds.


@places
@given(data=st.data(), count=counts)
@settings(max_examples=100, deadline=None)
def test_1f1b_never_takes_longer_where_backward_is_the_same_multiple_of_forward(place, data, count):
    paces = data.draw(one_recipe(place))
    predicted, simulated = step_s(ONE_F_ONE_B, paces, count), run(ONE_F_ONE_B, paces, count).last_end_s
    assert simulated <= predicted <= simulated + min(after_s(paces), slack_after_s(paces))
    assert predicted == simulated or slowest(paces) < len(paces) - 1


@given(
    stages=st.lists(st.tuples(st.integers(1, 9), st.integers(20, 30)), min_size=1, max_size=6),
    count=counts,
)
@settings(max_examples=300, deadline=None, derandomize=True)  # found, not proved: so the same examples every time
def test_1f1b_never_takes_longer_where_stages_recompute_unequally(stages, count):
    paces = [Pace(10 * forward, tenths * forward, 0.0) for forward, tenths in stages]
    predicted, simulated = step_s(ONE_F_ONE_B, paces, count), run(ONE_F_ONE_B, paces, count).last_end_s
    assert simulated <= predicted <= simulated + slack_after_s(paces)


@given(paces=whole_paces, count=counts)
@settings(max_examples=300, deadline=None)
def test_1f1b_is_shorter_by_at_most_the_stages_after_the_slowest(paces, count):
    assert step_s(ONE_F_ONE_B, paces, count) - run(ONE_F_ONE_B, paces, count).last_end_s <= after_s(paces)


def test_1f1b_can_take_some_percent_longer_where_backward_is_unlike_forward_on_each_stage():
    """The docstring's reservation is needed: found by search over small pipelines."""
    paces = [Pace(7, 1, 0.0), Pace(2, 7, 0.0), Pace(6, 2, 0.0), Pace(1, 2, 0.0)]
    assert (step_s(ONE_F_ONE_B, paces, 2), run(ONE_F_ONE_B, paces, 2).last_end_s) == (37, 39)


@places
@given(data=st.data(), virtual=st.sampled_from([2, 4]), rounds=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_interleaved_never_takes_longer_nor_is_shorter_by_more_than_a_piece_of_the_stages_after_the_slowest(
    place, data, virtual, rounds
):
    paces = data.draw(one_recipe(place))
    schedule, count = interleaved(virtual), rounds * len(paces)
    predicted, simulated = step_s(schedule, paces, count), run(schedule, paces, count).last_end_s
    assert simulated - ROUNDING <= predicted <= simulated + after_s(paces) / virtual + ROUNDING


@given(paces=whole_paces.filter(lambda each: len(each) > 1), virtual=st.sampled_from([2, 4]), rounds=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_interleaved_is_shorter_by_at_most_a_piece_of_the_stages_after_the_slowest_whatever_their_passes(
    paces, virtual, rounds
):
    schedule, count = interleaved(virtual), rounds * len(paces)
    shorter = step_s(schedule, paces, count) - run(schedule, paces, count).last_end_s
    assert shorter <= after_s(paces) / virtual + ROUNDING


@pytest.mark.parametrize("schedule", [ONE_F_ONE_B, ZERO_BUBBLE])
@given(paces=whole_paces, count=counts)
@settings(max_examples=100, deadline=None)
def test_no_step_is_shorter_than_a_stage_that_waits_for_the_first_micro_batch_and_then_works(schedule, paces, count):
    assert at_least_s(paces, count) <= run(schedule, paces, count).last_end_s
    assert at_least_s(paces, count) <= step_s(ONE_F_ONE_B, paces, count)


# How close, for stages within a tenth of each other, as searches make them. Found, not proved: so always the same ones.

CLOSE = {
    (ONE_F_ONE_B, False): (0.0, 0.04),
    (ONE_F_ONE_B, True): (0.0, 0.04),
    (interleaved(2), False): (0.0, 0.06),
    (interleaved(2), True): (0.06, 0.06),
    (ZERO_BUBBLE, False): (0.005, 0.04),
    (ZERO_BUBBLE, True): (0.05, 0.25),
}
"""By schedule, and whether some stages recompute everything: how much too short and too long a prediction may be."""


@places
@pytest.mark.parametrize(("schedule", "unlike"), CLOSE)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_near_equal_stages_take_about_what_the_formula_says(schedule, unlike, place, data):
    paces = data.draw(near_equal(place, unlike))
    count = data.draw(counts) if schedule.virtual_stages == 1 else len(paces) * data.draw(st.integers(1, 4))
    error = step_s(schedule, paces, count) / run(schedule, paces, count).last_end_s - 1
    too_short, too_long = CLOSE[schedule, unlike]
    assert -too_short - ROUNDING <= error <= too_long


@pytest.mark.parametrize("schedule", [*FLAT, interleaved(2), interleaved(4)])
@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize(("stages", "count"), [(2, 4), (4, 4), (4, 8), (8, 64)])
def test_messages_that_stages_wait_for_are_counted_in_full_and_a_few_percent_twice(schedule, share, stages, count):
    """Equal stages: all but the first wait for the stage before, so that stages are unequal in effect."""
    pace, virtual = Pace(1.0, 2.0, 0.0, 0.9), schedule.virtual_stages
    sent = Messages((share / virtual if virtual > 1 else 0.0, *[share / virtual] * (stages - 1)), hidden=False)
    simulated = timeline(schedule, even_pieces([pace] * stages, virtual), count, sent).last_end_s
    waits = [share * (virtual - 1) / virtual, *[share] * (stages - 1)]
    told = [pace._replace(forward_s=1.0 + wait, backward_s=2.0 + wait) for wait in waits]
    predicted = step_s(schedule, told, count)
    assert simulated - ROUNDING <= predicted <= simulated * (1 + 0.3 * share)


def test_hidden_messages_delay_1f1b_as_much_as_exposed_ones():
    """Each stage keeps no more micro-batches than it needs without delays, so a message's time is waited for after all.

    Interleaved and zero-bubble pipelines, which keep more, do hide them.
    """
    sent = Messages((0.0, *[0.1] * 7), hidden=True)

    def shares(schedule, virtual):
        hops = sent if virtual == 1 else sent._replace(seconds=(0.1 / virtual,) * 8)
        pieces = even_pieces([Pace(1.0, 2.0, 0.0, 0.9)] * 8, virtual)
        none, hidden, exposed = (
            timeline(schedule, pieces, 64, how).last_end_s for how in (None, hops, hops._replace(hidden=False))
        )
        return (hidden - none) / (exposed - none)

    assert shares(ONE_F_ONE_B, 1) > 0.85
    assert shares(ZERO_BUBBLE, 1) < 0.25
    assert shares(interleaved(4), 4) < 0.25


# Micro-batches in flight.


@pytest.mark.parametrize(
    ("schedule", "stages", "count"),
    [
        (schedule, stages, count)
        for schedule in (*FLAT, interleaved(2), interleaved(3))
        for stages in (1, 2, 3, 4, 6)
        for count in (1, 2, 3, 4, 6, 8, 12, 24)
        if schedule.virtual_stages == 1 or (stages > 1 and count % stages == 0)
    ],
)
def test_micro_batches_in_flight_are_those_of_the_schedule_itself(schedule, stages, count):
    found = run(schedule, [Pace(1.0, 2.0, 0.0, 1.0)] * stages, count)
    assert held(found, stages) == [in_flight(schedule, stages, count, stage) for stage in range(stages)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_micro_batches_than_stages_are_all_in_flight_on_the_first(count):
    assert in_flight(ONE_F_ONE_B, 4, count, 0) == min(count, 4)
    assert in_flight(GPIPE, 4, count, 0) == count


def test_zero_bubble_holds_no_more_on_its_fullest_stage_than_1f1b():
    """Qi et al. 2023 (arXiv 2401.10241), section 2.1: ZB-H1."""
    most = [max(in_flight(schedule, 8, 32, stage) for stage in range(8)) for schedule in (ONE_F_ONE_B, ZERO_BUBBLE)]
    assert most == [8, 8]


def test_the_first_stage_of_an_interleaved_pipeline_holds_what_the_paper_says():
    """Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.3: L (1 + (p-1) / (p v)) layers."""
    stages, virtual = 8, 3
    assert in_flight(interleaved(virtual), stages, 64, 0) == pytest.approx(
        stages * (1 + (stages - 1) / (stages * virtual))
    )


# What always holds.


def test_work_once_per_step_counts_where_it_takes_longest():
    paces = [Pace(1.0, 2.0, 0.5), Pace(1.0, 2.0, 4.0), Pace(1.0, 2.0, 1.0)]
    without = [pace._replace(once_s=0.0) for pace in paces]
    assert step_s(ONE_F_ONE_B, paces, 4) == step_s(ONE_F_ONE_B, without, 4) + 4.0


@pytest.mark.parametrize("schedule", FLAT)
@given(paces=whole_paces, count=counts, stage=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_slower_stage_or_one_more_micro_batch_never_makes_a_step_shorter(schedule, paces, count, stage):
    before = step_s(schedule, paces, count)
    chosen = stage % len(paces)
    slower = [*paces]
    slower[chosen] = paces[chosen]._replace(forward_s=paces[chosen].forward_s + 1)
    assert step_s(schedule, slower, count) > before
    assert step_s(schedule, paces, count + 1) > before


@given(paces=whole_paces, count=counts)
@settings(max_examples=100, deadline=None)
def test_putting_weight_gradients_off_never_makes_a_step_longer(paces, count):
    assert step_s(ZERO_BUBBLE, paces, count) <= step_s(ONE_F_ONE_B, paces, count)

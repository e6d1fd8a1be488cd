"""What a timeline promises, checked on its passes one by one."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import FLAT, GPIPE, ONE_F_ONE_B, ZERO_BUBBLE, counts, interleaved, run

from planner.cost.pipeline import Pace, step_s
from planner.cost.timeline import Messages, Pass, PassKind, timeline

SCHEDULES = (*FLAT, interleaved(2), interleaved(3))
_LETTER = {
    PassKind.FORWARD: "F",
    PassKind.BACKWARD: "B",
    PassKind.INPUT_GRADIENT: "B",
    PassKind.WEIGHT_GRADIENT: "W",
}

a_pace = st.builds(
    lambda forward, backward, put_off: Pace(forward, backward, 0.0, min(put_off, backward)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 9),
)


@st.composite
def pipelines(draw, schedule):
    """Pieces of stages, all unequal, and a number of micro-batches that the schedule can run."""
    number = draw(st.integers(2, 5))
    each = st.lists(a_pace, min_size=schedule.virtual_stages, max_size=schedule.virtual_stages)
    pieces = draw(st.lists(each, min_size=number, max_size=number))
    count = draw(counts) if schedule.virtual_stages == 1 else number * draw(st.integers(1, 3))
    return pieces, count


def messages(draw, number, hidden):
    return Messages(tuple(draw(st.lists(st.integers(0, 5), min_size=number, max_size=number))), hidden)


def by_name(passes):
    """(forward or backward, micro-batch, place in the model) of each pass but those of weight gradients."""
    kinds = {PassKind.FORWARD: False, PassKind.BACKWARD: True, PassKind.INPUT_GRADIENT: True}
    return {(kinds[one.kind], one.micro_batch, one.stage, one.piece): one for one in passes if one.kind in kinds}


def source(one: Pass, stages: int, virtual: int):
    """The pass whose result this one takes; None for none."""
    backward = one.kind is not PassKind.FORWARD
    place = one.piece * stages + one.stage
    before = place + 1 if backward else place - 1
    if backward and before == stages * virtual:
        return (False, one.micro_batch, one.stage, one.piece)
    return (backward, one.micro_batch, before % stages, before // stages) if before >= 0 else None


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_piece_passes_over_every_micro_batch_once_and_a_stage_does_one_thing_at_a_time(schedule, data):
    pieces, count = data.draw(pipelines(schedule))
    passes = list(timeline(schedule, pieces, count).passes())
    kinds = {one.kind for one in passes}
    assert len(kinds) == (3 if schedule == ZERO_BUBBLE else 2)
    expected = {
        (kind, stage, piece, number)
        for kind in kinds
        for stage in range(len(pieces))
        for piece in range(schedule.virtual_stages)
        for number in range(count)
    }
    assert Counter((one.kind, one.stage, one.piece, one.micro_batch) for one in passes) == Counter(expected)
    for one, following in pairwise(passes):
        assert one.stage < following.stage or one.end_s <= following.start_s


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_pass_takes_its_time_and_begins_when_its_stage_is_free_and_its_input_there(schedule, data):
    pieces, count = data.draw(pipelines(schedule))
    passes = list(timeline(schedule, pieces, count).passes())
    named = by_name(passes)
    free_s = 0.0
    for before, one in pairwise([None, *passes]):
        free_s = before.end_s if before and before.stage == one.stage else 0.0
        needed = None if one.kind is PassKind.WEIGHT_GRADIENT else source(one, len(pieces), schedule.virtual_stages)
        assert one.start_s == max(free_s, named[needed].end_s if needed else 0.0)
        pace = pieces[one.stage][one.piece]
        split = pace.weight_gradient_s if schedule == ZERO_BUBBLE else 0
        lasts = {PassKind.FORWARD: pace.forward_s, PassKind.WEIGHT_GRADIENT: split}
        assert one.end_s - one.start_s == lasts.get(one.kind, pace.backward_s - split)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_receiver_stands_still_unless_messages_are_hidden(schedule, data):
    """Exposed messages are time of the receiver before its pass: what the closed forms are told."""
    pieces, count = data.draw(pipelines(schedule))
    sent = messages(data.draw, len(pieces), hidden=False)
    stages, virtual = len(pieces), schedule.virtual_stages
    longer = [
        [
            pace._replace(
                forward_s=pace.forward_s + (sent.seconds[stage] if stage or piece else 0),
                backward_s=pace.backward_s
                + (sent.seconds[(stage + 1) % stages] if (stage, piece) != (stages - 1, virtual - 1) else 0),
            )
            for piece, pace in enumerate(each)
        ]
        for stage, each in enumerate(pieces)
    ]
    assert timeline(schedule, pieces, count, sent).last_end_s == timeline(schedule, longer, count).last_end_s


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_hidden_messages_arrive_one_after_the_other_and_cost_no_more_than_exposed_ones(schedule, data):
    pieces, count = data.draw(pipelines(schedule))
    sent = messages(data.draw, len(pieces), hidden=True)
    found = timeline(schedule, pieces, count, sent)
    named = by_name(found.passes())
    for one in named.values():
        needed = source(one, len(pieces), schedule.virtual_stages)
        if needed is not None and needed[2] != one.stage:
            link = one.stage if one.kind is PassKind.FORWARD else needed[2]
            assert one.start_s >= named[needed].end_s + sent.seconds[link]
    nothing, exposed = timeline(schedule, pieces, count), timeline(schedule, pieces, count, sent._replace(hidden=False))
    assert nothing.last_end_s <= found.last_end_s <= exposed.last_end_s


@pytest.mark.parametrize(
    ("schedule", "stages", "first", "last"),
    [
        (GPIPE, 2, "F0 F1 F2 B0 B1 B2", "F0 F1 F2 B0 B1 B2"),
        (ONE_F_ONE_B, 2, "F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"),
        (ZERO_BUBBLE, 2, "F0 F1 B0 W0 F2 B1 W1 B2 W2", "F0 B0 F1 B1 W0 F2 B2 W1 W2"),
        (ZERO_BUBBLE, 3, "F0 F1 F2 B0 W0 B1 W1 B2 W2", "F0 B0 F1 B1 F2 B2 W0 W1 W2"),
    ],
)
def test_the_order_of_three_micro_batches_is_that_of_the_papers(schedule, stages, first, last):
    passes = list(run(schedule, [Pace(1, 2, 0, 1)] * stages, 3).passes())
    words = [" ".join(f"{_LETTER[p.kind]}{p.micro_batch}" for p in passes if p.stage == i) for i in (0, stages - 1)]
    assert words == [first, last]


def test_interleaved_micro_batches_go_in_groups_through_one_piece_after_the_other():
    passes = run(interleaved(2), [Pace(2, 4, 0)] * 2, 4).passes()
    words = " ".join(f"{_LETTER[p.kind]}{p.micro_batch}{'ab'[p.piece]}" for p in passes if p.stage == 0)
    assert words == "F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a B2b B3b B2a B3a"


def test_a_large_pipeline_takes_what_its_closed_form_says():
    paces = [Pace(8.0, 16.0, 0.0)] * 64
    assert run(interleaved(8), paces, 512).last_end_s == step_s(interleaved(8), paces, 512)

"""Random pipelines: stages with whole-number or real times, the slowest where it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from hypothesis import strategies as st

from planner.cost.pipeline import Pace
from planner.cost.timeline import Timeline, even_pieces, timeline
from planner.spec.plan import Schedule, ScheduleKind

ONE_F_ONE_B = Schedule(kind=ScheduleKind.ONE_F_ONE_B)
GPIPE = Schedule(kind=ScheduleKind.GPIPE)
ZERO_BUBBLE = Schedule(kind=ScheduleKind.ZERO_BUBBLE)
FLAT = (ONE_F_ONE_B, GPIPE, ZERO_BUBBLE)
PLACES: dict[str, Callable[[int], int]] = {
    "first": lambda stages: 0,
    "middle": lambda stages: stages // 2,
    "last": lambda stages: stages - 1,
}
"""Where the slowest stage stands, among so many."""

counts = st.integers(1, 12)


def interleaved(virtual: int) -> Schedule:
    return Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=virtual)


def run(schedule: Schedule, paces: list[Pace], count: int) -> Timeline:
    """Stages in even pieces, without messages."""
    return timeline(schedule, even_pieces(paces, schedule.virtual_stages), count)


def whole_stage_s(pace: Pace) -> float:
    return pace.forward_s + pace.backward_s


def slowest(paces: list[Pace]) -> int:
    """Of equals the last."""
    return max(range(len(paces)), key=lambda stage: (whole_stage_s(paces[stage]), stage))


def after_s(paces: list[Pace]) -> float:
    """The stages after the slowest."""
    return sum(map(whole_stage_s, paces[slowest(paces) + 1 :]))


def slack_after_s(paces: list[Pace]) -> float:
    """What the stages after the slowest are shorter than it."""
    longest = slowest(paces)
    return sum(whole_stage_s(paces[longest]) - whole_stage_s(pace) for pace in paces[longest + 1 :])


def at_least_s(paces: list[Pace], count: int) -> float:
    """No schedule is quicker: each stage waits for the first micro-batch, then works."""
    return max(
        sum(pace.forward_s for pace in paces[:stage]) + count * whole_stage_s(paces[stage])
        for stage in range(len(paces))
    )


any_pace = st.builds(
    lambda forward, backward, put_off: Pace(forward, backward, 0.0, min(put_off, forward, backward / 2)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 9),
)
whole_paces = st.lists(any_pace, min_size=1, max_size=6)


@st.composite
def one_recipe(draw: st.DrawFn, place: str, multiples: tuple[int, ...] = (2, 3, 4, 6)) -> list[Pace]:
    """Whole-number stages whose backward passes all take the same multiple of the forward, from 1 to 3, in halves.

    Half of the smaller of a forward pass and half a backward pass can be put off, or all of it.
    """
    number = draw(st.integers(2, 6))
    halves, share = draw(st.sampled_from(multiples)), draw(st.sampled_from([1, 2]))
    forwards = draw(st.lists(st.integers(1, 8), min_size=number, max_size=number))
    forwards[PLACES[place](number)] = 9
    return [
        Pace(8.0 * forward, 4.0 * halves * forward, 0.0, share * min(4.0, halves) * forward) for forward in forwards
    ]


@st.composite
def near_equal(draw: st.DrawFn, place: str, unlike: bool) -> list[Pace]:
    """Stages that differ by at most a tenth, the slowest at its place; unlike ones recompute all or nothing each."""
    number = draw(st.integers(2, 6))
    wholes = draw(st.lists(st.integers(100, 109), min_size=number, max_size=number))
    wholes[PLACES[place](number)] = 110
    quarters = draw(st.lists(st.booleans() if unlike else st.just(False), min_size=number, max_size=number))
    return [
        Pace(whole / 4, 3 * whole / 4, 0.0) if full else Pace(whole / 3, 2 * whole / 3, 0.0, 0.3 * whole)
        for whole, full in zip(wholes, quarters, strict=True)
    ]


def held(found: Timeline, stages: int) -> list[Fraction]:
    """Micro-batches in flight by stage."""
    return [found.in_flight(stage) for stage in range(stages)]

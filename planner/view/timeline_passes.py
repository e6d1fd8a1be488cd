"""Events of the passes of a stage: the pass, the parts that it is made of, and messages with the neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from planner.cost.passes import StagePasses, StepPasses
from planner.cost.timeline import PassKind
from planner.spec.plan import Plan, ScheduleKind
from planner.spec.timeline import Detail, Phase, TimelineEvent
from planner.view.parts import part_name
from planner.view.quantities import span
from planner.view.timeline_scope import Course, Scope

COMPUTE, COMMUNICATION, NEIGHBOUR = 1, 2, 3
TRACKS = {
    COMPUTE: "compute",
    COMMUNICATION: "communication",
    NEIGHBOUR: "messages of the next stage",
}
"""The third track: what the stage sends to and receives from the one after it, in the time of that one."""
WHOLE_STEP = -1
"""Stands where else the number of a stage does."""
_COMPUTED = ("recompute", "compute", "expert_imbalance", "host")
_SENT = (
    "data_parallel_communication",
    "tensor_parallel_communication",
    "context_parallel_communication",
    "expert_all_to_all",
    "layout_change",
)
_WHOLE = (PassKind.FORWARD, PassKind.BACKWARD)
_SPLIT = (PassKind.FORWARD, PassKind.INPUT_GRADIENT, PassKind.WEIGHT_GRADIENT)
_NS = 1e9


class _Slice(NamedTuple):
    """Inside a pass: what lasts from when to when, counted from the beginning of the pass."""

    name: str
    cat: str
    track: int
    begin_s: float
    end_s: float
    echo: str | None = None
    """Of messages, what it is to the stage before."""


class Slices:
    """The passes of a plan, priced; whatever is drawn of one piece's pass is made once."""

    def __init__(self, plan: Plan, passes: StepPasses) -> None:
        self._plan = plan
        self._kinds = _SPLIT if plan.schedule.kind is ScheduleKind.ZERO_BUBBLE else _WHOLE
        self._inside = {
            (stage, kind, piece): tuple(_slices(priced, self._kinds[kind], piece))
            for stage, priced in enumerate(passes.stages)
            for kind in range(len(self._kinds))
            for piece in range(len(priced.entries_s))
        }

    def events_of_a_micro_batch(self) -> list[tuple[int, int]]:
        """[stages]: how many, with and without the parts of passes."""
        counts = [[0, 0] for _ in self._plan.stages]
        for (stage, _, _), inside in self._inside.items():
            sent = sum(2 for each in inside if each.echo)
            counts[stage][0] += 1 + sent + sum(1 for each in inside if not each.echo)
            counts[stage][1] += 1 + sent
        return [(whole, bare) for whole, bare in counts]

    def of_stage(self, stage: int, course: Course, scope: Scope) -> Iterator[TimelineEvent]:
        """The passes in order; where micro-batches are left out, an event says how many."""
        before = (stage - 1) % len(self._plan.stages)
        columns = (course.kind, course.micro_batch, course.piece, course.start_s, course.end_s, course.gap)
        rows = list(zip(*(column[stage].tolist() for column in columns), strict=True))
        for number, (kind, micro_batch, piece, start_s, end_s, gap) in enumerate(rows):
            if number and gap > rows[number - 1][5]:
                name = f"{scope.left_out:,} micro-batches not drawn"
                yield lasting(name, (stage, COMPUTE), rows[number - 1][4], start_s, cat="gap")
            args: dict[str, Detail] = {"micro_batch": micro_batch, "virtual_stage": piece}
            name = f"{self._kinds[kind].value.replace('_', ' ')} {micro_batch}"
            about = {**args, "layers": self._layers(stage, piece)}
            yield lasting(name, (stage, COMPUTE), start_s, end_s, cat=self._kinds[kind].value, args=about)
            for each in self._inside[stage, kind, piece]:
                if not (each.echo or scope.with_parts):
                    continue
                times = start_s + each.begin_s, min(start_s + each.end_s, end_s)
                about = {**args, "stage": before} if each.echo else args
                yield lasting(each.name, (stage, each.track), *times, cat=each.cat, args=about)
                if each.echo and before in scope.stages:
                    about = {**args, "stage": stage}
                    yield lasting(each.echo, (before, NEIGHBOUR), *times, cat=each.cat, args=about)

    def _layers(self, stage: int, piece: int) -> str:
        runs = self._plan.stages[stage].pieces[piece]
        return span(runs[0].first_layer, runs[-1].end_layer - 1)


def numbers_of(stage: int, track: int) -> tuple[int, int]:
    """Process and thread: none is 0, no number of a thread stands twice, and none is that of a process.

    To some viewers 0 is the idle process, and a thread with its process' number the main one.
    """
    pid = stage + 2
    return pid, 10 * pid + track


def lasting(
    name: str,
    place: tuple[int, int],
    begin_s: float,
    end_s: float,
    cat: str,
    args: Mapping[str, Detail] | None = None,
) -> TimelineEvent:
    """An event of a stage, or of WHOLE_STEP, and one of its tracks.

    Times are cut to whole nanoseconds, so that what nests stays nested.
    """
    begin_ns, end_ns = round(begin_s * _NS), round(end_s * _NS)
    pid, tid = numbers_of(*place)
    return TimelineEvent(
        name=name,
        ph=Phase.COMPLETE,
        pid=pid,
        tid=tid,
        cat=cat,
        ts=begin_ns / 1e3,
        dur=(end_ns - begin_ns) / 1e3,
        args=dict(args) if args else None,
    )


def _slices(priced: StagePasses, kind: PassKind, piece: int) -> Iterator[_Slice]:
    """One after the other; a message comes first on the way forward, and last on the way back."""
    parts, entry_s = _parts(priced, kind), priced.entries_s[piece]
    at_s = 0.0
    if entry_s and kind is PassKind.FORWARD:
        yield _Slice("receive activations", "message", COMMUNICATION, 0.0, entry_s, "send activations")
        at_s = entry_s
    for name, part_s in parts.items():
        end_s = at_s + part_s / len(priced.entries_s)
        yield _Slice(part_name(name), "part", COMPUTE if name in _COMPUTED else COMMUNICATION, at_s, end_s)
        at_s = end_s
    if entry_s and kind in (PassKind.BACKWARD, PassKind.INPUT_GRADIENT):
        yield _Slice("send gradients", "message", COMMUNICATION, at_s, at_s + entry_s, "receive gradients")


def _parts(priced: StagePasses, kind: PassKind) -> Mapping[str, float]:
    """Of a pass over a micro-batch through all pieces of a stage, in the order in which they are drawn."""
    if kind is PassKind.WEIGHT_GRADIENT:
        return {"compute": priced.put_off_s}
    found = dict(priced.forward if kind is PassKind.FORWARD else priced.backward)
    if kind is PassKind.INPUT_GRADIENT:
        found["compute"] -= priced.put_off_s
    order = (*_COMPUTED, *_SENT)
    assert set(found) <= set(order), "a part of a pass has no track"
    return {name: found[name] for name in order if name in found}

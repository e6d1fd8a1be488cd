"""One step of a plan as a timeline that Perfetto opens: a process for each stage, tracks for compute and communication.

The passes are those of the event simulation, in the times of `estimate()`; each is made of its named parts one after
the other, as the estimate sums them over the layers of the stage. What a stage waits for stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.cost import estimate
from planner.cost.passes import StepPasses, step_passes
from planner.spec.estimate import Estimate
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.timeline import Detail, Phase, PlanTimeline, TimelineEvent
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload
from planner.view.captions import batch, schedule
from planner.view.parts import part_name
from planner.view.quantities import seconds, span
from planner.view.timeline_passes import COMPUTE, TRACKS, WHOLE_STEP, Slices, lasting, numbers_of
from planner.view.timeline_scope import MOST_EVENTS, Course, Scope, course_of, scope_of


def plan_timeline(
    model: Model, cluster: AnyCluster, training: Training, plan: Plan, workload: Workload = BALANCED
) -> PlanTimeline:
    """Events of one step; raises InputError where `estimate` does.

    At most about MOST_EVENTS of them: `otherData["not_drawn"]` and events of the whole step say what was left out.
    """
    price = estimate(model, cluster, training, plan, workload)
    passes = step_passes(model, cluster, training, plan, workload)
    slices = Slices(plan, passes)
    scope = scope_of(plan, slices.events_of_a_micro_batch())
    course = course_of(plan.schedule, [stage.pieces for stage in passes.stages], scope)
    notes = _not_drawn(plan, passes, scope)
    events = (
        *_names(plan, price, scope),
        *_whole_step(price, passes, course, notes),
        *(event for stage in scope.stages for event in slices.of_stage(stage, course, scope)),
        *(event for stage in scope.stages for event in _ending(passes, stage, course.last_end_s)),
    )
    return PlanTimeline(traceEvents=events, otherData=_about(model, plan, price, passes, course, notes))


def step_end_s(passes: StepPasses, course: Course) -> float:
    """When the step is over: after the last pass the longest work once per step, then what every step waits for."""
    return course.last_end_s + max(sum(stage.once.values()) for stage in passes.stages) + passes.host_s


def _about(
    model: Model, plan: Plan, price: Estimate, passes: StepPasses, course: Course, notes: Sequence[str]
) -> dict[str, Detail]:
    virtual = ["each virtual stage takes an equal part of its stage's time"] if plan.schedule.virtual_stages > 1 else []
    return {
        "title": f"{model.name}: {plan.summary}",
        "plan_id": plan.id,
        "workload": price.workload,
        "schedule": schedule(plan.schedule),
        "batch": batch(plan),
        "step_time_s": price.step_time_s,
        "simulated_step_time_s": step_end_s(passes, course),
        "not_drawn": list(notes),
        "how_to_read": [
            "parts of a pass stand one after the other, each summed over the layers of the stage",
            "communication is what compute does not hide",
            "a message is time of the stage that it enters; the stage before sends and receives meanwhile",
            "work once per step begins after the last pass of all stages",
            *virtual,
        ],
    }


def _not_drawn(plan: Plan, passes: StepPasses, scope: Scope) -> list[str]:
    notes = []
    if scope.left_out:
        first = scope.num_micro_batches // 2
        pace_s = max(stage.pace.forward_s + stage.pace.backward_s for stage in passes.stages)
        notes.append(
            f"{scope.left_out:,} of {plan.num_micro_batches:,} micro-batches, from about number {first:,} on: "
            f"each takes {seconds(pace_s)}, as the slowest stage does"
        )
    if not scope.with_parts:
        notes.append("the parts of passes")
    if len(scope.stages) < len(plan.stages):
        left = sorted(set(range(len(plan.stages))) - set(scope.stages))
        notes.append(f"stages {span(left[0], left[-1])}")
    return notes and [*notes, f"more than about {MOST_EVENTS:,} events are not drawn"]


def _whole_step(price: Estimate, passes: StepPasses, course: Course, notes: Sequence[str]) -> Iterator[TimelineEvent]:
    """What the estimate says of the step, above what the simulation makes of it."""
    parts: dict[str, Detail] = {f"{part_name(name)}, s": part_s for name, part_s in price.time.items()}
    yield lasting("estimated step", (WHOLE_STEP, 1), 0.0, price.step_time_s, cat="step", args=parts)
    end_s = step_end_s(passes, course)
    yield lasting("simulated step", (WHOLE_STEP, 2), 0.0, end_s, cat="step")
    yield lasting("passes", (WHOLE_STEP, 2), 0.0, course.last_end_s, cat="step")
    once_s = course.last_end_s, end_s - passes.host_s
    for name, begin_s, over_s in (("once per step", *once_s), ("host", once_s[1], end_s)):
        if over_s > begin_s:
            yield lasting(name, (WHOLE_STEP, 2), begin_s, over_s, cat="step")
    pid, tid = numbers_of(WHOLE_STEP, 1)
    for note in notes:
        yield TimelineEvent(name=f"not drawn: {note}", ph=Phase.INSTANT, pid=pid, tid=tid, ts=0.0, s="g")


def _ending(passes: StepPasses, stage: int, begin_s: float) -> Iterator[TimelineEvent]:
    """Reductions and the optimizer, side by side on all stages; then the host, after the longest of them."""
    begun_s, longest_s = begin_s, max(sum(each.once.values()) for each in passes.stages)
    for name, part_s in passes.stages[stage].once.items():
        track = COMPUTE if name == "optimizer" else COMPUTE + 1
        yield lasting(part_name(name), (stage, track), begin_s, begin_s + part_s, cat="once")
        begin_s += part_s
    if passes.host_s:
        host_s = begun_s + longest_s
        yield lasting("host", (stage, COMPUTE), host_s, host_s + passes.host_s, cat="once")


def _names(plan: Plan, price: Estimate, scope: Scope) -> Iterator[TimelineEvent]:
    yield from _name_process(WHOLE_STEP, "step", {1: "estimate", 2: "event simulation"})
    kinds = {stage.device for stage in price.stages}
    for number in scope.stages:
        stage = plan.stages[number]
        devices = span(stage.first_device, stage.first_device + stage.num_devices - 1)
        layers = ", ".join(span(runs[0].first_layer, runs[-1].end_layer - 1) for runs in stage.pieces)
        kind = f" ({price.stages[number].device})" if len(kinds) > 1 else ""
        name = f"stage {number}: devices {devices}{kind}, layers {layers}"
        yield from _name_process(number, name, TRACKS)


def _name_process(stage: int, name: str, tracks: dict[int, str]) -> Iterator[TimelineEvent]:
    names = [("process", name, 0), *(("thread", track, number) for number, track in tracks.items())]
    for kind, called, number in names:
        pid, tid = numbers_of(stage, number)
        for word, value in ((f"{kind}_name", {"name": called}), (f"{kind}_sort_index", {"sort_index": tid})):
            yield TimelineEvent(name=word, ph=Phase.METADATA, pid=pid, tid=tid, args=dict(value))

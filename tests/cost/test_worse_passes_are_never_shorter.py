"""compose() over made-up parts: no second more, of work or of traffic, makes a pass or a step shorter."""

from cost_samples import DEVICE, cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.layer import LayerCost, compose
from planner.cost.part import Part, conditions
from planner.cost.pipeline import Pace, step_s
from planner.cost.state import State
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.stack import Stack
from planner.spec.strategy import Recompute
from planner.spec.training import Training

TRAINING = Training(global_batch_size=8, sequence_length=256)
WORK = ("other", "core", "other_back", "core_back", "imbalance", "accumulate", "host", "stall")
TRAFFIC = ("tensor", "tensor_back", "exchange", "micro", "micro_back", "once", "once_back")
OVERLAPS = ("tensor_overlap_ratio", "expert_overlap_ratio", "data_overlap_ratio")
seconds = st.one_of(st.just(0.0), st.floats(0.001, 10.0))
shares = st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """Any three overlaps."""
    return Stack(**{name: draw(shares) for name in OVERLAPS})


times = st.fixed_dictionaries(dict.fromkeys((*WORK, *TRAFFIC), seconds))


def composed(stack: Stack, slowdown: float, recompute: Recompute, given_s: dict[str, float]) -> LayerCost:
    """One layer; the backward pass takes a second at least, so that it takes longer than none."""
    efficiency = DEVICE.efficiency.model_copy(update={"overlap_slowdown_ratio": slowdown})
    where = cluster(device=DEVICE.model_copy(update={"efficiency": efficiency}))
    price = conditions(64, where.model_copy(update={"stack": stack}), TRAINING)
    part = Part(
        forward_s=given_s["other"] + given_s["core"],
        backward_s=1.0 + 2.0 * given_s["other"] + given_s["other_back"] + given_s["core_back"],
        core_forward_s=given_s["core"],
        weightless_forward_s=given_s["core"],
        tensor_forward_s=given_s["tensor"],
        tensor_backward_s=given_s["tensor_back"],
        all_to_all_s=given_s["exchange"],
        imbalance_forward_s=given_s["imbalance"],
        imbalance_backward_s=given_s["imbalance"],
        host_s=given_s["host"],
        stall_s=given_s["stall"],
    )
    held = State(
        *(0.0,) * 5,
        micro_forward_s=given_s["micro"],
        micro_backward_s=given_s["micro_back"],
        once_forward_s=given_s["once"],
        once_backward_s=given_s["once_back"],
        accumulate_s=given_s["accumulate"],
        optimizer_s=0.0,
    )
    return compose(price, recompute, 0.0, part, held)


def check(before: LayerCost, after: LayerCost) -> None:
    """Both passes, and a step of one micro-batch or more of equal stages under every schedule."""
    assert float(after.forward_s) >= float(before.forward_s) - 1e-9
    assert float(after.backward_s) >= float(before.backward_s) - 1e-9
    for kind in ScheduleKind:
        virtual = 2 if kind is ScheduleKind.INTERLEAVED else 1
        schedule = Schedule(kind=kind, virtual_stages=virtual)
        for stages, micro_batches in ((1, 1), (1, 3), (2, 2), (2, 4)):
            steps = []
            for cost in (before, after):
                pace = Pace(*map(float, (cost.forward_s, cost.backward_s, cost.once_s, cost.weight_gradient_s)))
                steps.append(step_s(schedule, [pace] * stages, micro_batches))
            assert steps[1] >= steps[0] - 1e-8, (kind, stages, micro_batches)


slowdowns = st.sampled_from([1.0, 1.13, 2.0, 5.0])


@given(
    stacks(), slowdowns, st.sampled_from(Recompute), times, st.sampled_from((*WORK, *TRAFFIC)), st.floats(0.001, 10.0)
)
@settings(max_examples=300, deadline=None)
def test_more_work_and_more_traffic_never_shorten_a_pass_or_a_step(stack, slowdown, recompute, given_s, name, more):
    after = given_s | {name: given_s[name] + more}
    check(*(composed(stack, slowdown, recompute, each) for each in (given_s, after)))


@given(stacks(), slowdowns, st.sampled_from(Recompute), times, st.sampled_from(OVERLAPS), shares)
@settings(max_examples=200, deadline=None)
def test_hiding_less_never_shortens_a_pass_or_a_step(stack, slowdown, recompute, given_s, name, less):
    after = stack.model_copy(update={name: min(less, getattr(stack, name))})
    check(*(composed(each, slowdown, recompute, given_s) for each in (stack, after)))


@given(stacks(), slowdowns, slowdowns, st.sampled_from(Recompute), times)
@settings(max_examples=100, deadline=None)
def test_slowing_each_other_down_more_never_shortens_a_pass_or_a_step(stack, one, other, recompute, given_s):
    check(*(composed(stack, slowdown, recompute, given_s) for slowdown in sorted((one, other))))

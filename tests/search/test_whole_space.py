"""search() against estimate() of every plan of small spaces, whatever the schedule, the axes and the devices."""

import pytest
from every_plan import Plans, narrowed
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from random_questions import Question, questions
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost.targets import FRAMEWORKS, broken_target_rules
from planner.search import search
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.model import (
    Block,
    DenseFeedForward,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Model,
    PatchEmbedding,
)
from planner.spec.plan import ScheduleKind
from planner.spec.request import ALL_AXES, Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.strategy import AxisKind, Recompute, Sharding
from planner.spec.workload import BALANCED, Scenario

_RULES = (
    "dp-and-sdp-apart",
    "tp-on-nearest-devices",
    "cp-inside-dp",
    "tp-within-node",
    "sequence-parallel-where-possible",
    "1f1b-instead-of-gpipe",
)
ALONE = (Scenario(workload=BALANCED, probability=1.0),)
SIZES = st.sampled_from([(1,), (2,), (3,), (4,), (1, 2), (2, 4), (6,)])
MEMORY = st.integers(6, 60)


def check(question: Question, options: Options, expected: float | None) -> None:
    """The search finds a plan of this step time and proves it the best; if inf, it says that none fits, or none is."""
    if expected in (None, float("inf")):
        with pytest.raises(InputError if expected is None else NoPlanFitsError):
            search(*question, options)
        return
    found = search(*question, options)
    assert found.plans[0].estimate.fits
    assert found.plans[0].estimate.step_time_s == pytest.approx(expected, rel=1e-9)
    assert found.certificate.status is CertificateStatus.OPTIMAL
    assert found.certificate.lower_bound_s == pytest.approx(expected, rel=1e-9)


@st.composite
def spaces(draw, most: int, blocks, schedules=None) -> Plans:
    """Questions with at most so many plans."""
    question = draw(questions(blocks, SIZES, MEMORY, st.sampled_from([2, 4, 6])))
    axes = [axis for axis in draw(st.permutations(ALL_AXES)) if axis != "sp"]
    options = Options(
        axes=(*(("sp",) if draw(st.booleans()) else ()), *axes),
        sharding=tuple(draw(st.permutations(list(Sharding)))),
        recompute=tuple(draw(st.permutations(list(Recompute)))),
        schedules=schedules
        or tuple(draw(st.lists(st.sampled_from(ScheduleKind), min_size=1, max_size=2, unique=True))),
        without_rules=tuple(draw(st.sets(st.sampled_from(_RULES), max_size=2))),
        max_micro_batch_size=4,
        max_virtual_stages=2,
        scenarios=ALONE,
    )
    try:
        return narrowed(question, options, most)
    except InputError:
        # No family has any way to cut the batch.
        reject()


@settings(max_examples=40, deadline=None)
@given(spaces(600, st.integers(1, 4)))
def test_no_plan_of_the_space_is_faster_than_the_found_one(plans):
    check(plans.question, plans.options, plans.fastest_s(plans.every()))


@settings(max_examples=15, deadline=None)
@given(spaces(10**9, st.integers(1, 4)))
def test_no_uniform_plan_is_faster_than_the_one_that_is_found_among_uniform_plans(plans):
    check(plans.question, plans.options.model_copy(update={"uniform": True}), plans.fastest_s(plans.uniform()))


@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("target", FRAMEWORKS)
@given(spaces(10**9, st.sampled_from([2, 4]), schedules=(*ScheduleKind,)))
def test_no_plan_that_a_framework_can_run_is_faster_than_the_one_that_is_found_for_it(target, plans):
    # Where there is sequence parallelism the tree tries nothing else, and DeepSpeed has none.
    has = FRAMEWORKS[target].axes
    wide = plans.options.model_copy(update={"axes": tuple(a for a in plans.options.axes if a != "sp" or a in has)})
    plans = Plans(plans.question, wide)
    able = (plan for plan in plans.uniform() if not any(broken_target_rules(target, plans.model, plans.training, plan)))
    check(plans.question, wide.model_copy(update={"target": target}), plans.fastest_s(able))


def test_hybrid_sharding_is_searched_where_its_rule_is_off():
    options = Options(axes=("dp", "sdp", "cp"), without_rules=("dp-and-sdp-apart",), scenarios=ALONE)
    options = options.model_copy(update={"recompute": ("none",), "sharding": (Sharding.FULL, Sharding.GRADIENTS)})
    for batch, memory in ((8, 12), (4, 9)):
        question = Question(a_model(blocks=1), a_cluster(4, memory * MIB), a_training(batch))
        plans = Plans(question, options)
        assert any(run.strategy.degree(AxisKind.SDP) > 1 for plan in plans.uniform() for run in plan.stages[0].runs)
        check(question, plans.options, plans.fastest_s(plans.every()))


def test_where_layers_cannot_be_alike_a_misfit_is_still_a_misfit():
    # A head that sees one token of an image cannot have sequence parallelism, which the others must have.
    attention = GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=32, causal=False)
    block = Block(attention=attention, feed_forward=DenseFeedForward(width=512), tokens_per_sample=256)
    patches = PatchEmbedding(tokens_per_sample=256, patch_values=48)
    layers = patches, block, Head(vocab_size=1000, tokens_per_sample=256, pooled=True)
    model = Model(name="image", hidden_size=128, runs=tuple(LayerRun(layer=layer) for layer in layers))
    options = Options(axes=("tp", "sp"), scenarios=ALONE)
    question = Question(model, a_cluster(2, 2 * MIB), a_training(4))
    plans = Plans(question, options)
    assert plans.fastest_s(plans.uniform()) is None
    check(question, options, plans.fastest_s(plans.every()))
    check(question, options.model_copy(update={"uniform": True}), None)


def test_where_there_are_fewer_blocks_than_stages_a_misfit_is_still_a_misfit():
    options = Options(axes=("pp",), scenarios=ALONE)
    with pytest.raises(NoPlanFitsError) as caught:
        search(a_model(blocks=1), a_cluster(3, 2 * MIB), a_training(4), options)
    assert caught.value.nearest_miss.missing_bytes > 0

"""More memory, more bandwidth or a larger space never make the best plan slower."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from random_questions import STACKS, Question, questions
from small_questions import MIB

from planner.search import search
from planner.spec.cluster import Cluster
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.plan import ScheduleKind
from planner.spec.request import ALL_AXES, Options
from planner.spec.strategy import Recompute, Sharding
from planner.spec.workload import BALANCED, Scenario

BALANCED_ONLY = Options(scenarios=(Scenario(workload=BALANCED, probability=1.0),), max_micro_batch_size=4)
SIZES = st.sampled_from([(2,), (3,), (4,), (2, 4), (2, 6), (4, 8)])
RULES = (
    "dp-and-sdp-apart",
    "tp-on-nearest-devices",
    "cp-inside-dp",
    "tp-within-node",
    "1f1b-instead-of-gpipe",
)


QUESTIONS = questions(st.integers(1, 4), SIZES, st.integers(4, 40), st.sampled_from([4, 6, 8]))


def best_s(question: Question, options: Options = BALANCED_ONLY) -> float:
    """Seconds per step of the best plan; inf where none fits, or the space has no plan."""
    try:
        return search(*question, options).plans[0].estimate.step_time_s
    except NoPlanFitsError:
        return float("inf")
    except InputError as error:
        if "no way to cut" not in str(error):
            raise
        return float("inf")


def never_slower(times) -> bool:
    return all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(times))


@settings(max_examples=25, deadline=None)
@given(QUESTIONS, st.lists(st.integers(3, 60), min_size=2, max_size=4, unique=True))
def test_more_memory_is_never_slower(question, sizes):
    times = []
    for size in sorted(sizes):
        device = question.cluster.device.model_copy(update={"memory_bytes": size * MIB})
        times.append(best_s(question._replace(cluster=question.cluster.model_copy(update={"device": device}))))
    assert never_slower(times)


@settings(max_examples=25, deadline=None)
@given(QUESTIONS, st.data())
def test_more_bandwidth_on_any_tier_of_links_is_never_slower(question, data):
    times = []
    tier = data.draw(st.integers(0, len(question.cluster.levels) - 1))
    factors = data.draw(st.lists(st.sampled_from([0.3, 1.0, 1.1, 5.0, 100.0]), min_size=2, max_size=3, unique=True))
    for factor in sorted(factors):
        times.append(best_s(question._replace(cluster=_widened(question.cluster, tier, factor))))
    assert never_slower(times)


def _widened(cluster: Cluster, tier: int, factor: float) -> Cluster:
    levels = list(cluster.levels)
    link = levels[tier].link
    wider = link.model_copy(update={"bandwidth_bytes_per_s": link.bandwidth_bytes_per_s * factor})
    levels[tier] = levels[tier].model_copy(update={"link": wider})
    return cluster.model_copy(update={"levels": tuple(levels)})


def _some(draw, values):
    return draw(st.lists(st.sampled_from(list(values)), min_size=1, unique=True))


@st.composite
def nested_spaces(draw) -> tuple[Options, Options]:
    """A space, and one that holds it: the same with more of everything."""
    small: dict[str, object] = {
        # Sequence parallelism takes the place of its lack by a rule of experience, so it is in both or in neither.
        "axes": tuple(_some(draw, sorted(set(ALL_AXES) - {"sp"}))) + (("sp",) if draw(st.booleans()) else ()),
        "sharding": tuple(_some(draw, Sharding)),
        "recompute": tuple(_some(draw, Recompute)),
        "schedules": tuple(_some(draw, ScheduleKind)),
        "without_rules": tuple(draw(st.sets(st.sampled_from(RULES)))),
        "max_virtual_stages": draw(st.integers(1, 3)),
        "max_micro_batch_size": draw(st.sampled_from([1, 2, 4])),
    }
    more: dict[str, tuple[object, ...]] = {
        "axes": tuple(set(ALL_AXES) - {"sp"}),
        "sharding": tuple(Sharding),
        "recompute": tuple(Recompute),
        "schedules": tuple(ScheduleKind),
        "without_rules": RULES,
    }
    large = dict(small)
    for field in draw(st.sets(st.sampled_from(sorted(more)), min_size=1)):
        large[field] = tuple(dict.fromkeys((*small[field], *sorted(more[field]))))  # type: ignore[misc]
    large["max_micro_batch_size"] = draw(st.sampled_from([small["max_micro_batch_size"], 8]))
    large["max_virtual_stages"] = draw(st.sampled_from([small["max_virtual_stages"], 4]))
    return tuple(BALANCED_ONLY.model_copy(update=fields) for fields in (small, large))  # type: ignore[return-value]


@settings(max_examples=40, deadline=None)
@given(QUESTIONS, nested_spaces())
def test_a_larger_space_is_never_slower(question, spaces):
    assert never_slower([best_s(question, options) for options in spaces])


@settings(max_examples=15, deadline=None)
@given(QUESTIONS, st.sampled_from([s for s in STACKS if s.message_host_s == 0]))
def test_uniform_plans_are_never_faster_than_mixed_ones(question, stack):
    asked = question._replace(cluster=question.cluster.model_copy(update={"stack": stack}))
    assert never_slower([best_s(asked, BALANCED_ONLY.model_copy(update={"uniform": flag})) for flag in (True, False)])

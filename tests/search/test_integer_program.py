import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_program import Program
from number_instances import pipelines, price
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost.part import conditions
from planner.search.families import families
from planner.search.instances import Instances, groups
from planner.search.partition import solve_pipeline
from planner.search.pricing import Pricing
from planner.search.removed import Removed
from planner.search.space import Space
from planner.spec.plan import ScheduleKind
from planner.spec.request import Options
from planner.spec.workload import BALANCED


def solved(problem) -> float:
    solution = solve_pipeline(problem, float("inf"), lambda work: None)
    return solution.step_s if solution else float("inf")


def programmed(problem, **units) -> float:
    """What the program's choice costs, priced from the formulas."""
    found = Program(problem, **units).solve()
    return price(problem, *found) if found else float("inf")


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(list(ScheduleKind)).flatmap(lambda kind: pipelines(kind, unlike=True)))
def test_random_pipelines_are_as_fast_as_an_integer_program_finds(problem):
    assert solved(problem) == pytest.approx(programmed(problem), rel=1e-9)


@pytest.mark.parametrize(("experts", "memory"), [(0, 12), (4, 17)])
def test_all_families_of_a_real_question_are_as_fast_as_an_integer_program_finds(experts, memory):
    model, cluster, training = a_model(blocks=3, experts=experts), a_cluster(4, memory * MIB), a_training(8)
    options = Options(
        axes=("dp", "tp", "pp", "ep", "sp"),
        sharding=("none", "gradients"),
        recompute=("none", "full"),
        schedules=tuple(ScheduleKind),
        max_micro_batch_size=2,
    )
    space = Space(cluster, training, options, Removed())
    found = families(model, cluster, training, options, Removed())
    pricing = Pricing(model, conditions(model.hidden_size, cluster, training), BALANCED)
    instances = Instances(space, pricing, found)
    bound_by_memory = []
    for instance in (each for group in groups(found) for each in instances.of(group)):
        problem = instances.without_dominated(instance.problem)
        time_s = solved(problem)
        assert time_s == pytest.approx(programmed(problem, seconds=1e-4, bytes_each=MIB), rel=1e-9)
        free = problem._replace(limits_bytes=(10**12,) * len(problem.flights))
        bound_by_memory.append(np.isfinite(time_s) and time_s > solved(free))
    assert sum(bound_by_memory) >= 2

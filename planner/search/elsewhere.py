"""The search in scenarios: a plan that is good elsewhere than in the question under balanced load.

Another question (capacity, gate, batch, length) is explored like the question itself, with a small part of the effort:
what is cheap to prove is proven. The question itself under another load is glanced at. Both begin with the best plan
known for the scenario.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isclose, isfinite
from typing import NamedTuple

from planner.cost import estimate
from planner.search.explore import Limits, explore_if_any, glance
from planner.search.families import Family
from planner.search.ground import Ground
from planner.search.members import AGREEMENT
from planner.search.pool import Candidate, Pool
from planner.search.prices import Prices
from planner.search.progress import Checkpoint
from planner.search.question import Question, carried, under
from planner.search.removed import Removed
from planner.spec.errors import InputError, InternalError
from planner.spec.plan import Plan
from planner.spec.request import Options
from planner.spec.strategy import ExpertStrategy
from planner.spec.workload import Scenario, Workload

_SHARE = 1000
"""Of the effort that the question may take, one part in so many is for each scenario."""


class Aim(NamedTuple):
    """What an exploration finds the best plan for."""

    question: Question
    workload: Workload


def aims(question: Question, scenarios: Sequence[Scenario]) -> list[Aim]:
    """What each scenario makes of the question; raises InputError at `options.scenarios[i]`."""
    found = []
    for number, scenario in enumerate(scenarios):
        try:
            found.append(Aim(under(question, scenario), scenario.workload))
        except InputError as error:
            raise error.under(f"options.scenarios[{number}]") from None
    return found


def unlike(candidates: Iterable[Candidate]) -> list[Plan]:
    """The first of the plans with equal pipeline, tensor and expert parallelism: what a user would call one plan."""
    found: dict[tuple[int, ...], Plan] = {}
    for plan in (candidate.plan for candidate in candidates):
        experts = plan.main_strategy.experts or ExpertStrategy()
        sizes = (experts.expert_parallel_size, experts.expert_tensor_parallel_size)
        found.setdefault((len(plan.stages), plan.main_strategy.tp, *sizes), plan)
    return list(found.values())


class Elsewhere:
    """Plans found so far, and the scenarios in which the best of them is proven to be the best of all.

    All of them can run the question, in as many micro-batches as its batch makes.
    """

    def __init__(
        self,
        ground: Ground,
        options: Options,
        scenario_aims: Sequence[Aim],
        quick: Sequence[Family],
        out_of_time: Callable[[], bool],
    ) -> None:
        """`quick`: families of the question, those first that hold the quickest plans under balanced load."""
        self._quick = quick
        self._options = options
        self._aims = scenario_aims
        self._limits = Limits(out_of_time, options.effort_limit // _SHARE)
        self._grounds = {ground.question: ground}
        self._tick = ground.space.tick
        self._question = ground.question
        self._proven: dict[Aim, bool] = {}
        self.prices = Prices(ground.question, scenario_aims, options.target)
        self.plans: dict[str, Plan] = {}

    @property
    def open_aims(self) -> list[Aim]:
        """What is left to explore, each once."""
        return [aim for aim in dict.fromkeys(self._aims) if aim not in self._proven]

    def proven(self) -> list[bool]:
        """[scenarios]: whether no plan of the declared space that can run the question is faster there."""
        return [self._proven[aim] for aim in self._aims]

    def add(self, aim: Aim, candidates: Sequence[Candidate], proven: bool) -> None:
        """Plans found for an aim, the best first, and whether that is proven to be the best."""
        self._proven[aim] = proven
        _agrees(aim, candidates[0])
        there = {other.id for plan in self.plans.values() if (other := self._carried(plan, aim.question))}
        for plan in unlike(candidates):
            # What is known already, with the batch of a scenario, is no other plan.
            here = self._carried(plan, self._question) if plan.id not in there else None
            if here is not None:
                self.plans[here.id] = here

    def explore(self, aim: Aim, checkpoint: Checkpoint) -> None:
        """Look for plans that are good there, if there are any."""
        known = self._quickest(aim)
        self._proven[aim] = False
        ground = self._ground(aim)
        if ground is None or self._limits.out_of_time():
            return
        pool = Pool(self._question.cluster, aim.question.training, known)
        if aim.question == self._question:
            instances = ground.instances(aim.workload, self._quick)
            found = glance(instances, self._quick, pool, checkpoint, self._limits)
            if found:
                self.add(aim, found, proven=False)
                return
        instances = ground.instances(aim.workload)
        explored = explore_if_any(instances, ground.families, pool, checkpoint, self._limits)
        if explored is not None:
            runs_here = self._carried(explored.best.plan, self._question) is not None
            self.add(aim, (explored.best, *explored.alternatives), explored.is_optimal and runs_here)

    def _carried(self, plan: Plan, question: Question) -> Plan | None:
        return carried(plan, question, self._options.target)

    def _quickest(self, aim: Aim) -> Candidate | None:
        """The quickest of the known plans there, if any fits."""
        number = self._aims.index(aim)
        times = {plan_id: self.prices.of(plan).per_sample_s[number] for plan_id, plan in self.plans.items()}
        plan_id = min(times, key=lambda each: times[each])
        plan = self._carried(self.plans[plan_id], aim.question)
        return Candidate(times[plan_id], plan) if plan and isfinite(times[plan_id]) else None

    def _ground(self, aim: Aim) -> Ground | None:
        """None where no strategy cuts the batch."""
        if aim.question not in self._grounds:
            try:
                made = Ground(aim.question, self._options, Removed(), self._tick, also=self._question.training)
            except InputError:
                return None
            self._grounds[aim.question] = made
        return self._grounds[aim.question]


def _agrees(aim: Aim, best: Candidate) -> None:
    """The search's numbers and estimate() are one; anything else is a bug."""
    price = estimate(*aim.question, best.plan, aim.workload)
    per_sample_s = price.step_time_s / best.plan.global_batch_size
    if not isclose(per_sample_s, best.per_sample_s, rel_tol=AGREEMENT) or not price.fits:
        raise InternalError(
            f"search and estimate disagree on plan {best.plan.id}: {best.per_sample_s!r} against {per_sample_s!r} "
            f"seconds per sample, fits: {price.fits}"
        )

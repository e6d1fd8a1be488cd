"""What plans take in every scenario. Each plan is priced once, and what its scenarios have in common is priced once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planner.cost import estimates
from planner.search.question import Question, carried
from planner.spec.estimate import Estimate
from planner.spec.plan import Plan
from planner.spec.request import Target
from planner.spec.workload import BALANCED, Workload


class Row(NamedTuple):
    """One plan in all scenarios."""

    estimate: Estimate
    """For the question itself under balanced load."""
    step_time_s: tuple[float, ...]
    """[scenarios]; inf where the plan does not fit or cannot run."""
    per_sample_s: tuple[float, ...]
    """[scenarios]: the same for each sample of the batch."""
    runs: tuple[bool, ...]
    """[scenarios]: whether the plan cuts the batch and the sequence, whatever memory it takes."""


class Prices:
    """Rows of plans that can run the question."""

    def __init__(self, question: Question, aims: Sequence[tuple[Question, Workload]], target: Target) -> None:
        """`aims`: what each scenario makes of the question, and its workload."""
        self._question = question
        self._target = target
        self._rows: dict[str, Row] = {}
        self._workloads: list[tuple[Question, list[Workload]]] = [(question, [BALANCED])]
        """Questions that differ, and the workloads under which each is asked."""
        self._places: list[tuple[int, int]] = []
        """[scenarios]: which question, which of its workloads."""
        for aim in aims:
            self._places.append(self._place(*aim))

    def of(self, plan: Plan) -> Row:
        """The row of a plan with the batch and length of the question."""
        if plan.id not in self._rows:
            self._rows[plan.id] = self._priced(plan)
        return self._rows[plan.id]

    def _place(self, question: Question, workload: Workload) -> tuple[int, int]:
        known = [other for other, _ in self._workloads]
        if question not in known:
            known.append(question)
            self._workloads.append((question, []))
        number = known.index(question)
        workloads = self._workloads[number][1]
        if workload not in workloads:
            workloads.append(workload)
        return number, workloads.index(workload)

    def _priced(self, plan: Plan) -> Row:
        plans = [carried(plan, question, self._target) for question, _ in self._workloads]
        found = [
            estimates(*question, other, workloads) if other else None
            for other, (question, workloads) in zip(plans, self._workloads, strict=True)
        ]
        assert found[0] is not None, "plans with the batch and length of the question can run it"
        step_time_s, per_sample_s = [], []
        for question, workload in self._places:
            priced, other = found[question], plans[question]
            price = priced[workload] if priced else None
            fits = price is not None and price.fits
            step_time_s.append(price.step_time_s if price and fits else float("inf"))
            per_sample_s.append(step_time_s[-1] / other.global_batch_size if other else float("inf"))
        runs = tuple(found[question] is not None for question, _ in self._places)
        return Row(found[0][0], tuple(step_time_s), tuple(per_sample_s), runs)

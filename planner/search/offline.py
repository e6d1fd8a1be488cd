"""The offline stage from request to shortlist: explore under every scenario, price again, choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import isclose, isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost import estimate
from planner.cost.check import check_sequence
from planner.cost.framework import broken_training_rules
from planner.cost.load import check_workload
from planner.cost.part import conditions
from planner.cost.switch import Known, switch_plan_s
from planner.cost.targets import FRAMEWORKS
from planner.search.explore import Explored, Limits, explore, glance
from planner.search.families import families
from planner.search.instances import Instances
from planner.search.pool import Candidate, Pool
from planner.search.pricing import Pricing
from planner.search.progress import Checkpoint, Progress, Report, ignore
from planner.search.reasons import pruned_rules
from planner.search.removed import Removed
from planner.search.restricted import for_target
from planner.search.scenarios import standard_scenarios
from planner.search.shortlist import choose, regrets
from planner.search.space import Space
from planner.spec.cluster import Cluster
from planner.spec.errors import InputError, InternalError
from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.request import Options
from planner.spec.shortlist import Certificate, CertificateStatus, Shortlist, ShortlistEntry
from planner.spec.strategy import ExpertStrategy
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Scenario, Workload

Floats = NDArray[np.float64]
_EVERYTHING = Options()
_EXACT, _GLANCE, _CHOICE = 6.0, 1.0, 0.2
"""How long the search under balanced load, under another, and the choice of the shortlist usually take: for progress
alone."""
AGREEMENT = 1e-9
"""Relative difference up to which times are one: the search and estimate() sum in another order."""


class _Question(NamedTuple):
    """What is planned."""

    model: Model
    cluster: Cluster
    training: Training


def search(
    model: Model,
    cluster: Cluster,
    training: Training,
    options: Options = _EVERYTHING,
    report: Report = ignore,
    clock: Callable[[], float] = time.monotonic,
) -> Shortlist:
    """Search the declared space under every scenario and choose a shortlist.

    `report(progress, message)` is called often, with progress from 0 to 1 that only grows; what it raises stops the
    search. `clock` gives seconds. Time ends the search once a plan is known, and no sooner: without one there is no
    answer. Raises InputError, and NoPlanFitsError with the nearest miss.
    """
    began = clock()
    options = for_target(options)
    _check_target(training, options)
    question = _Question(model, cluster, training)
    scenarios = _scenarios(model, options)
    check_sequence(model, training)
    time_share = _time_share(options, began, clock)
    removed, progress = Removed(), Progress(report, time_share)
    space = Space(cluster, training, options, removed, progress.tick)
    found = families(model, cluster, training, options, removed)
    skewed = [scenario.workload for scenario in scenarios if scenario.workload != BALANCED]
    first, *others, last = progress.parts([_EXACT, *[_GLANCE] * len(skewed), _CHOICE])
    limits = Limits(lambda: time_share() > 1, options.effort_limit)
    pricing = Pricing(model, conditions(model.hidden_size, cluster, training), BALANCED)
    instances = Instances(space, pricing, found)
    explored = explore(instances, found, Pool(cluster, training), first, limits)
    _agrees(question, explored.best)
    plans = {plan.id: plan for plan in _unlike((explored.best, *explored.alternatives))}
    served = any(scenario.workload == BALANCED for scenario in scenarios)
    for workload, checkpoint in zip(skewed, others, strict=True):
        pool = Pool(cluster, training, _quickest(question, plans.values(), workload))
        limits = limits._replace(must_find=not served)
        served |= pool.best is not None
        if not limits.over(pool):
            skewed_instances = Instances(space, pricing.under(workload), found)
            more = glance(skewed_instances, found, pool, checkpoint, limits)
            plans |= {plan.id: plan for plan in _unlike(more)}
            served |= bool(more)
    entries, kept = _shortlist(question, list(plans.values()), scenarios, options.shortlist_size, last)
    report(1.0, "done")
    return Shortlist(
        plans=entries,
        certificate=_certificate(explored, space, len(found)),
        scenarios=kept,
        provenance=cluster.provenance,
        search_time_s=clock() - began,
    )


def _check_target(training: Training, options: Options) -> None:
    """Raise InputError where the target cannot run the recipe, whatever the plan."""
    framework = FRAMEWORKS.get(options.target)
    broken = next(broken_training_rules(framework, training), None) if framework else None
    if broken is not None:
        raise InputError.at("options.target", f"{options.target} cannot run this training: {broken.message}")


def _unlike(candidates: Sequence[Candidate]) -> list[Plan]:
    """The first of the plans with equal pipeline, tensor and expert parallelism: what a user would call one plan."""
    found: dict[tuple[int, ...], Plan] = {}
    for plan in (candidate.plan for candidate in candidates):
        experts = plan.main_strategy.experts or ExpertStrategy()
        sizes = (experts.expert_parallel_size, experts.expert_tensor_parallel_size)
        found.setdefault((len(plan.stages), plan.main_strategy.tp, *sizes), plan)
    return list(found.values())


def _scenarios(model: Model, options: Options) -> tuple[Scenario, ...]:
    scenarios = options.scenarios or standard_scenarios(model)
    for number, scenario in enumerate(scenarios):
        try:
            check_workload(len(model.moe_layers), scenario.workload)
        except InputError as error:
            raise error.under(f"options.scenarios[{number}]") from None
    return scenarios


def _time_share(options: Options, began: float, clock: Callable[[], float]) -> Callable[[], float]:
    """How much of the time limit has passed; 0 without one."""
    limit_s = options.time_limit_s
    return lambda: 0.0 if limit_s is None else (clock() - began) / limit_s


def _quickest(question: _Question, known: Iterable[Plan], workload: Workload) -> Candidate | None:
    """The quickest of the known plans under a workload, if any fits."""
    candidates = [Candidate(_per_sample_s(question, plan, workload), plan) for plan in known]
    best = min(candidates, key=lambda candidate: candidate.per_sample_s)
    return best if isfinite(best.per_sample_s) else None


def _agrees(question: _Question, best: Candidate) -> None:
    """The search's numbers and estimate() are one; anything else is a bug."""
    price = estimate(*question, best.plan)
    per_sample_s = price.step_time_s / best.plan.global_batch_size
    if not isclose(per_sample_s, best.per_sample_s, rel_tol=AGREEMENT) or not price.fits:
        raise InternalError(
            f"search and estimate disagree on plan {best.plan.id}: {best.per_sample_s!r} against {per_sample_s!r} "
            f"seconds per sample, fits: {price.fits}"
        )


def _shortlist(
    question: _Question, plans: list[Plan], scenarios: tuple[Scenario, ...], size: int, checkpoint: Checkpoint
) -> tuple[tuple[ShortlistEntry, ...], tuple[Scenario, ...]]:
    """The entries, and the scenarios in which some plan fits, with probabilities scaled to sum to 1."""
    balanced, rows = [], []
    for number, plan in enumerate(plans):
        checkpoint(0.4 * number / len(plans), "pricing plans under all scenarios")
        balanced.append(estimate(*question, plan))
        rows.append([_under(question, plan, scenario.workload, balanced[-1]) for scenario in scenarios])
    times = np.array(rows)
    feasible = np.flatnonzero(np.isfinite(times).any(axis=0))
    if not len(feasible):
        raise InputError.at(
            "options.scenarios", "no plan fits in memory under any of them; add a milder one, or memory"
        )
    times = times[:, feasible]
    total = sum(scenarios[i].probability for i in feasible)
    kept = tuple(scenarios[i].model_copy(update={"probability": scenarios[i].probability / total}) for i in feasible)
    probabilities = np.array([scenario.probability for scenario in kept])
    checkpoint(0.4, "choosing the shortlist")
    chosen = choose(times, probabilities, min(size, len(plans)))
    loss = regrets(times)
    quickest = times[chosen].min(axis=0)
    switches = _switch_costs(question, [plans[plan] for plan in chosen], checkpoint)
    entries = tuple(
        ShortlistEntry(
            rank=rank,
            plan=plans[plan],
            estimate=balanced[plan],
            best_for=tuple(
                s.workload.name
                for s, t, q in zip(kept, times[plan], quickest, strict=True)
                if np.isfinite(t) and isclose(t, q, rel_tol=AGREEMENT)
            ),
            out_of_memory_in=tuple(
                s.workload.name for s, t in zip(kept, times[plan], strict=True) if not np.isfinite(t)
            ),
            regret_ratio=_expected(loss[plan], probabilities),
            switch_cost_s=switches[rank - 1],
        )
        for rank, plan in enumerate(chosen, start=1)
    )
    return entries, kept


def _switch_costs(question: _Question, plans: Sequence[Plan], checkpoint: Checkpoint) -> list[dict[str, float]]:
    """Of each plan, the seconds to go over to each other, by its id."""
    known: Known = {}
    found: list[dict[str, float]] = []
    for number, plan in enumerate(plans):
        found.append({})
        for other in plans:
            if other.id != plan.id:
                checkpoint(0.5 + 0.5 * number / len(plans), "pricing switches between plans")
                found[-1][other.id] = switch_plan_s(*question, plan, other, known=known)
    return found


def _expected(loss: Floats, probabilities: Floats) -> float:
    """Expected regret over the scenarios in which the plan fits; 0 for the balanced optimum that fits in none."""
    fits = np.isfinite(loss)
    if not fits.any():
        return 0.0
    return float(loss[fits] @ probabilities[fits] / probabilities[fits].sum())


def _under(question: _Question, plan: Plan, workload: Workload, balanced: Estimate) -> float:
    return _fitting(balanced, plan) if workload == BALANCED else _per_sample_s(question, plan, workload)


def _per_sample_s(question: _Question, plan: Plan, workload: Workload) -> float:
    return _fitting(estimate(*question, plan, workload), plan)


def _fitting(price: Estimate, plan: Plan) -> float:
    """Seconds per sample, inf for a plan that does not fit."""
    return price.step_time_s / plan.global_batch_size if price.fits else float("inf")


def _certificate(explored: Explored, space: Space, num_families: int) -> Certificate:
    best = explored.best
    batch = best.plan.global_batch_size
    optimal = explored.lower_bound_per_sample_s >= best.per_sample_s
    options = space.options
    return Certificate(
        status=CertificateStatus.OPTIMAL if optimal else CertificateStatus.BOUNDED,
        lower_bound_s=explored.lower_bound_per_sample_s * batch,
        gap_ratio=best.per_sample_s / explored.lower_bound_per_sample_s - 1.0,
        space=(
            f"{num_families} families of batch size, stages, micro-batches and schedule; for each layer any of "
            f"axes {' '.join(options.axes)}, sharding {' '.join(options.sharding)}, recompute "
            f"{' '.join(options.recompute)}; up to {options.max_micro_batch_size} samples per micro-batch and rank, "
            f"up to {options.max_virtual_stages} virtual stages"
        ),
        evaluated=explored.solved,
        pruned=dict(sorted(space.removed.counts.items())),
        pruned_rules=pruned_rules(space.removed) if options.explain_pruning else (),
    )

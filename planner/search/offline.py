"""The offline stage from request to shortlist: explore under every scenario, price again, choose."""

from __future__ import annotations

import time
from collections.abc import Callable

from planner.cost.check import check_sequence
from planner.cost.framework import broken_training_rules
from planner.cost.targets import FRAMEWORKS
from planner.search.elsewhere import Aim, Elsewhere, aims
from planner.search.explore import Explored, Limits, explore
from planner.search.ground import Ground
from planner.search.members import members
from planner.search.mixed import NO_UNIFORM
from planner.search.places import ACROSS_RULE
from planner.search.pool import Pool
from planner.search.progress import Progress, Report, ignore
from planner.search.question import Question
from planner.search.reasons import pruned_rules
from planner.search.removed import Removed
from planner.search.restricted import for_target
from planner.search.scenarios import standard_scenarios
from planner.search.sizes import check_sizes
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster, MixedCluster
from planner.spec.model import Model
from planner.spec.request import Options, Target
from planner.spec.shortlist import Certificate, CertificateStatus, Shortlist
from planner.spec.training import Training
from planner.spec.workload import BALANCED

_EVERYTHING = Options()
_EXACT, _GLANCE, _CHOICE = 6.0, 2.0, 1.0
"""How long the parts of a search usually take: the question itself, each other scenario, the choice."""


def search(
    model: Model,
    cluster: AnyCluster,
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
    _check_groups(cluster, options)
    check_sequence(model, training)
    check_sizes(model, training, options)
    question = Question(model, cluster, training)
    scenarios = options.scenarios or standard_scenarios(model)
    scenario_aims = aims(question, scenarios)
    time_share = _time_share(options, began, clock)
    progress = Progress(report, time_share)
    first, *others, last = progress.parts([_EXACT, *[_GLANCE] * len(scenario_aims), _CHOICE])
    limits, pool = Limits(lambda: time_share() > 1, options.effort_limit), Pool(cluster, training)
    ground = Ground(question, options, Removed(), progress.tick)
    explored = explore(ground.instances(BALANCED), ground.families, pool, first, limits)
    elsewhere = Elsewhere(ground, options, scenario_aims, explored.quick, limits.out_of_time)
    elsewhere.add(Aim(question, BALANCED), (explored.best, *explored.alternatives), explored.is_optimal)
    for aim, checkpoint in zip(elsewhere.open_aims, others, strict=False):
        elsewhere.explore(aim, checkpoint)
    priced = {}
    for number, plan in enumerate(elsewhere.plans.values()):
        last(0.4 * number / len(elsewhere.plans), "pricing plans in all scenarios")
        priced[plan] = elsewhere.prices.of(plan)
    found = members(question, scenarios, priced, options.shortlist_size, last, limits.out_of_time)
    report(1.0, "done")
    kept = {scenario.name for scenario in found.scenarios}
    proven = zip(scenarios, elsewhere.proven(), strict=True)
    return Shortlist(
        plans=found.entries,
        certificate=_certificate(explored, ground),
        scenarios=found.scenarios,
        proven_in=tuple(scenario.name for scenario, is_proven in proven if is_proven),
        without_plan=tuple(scenario.name for scenario in scenarios if scenario.name not in kept),
        provenance=cluster.provenance,
        search_time_s=clock() - began,
    )


def _check_target(training: Training, options: Options) -> None:
    """Raise InputError where the target cannot run the recipe, whatever the plan."""
    framework = FRAMEWORKS.get(options.target)
    broken = next(broken_training_rules(framework, training), None) if framework else None
    if broken is not None:
        raise InputError.at("options.target", f"{options.target} cannot run this training: {broken.message}")


def _time_share(options: Options, began: float, clock: Callable[[], float]) -> Callable[[], float]:
    """How much of the time limit has passed; 0 without one."""
    limit_s = options.time_limit_s
    return lambda: 0.0 if limit_s is None else (clock() - began) / limit_s


def _check_groups(cluster: AnyCluster, options: Options) -> None:
    """Raise InputError for what has no meaning where the stages stand on unlike devices."""
    if not isinstance(cluster, MixedCluster):
        return
    if "pp" not in options.axes:
        raise InputError.at("options.axes", "must hold pp for a cluster of groups: each stage lies in one of them")
    if options.uniform:
        for_whom = f"plans for {options.target}" if options.target in FRAMEWORKS else "uniform plans"
        raise InputError.at(
            "options.uniform",
            f"{for_whom} cannot be searched on groups of unlike devices ({NO_UNIFORM}); search each group by itself",
        )


def _order(cluster: AnyCluster) -> str:
    """Which devices are neighbours in a pipeline; the rest of the space holds for this order alone."""
    groups = ", each in one group, group after group" if isinstance(cluster, MixedCluster) else ""
    return f"stages are devices with consecutive numbers{groups} ({ACROSS_RULE})"


def _told(ground: Ground) -> str:
    """The declared space in words."""
    options = ground.space.options
    strategies_of = "all blocks" if options.uniform else "each layer"
    told = [
        f"{len(ground.families)} families of batch, stages, micro-batches and schedule ({' '.join(options.schedules)})",
        f"for {strategies_of} any of {' '.join(options.axes)}, sharding {' '.join(options.sharding)}, "
        f"recompute {' '.join(options.recompute)}{', offload' if options.offload else ''}",
        f"micro-batches of up to {options.max_micro_batch_size} on a rank",
        f"up to {options.max_virtual_stages} virtual stages",
        _order(ground.question.cluster),
        *([] if options.target is Target.ANY else [f"what {options.target} can run"]),
        *(f"without the rule {rule}" for rule in options.without_rules),
    ]
    return "; ".join(told)


def _certificate(explored: Explored, ground: Ground) -> Certificate:
    best, options = explored.best, ground.space.options
    batch = best.plan.global_batch_size
    return Certificate(
        status=CertificateStatus.OPTIMAL if explored.is_optimal else CertificateStatus.BOUNDED,
        lower_bound_s=explored.lower_bound_per_sample_s * batch,
        gap_ratio=best.per_sample_s / explored.lower_bound_per_sample_s - 1.0,
        space=_told(ground),
        evaluated=explored.solved,
        pruned=dict(sorted(ground.space.removed.counts.items())),
        pruned_rules=pruned_rules(ground.space.removed) if options.explain_pruning else (),
    )

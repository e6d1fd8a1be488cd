"""A plan as files of a training framework. Pure: files are text, and whoever asked writes them.

export_plan() holds the plan against its model and cluster, then against the rules of the framework (planner/cost) and
of what its programs can be told (`*_rules.py` here), and refuses with the names of all that it breaks; then it writes.
One file for each framework; a job's numbers are in `job.py`, the header in `header.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from planner.cost.check import check_plan
from planner.cost.framework import rule_name
from planner.cost.rules import Broken
from planner.cost.targets import broken_target_rules
from planner.export import deepspeed, galvatron, megatron, torchtitan
from planner.export.deepspeed_rules import DEEPSPEED_EXPORT_RULES
from planner.export.galvatron_rules import GALVATRON_EXPORT_RULES
from planner.export.job import Job
from planner.export.megatron_rules import MEGATRON_EXPORT_RULES
from planner.export.rules import ExportRule, broken_export_rules
from planner.export.torchtitan_rules import TORCHTITAN_EXPORT_RULES
from planner.spec.errors import InputError, Problem
from planner.spec.export import Export, ExportedFile, ExportTarget
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.request import Target
from planner.spec.training import Training

__all__ = ["export_plan", "export_rule_names", "exported_or_advised"]


class _Writer(NamedTuple):
    """How plans are written for one framework."""

    versions: str
    target: Target | None
    """Whose rules of parallelism hold; None: they are all among `rules`."""
    rules: tuple[ExportRule, ...]
    files: Callable[[Job], tuple[ExportedFile, ...]]
    left: Callable[[Job], tuple[str, ...]]
    notes: Callable[[Job], tuple[str, ...]]


_WRITERS = {
    ExportTarget.MEGATRON: _Writer(
        megatron.VERSIONS,
        Target.MEGATRON,
        MEGATRON_EXPORT_RULES,
        megatron.megatron_files,
        megatron.left_to_user,
        megatron.notes,
    ),
    ExportTarget.TORCHTITAN: _Writer(
        torchtitan.VERSIONS,
        Target.TORCHTITAN,
        TORCHTITAN_EXPORT_RULES,
        torchtitan.torchtitan_files,
        torchtitan.left_to_user,
        torchtitan.notes,
    ),
    ExportTarget.DEEPSPEED: _Writer(
        deepspeed.VERSIONS,
        Target.DEEPSPEED,
        DEEPSPEED_EXPORT_RULES,
        deepspeed.deepspeed_files,
        deepspeed.left_to_user,
        deepspeed.notes,
    ),
    ExportTarget.GALVATRON: _Writer(
        galvatron.VERSIONS,
        None,
        GALVATRON_EXPORT_RULES,
        galvatron.galvatron_files,
        galvatron.left_to_user,
        galvatron.notes,
    ),
}


def export_plan(target: ExportTarget, model: Model, cluster: AnyCluster, training: Training, plan: Plan) -> Export:
    """The files; raises InputError at `plan` that names every rule of the framework that the plan breaks."""
    check_plan(model, cluster, training, plan)
    writer, job = _WRITERS[target], Job(model, cluster, training, plan)
    broken = list(dict.fromkeys(_broken(writer, job)))
    if broken:
        *first, last = (Problem("plan", f"{each.message} ({each.rule})") for each in broken)
        raise InputError(*first, Problem(last.field, f"{last.message}{_advice(writer, job)}"))
    return Export(
        target=target,
        plan_id=plan.id,
        plan_summary=plan.summary,
        versions=writer.versions,
        files=writer.files(job),
        left_to_user=writer.left(job),
        notes=writer.notes(job),
    )


def export_rule_names(target: ExportTarget) -> tuple[str, ...]:
    """The rules beside those of the framework's parallelism, in the order in which they are held against a plan."""
    return tuple(rule_name(rule) for rule in _WRITERS[target].rules)


def exported_or_advised(
    target: ExportTarget,
    conditions: tuple[Model, AnyCluster, Training],
    plan: Plan,
    others: Iterable[tuple[str, Plan]],
) -> Export:
    """As `export_plan`, but the error names the first of `others`, (what to call it, plan), that can be written."""
    check_plan(*conditions, plan)
    try:
        return export_plan(target, *conditions, plan)
    except InputError as error:
        found = (name for name, other in others if other != plan and _can_be_written(target, conditions, other))
        if (name := next(found, None)) is None:
            raise
        *first, last = error.problems
        raise InputError(*first, Problem(last.field, f"{last.message}; or export {name}")) from None


def _can_be_written(target: ExportTarget, conditions: tuple[Model, AnyCluster, Training], plan: Plan) -> bool:
    try:
        export_plan(target, *conditions, plan)
    except InputError:
        return False
    return True


def _advice(writer: _Writer, job: Job) -> str:
    """What a search can help: it knows the framework's rules of parallelism, not those of its programs."""
    if writer.target is None or not any(broken_target_rules(writer.target, job.model, job.training, job.plan)):
        return ""
    name = writer.target.value
    return f"; search with options.target = {name} (--target {name}) for plans that it can run"


def _broken(writer: _Writer, job: Job) -> Iterator[Broken]:
    """The framework's rules of parallelism, then, of a plan that breaks none, those of its programs.

    The second are asked of plans alone that the first let through: they count on one layout for all layers.
    """
    found = list(broken_target_rules(writer.target, job.model, job.training, job.plan)) if writer.target else []
    yield from found or broken_export_rules(writer.rules, job)

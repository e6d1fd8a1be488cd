"""Plans, estimates and decisions as tables: rows of text in human units. Knows no terminal; the CLI renders them.

Table(title, columns, rows)         every row has as many cells as there are columns
Column(title, numeric)              numeric columns read best when aligned to the right

shortlist_table(shortlist)          one row per plan, the best first
headline_table(plan, estimate)      what the plan is and what it reaches
stage_table(model, plan, estimate)  one row per stage and strategy: devices, layers, strategy; equal stages once
time_table(estimate)                named parts of the step, their share
memory_table(plan, estimate)        one row per stage (equal neighbours once), one column per named part, in GiB
pruning_table(certificate)          what each named rule removed from the space, and why
baseline_table(shortlist)           the best plan of each restricted space, and how much faster the best of all is
assumption_table(estimate)          what the price takes for granted and does not model
decision_table(decisions)           the online stage's history, one row per window
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from planner.spec.decision import Decision
from planner.spec.estimate import Estimate, StageEstimate
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.shortlist import (
    BaselineResult,
    Certificate,
    CertificateStatus,
    PrunedRule,
    RuleKind,
    Shortlist,
    ShortlistEntry,
)
from planner.view import captions
from planner.view.folds import Fold, fold_stages
from planner.view.match import check_estimate
from planner.view.parts import memory_parts, part_name, time_parts
from planner.view.quantities import gibibytes, memory, percent, seconds, significant, span

_EXAMPLES = 3
"""Candidates of a rule that its row names."""


class Column(NamedTuple):
    """Head of a column."""

    title: str
    numeric: bool = False


class Table(NamedTuple):
    """Text in rows; every row has one cell per column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def shortlist_table(shortlist: Shortlist) -> Table:
    """One row per plan, the best for balanced load first.

    Regret, expected and worst, is over the scenarios in which a plan fits, so those where it does not or cannot run
    stand beside it; these columns are left out if every plan fits in all of them.
    """
    some_do_not_fit = any(entry.out_of_memory_in for entry in shortlist.plans)
    some_cannot_run = any(entry.cannot_run_in for entry in shortlist.plans)
    columns = (
        Column("#", True),
        Column("plan"),
        Column("step", True),
        Column("tokens/s/device", True),
        Column("MFU", True),
        Column("peak GiB", True),
        Column("regret", True),
        Column("worst", True),
        *((Column("out of memory in"),) if some_do_not_fit else ()),
        *((Column("cannot run in"),) if some_cannot_run else ()),
        Column("best for"),
        Column("id"),
    )
    rows = tuple(_shortlist_row(entry, some_do_not_fit, some_cannot_run) for entry in shortlist.plans)
    return Table("Shortlist", columns, rows)


def _shortlist_row(entry: ShortlistEntry, some_do_not_fit: bool, some_cannot_run: bool) -> tuple[str, ...]:
    estimate = entry.estimate
    return (
        str(entry.rank),
        entry.plan.summary,
        seconds(estimate.step_time_s) if estimate.fits else "does not fit",
        significant(estimate.tokens_per_s_per_device) if estimate.fits else "–",
        percent(estimate.mfu) if estimate.fits else "–",
        gibibytes(max(stage.peak_memory_bytes for stage in estimate.stages)),
        percent(entry.regret_ratio),
        percent(entry.worst_regret_ratio),
        *((captions.joined(entry.out_of_memory_in),) if some_do_not_fit else ()),
        *((captions.joined(entry.cannot_run_in),) if some_cannot_run else ()),
        captions.joined(entry.best_for),
        entry.plan.id,
    )


def baseline_table(shortlist: Shortlist) -> Table:
    """One row per restricted space: its best plan and how many times faster that of the whole space is, or why not."""
    columns = (Column("baseline"), Column("best plan"), Column("step", True), Column("speed-up over it", True))
    return Table("Baselines", columns, tuple(_baseline_row(result) for result in shortlist.baselines))


def _baseline_row(result: BaselineResult) -> tuple[str, ...]:
    if result.plan is None or result.step_time_s is None or result.speedup_ratio is None:
        return (result.name, _no_plan(result), "–", "–")
    proven = "" if result.status is CertificateStatus.OPTIMAL else " (not proven the best)"
    speedup = f"{result.speedup_ratio:.2f} x"
    return (result.name, f"{result.plan.summary}{proven}", seconds(result.step_time_s), speedup)


def _no_plan(result: BaselineResult) -> str:
    miss = result.nearest_miss
    if miss is None:
        return f"impossible: {result.impossible}"
    return f"does not fit: stage {miss.stage} lacks {memory(miss.missing_bytes)} under {miss.summary}"


def headline_table(plan: Plan, estimate: Estimate) -> Table:
    """What the plan is and what it reaches; one quantity per row. Raises InputError if they do not belong together."""
    check_estimate(plan, estimate)
    fullest = max(estimate.stages, key=lambda stage: stage.peak_memory_bytes - stage.limit_bytes)
    rows = (
        ("plan", plan.summary),
        ("id", plan.id),
        ("devices", f"{plan.num_devices:,} in {len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"),
        ("batch", captions.batch(plan)),
        ("schedule", captions.schedule(plan.schedule)),
        ("step time", seconds(estimate.step_time_s)),
        *((("error band", captions.error_band(estimate.error_band)),) if estimate.error_band else ()),
        ("throughput", f"{significant(estimate.tokens_per_s)} tokens/s"),
        ("per device", f"{significant(estimate.tokens_per_s_per_device)} tokens/s"),
        ("model FLOP/s", f"{significant(estimate.tflops_per_device)} TFLOP/s per device, MFU {percent(estimate.mfu)}"),
        ("memory", _room(fullest)),
        *((("host memory", _host_room(estimate)),) if any(stage.host_bytes for stage in estimate.stages) else ()),
        ("workload", estimate.workload),
        ("provenance", estimate.provenance.value),
    )
    return Table("Plan", (Column("quantity"), Column("value")), rows)


def _room(stage: StageEstimate) -> str:
    peak = f"{memory(stage.peak_memory_bytes)} of {memory(stage.limit_bytes)} in the fullest stage"
    return f"{peak}, lacks {memory(stage.missing_bytes)}" if stage.missing_bytes else peak


def _host_room(estimate: Estimate) -> str:
    stage = max(estimate.stages, key=lambda each: each.host_bytes)
    used = f"{memory(stage.host_bytes)} of {memory(stage.host_limit_bytes)} for each device of the fullest stage"
    return f"{used}, lacks {memory(stage.missing_host_bytes)}" if stage.missing_host_bytes else used


def stage_table(model: Model, plan: Plan, estimate: Estimate | None = None) -> Table:
    """One row per stage and strategy; neighbouring stages that are equal stand once.

    An estimate tells unlike devices apart; raises InputError if it is not of this plan.
    """
    if estimate is not None:
        check_estimate(plan, estimate)
    columns = (Column("stage"), Column("devices"), Column("layers"), Column("strategy"))
    folds = fold_stages(model, plan, estimate)
    return Table("Stages", columns, tuple(row for fold in folds for row in _fold_rows(model, fold)))


def _fold_rows(model: Model, fold: Fold) -> Iterable[tuple[str, ...]]:
    runs = fold.first_stage.runs
    for number, strategy in enumerate(dict.fromkeys(run.strategy for run in runs)):
        layers = captions.layers(model, (run for run in runs if run.strategy == strategy))
        yield (
            fold.name if number == 0 else "",
            fold.devices if number == 0 else "",
            f"{layers} (in stage {fold.first_number})" if fold.num_stages > 1 else layers,
            captions.strategy_short(strategy),
        )


def time_table(estimate: Estimate) -> Table:
    """Named parts of the step in the order of the estimate, and their sum; parts of no time are left out."""
    parts = [
        (part_name(key), seconds(part_s), percent(part_s / estimate.step_time_s))
        for key, part_s in time_parts(estimate).items()
    ]
    rows = (*parts, ("step", seconds(estimate.step_time_s), percent(1.0)))
    return Table("Time of a step", (Column("part"), Column("time", True), Column("share", True)), rows)


def memory_table(plan: Plan, estimate: Estimate) -> Table:
    """Bytes per device in named parts, GiB; equal neighbouring stages stand once, parts that no stage has are left out.

    Raises InputError if the estimate is not of this plan.
    """
    check_estimate(plan, estimate)
    keys = memory_parts(estimate)
    columns = (
        Column("stage"),
        *(Column(part_name(key), True) for key in keys),
        Column("peak", True),
        Column("limit", True),
        Column("free", True),
    )
    rows = tuple(
        (span(first, last), *(gibibytes(bytes_) for bytes_ in _memory_row(keys, stage)))
        for first, last, stage in _equal_neighbours(estimate.stages)
    )
    return Table("Memory per device, GiB", columns, rows)


def _memory_row(keys: Sequence[str], stage: StageEstimate) -> tuple[int, ...]:
    free = stage.limit_bytes - stage.peak_memory_bytes
    return (*(stage.memory.get(key, 0) for key in keys), stage.peak_memory_bytes, stage.limit_bytes, free)


def _equal_neighbours(stages: Sequence[StageEstimate]) -> Iterable[tuple[int, int, StageEstimate]]:
    """(first number, last number, estimate) of neighbouring stages with equal memory."""
    for _, group in groupby(enumerate(stages), key=lambda numbered: (numbered[1].memory, numbered[1].limit_bytes)):
        members = tuple(group)
        yield members[0][0], members[-1][0], members[0][1]


def assumption_table(estimate: Estimate) -> Table:
    """One row per sentence, in the order of the estimate."""
    return Table("Taken for granted", (Column("assumption"),), tuple((text,) for text in estimate.assumptions))


def pruning_table(certificate: Certificate) -> Table:
    """One row per rule that removed something, in the order of the certificate, with a few examples."""
    columns = (Column("rule"), Column("removed", True), Column("kind"), Column("why"), Column("for example"))
    return Table("Pruning", columns, tuple(map(_pruning_row, certificate.pruned_rules)))


def _pruning_row(rule: PrunedRule) -> tuple[str, ...]:
    kind = rule.kind.value.replace("_", " ")
    if rule.kind is RuleKind.PRUNED_BY_EXPERIENCE:
        kind += ", switched off by --without-rule"
    more = " …" if len(rule.examples) > _EXAMPLES else ""
    return rule.rule, f"{rule.removed:,}", kind, rule.why, "; ".join(rule.examples[:_EXAMPLES]) + more or "–"


def decision_table(decisions: Sequence[Decision]) -> Table:
    """One row per decision, in the given order."""
    columns = (
        Column("window", True),
        Column("action"),
        Column("imbalance", True),
        Column("after", True),
        Column("bound", True),
        Column("moves", True),
        Column("gain/step", True),
        Column("cost", True),
        Column("payback steps", True),
        Column("reason"),
    )
    return Table("Decisions", columns, tuple(_decision_row(decision) for decision in decisions))


def _decision_row(decision: Decision) -> tuple[str, ...]:
    return (
        str(decision.window),
        decision.action.value.replace("_", " "),
        f"{decision.imbalance_before:.2f}",
        f"{decision.imbalance_after:.2f}",
        f"{decision.imbalance_bound:.2f}",
        str(len(decision.moves)),
        seconds(decision.gain_s_per_step),
        seconds(decision.cost_s),
        "–" if decision.payback_steps is None else significant(decision.payback_steps),
        decision.reason,
    )

"""A row as a question to the planner: this model, on this cluster, with this recipe, under this plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from planner.cost.estimate import estimate
from planner.spec.cluster import Cluster
from planner.spec.errors import InputError
from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.strategy import Recompute
from planner.spec.training import Training
from profiles.runs.architecture import model_of
from profiles.runs.layout import plan_of, recompute_of
from profiles.runs.machine import cluster_of
from profiles.runs.recipe import training_of
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped
from profiles.runs.stack import MEGATRON_CORE, stack_of

MODULES_SAVE_RATIO = 0.32
"""Of the activations, what recomputing modules saves. Source: arXiv 2603.07685, tables 3 and 4: 42 of 131 GB."""
_LIGHT = (Recompute.NONE, Recompute.SELECTIVE)
_TUNING = {
    "lora": "LoRA (frozen weights with small adapters)",
    "sft": "fine-tuning on packed sequences (SFT)",
    "peft": "parameter-efficient fine-tuning",
    "dpo": "fine-tuning with two models (DPO)",
}
_LOADS = (
    (re.compile(r"gate naive|naive gate"), "the load of experts under a gate that does not balance is not known"),
    (re.compile(r"shadow on|dynamic placement on"), "experts that move or are copied during the run are not modelled"),
)


@dataclass(frozen=True)
class Case:
    """One row, ready for estimate()."""

    id: str
    model: Model
    cluster: Cluster
    training: Training
    plan: Plan
    stack: str
    recompute_known: bool
    """Whether the row says what is recomputed; else it is the lightest that fits."""


def cases_of(records: Iterable[RunRecord]) -> tuple[Case | Skipped, ...]:
    """The case of each row, in order."""
    return tuple(case_of(record) for record in records)


def case_of(record: RunRecord) -> Case | Skipped:
    """The case of a row, or why there is none."""
    reason = _unmodelled(record)
    if reason is not None:
        return Skipped(reason)
    stack = stack_of(record)
    training = training_of(record, stack)
    if isinstance(training, Skipped):
        return training
    model = model_of(record.model, training.sequence_length)
    if isinstance(model, Skipped):
        return model
    cluster = cluster_of(record.hardware, stack)
    if isinstance(cluster, Skipped):
        return cluster
    return _fitting(record, model, cluster, training, stack)


def _unmodelled(record: RunRecord) -> str | None:
    kind = (record.kind or "").lower()
    for word, feature in _TUNING.items():
        if word in kind:
            return f"kind: {feature} is not modelled"
    for words, reason in _LOADS:
        if record.model.experts and words.search(record.words):
            return f"notes: {reason}"
    return None


def _fitting(record: RunRecord, model: Model, cluster: Cluster, training: Training, stack: str) -> Case | Skipped:
    """With the recomputation that the row states, else the lightest that fits, else the last that is considered.

    Megatron-Core's recipes of this time recompute modules, not whole layers, unless they say so.
    """
    stated = recompute_of(record.parallel.recompute)
    if isinstance(stated, Skipped):
        return stated
    choices = (stated,) if stated is not None else _LIGHT if stack in MEGATRON_CORE else tuple(Recompute)
    case: Case | Skipped = Skipped("parallel.recompute: not known")
    for recompute in choices:
        plan = plan_of(record, model, training, stack, recompute)
        if isinstance(plan, Skipped):
            return plan
        try:
            price = estimate(model, cluster, training, plan)
        except InputError as error:
            return Skipped(str(error))
        case = Case(record.id, model, cluster, training, plan, stack, stated is not None)
        if fits(price, case):
            break
    return case


def fits(price: Estimate, case: Case) -> bool:
    """Whether a run is likely to have had room.

    Where a row does not say what it recomputed: Megatron-Core recomputes single modules (norms, activation functions,
    up-projections) at a cost close to the attention core's: selective recomputation stands for that too, as far as
    these modules are what lacks.
    """
    by_modules = case.stack in MEGATRON_CORE and case.plan.main_strategy.recompute is Recompute.SELECTIVE
    saved_ratio = MODULES_SAVE_RATIO if by_modules and not case.recompute_known else 0.0
    return all(stage.missing_bytes <= saved_ratio * stage.memory["activations"] for stage in price.stages)

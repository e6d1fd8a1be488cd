"""Why each named rule removes what it removes: of what kind it is, and one sentence.

Rules that are functions say it in their docstrings, next to what they do; the others say it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import getdoc
from types import MappingProxyType
from typing import NamedTuple

from planner.cost.framework import PIPELINE_RULES, STRATEGY_RULES
from planner.cost.rules import EXPERT_RULES, SHAPE_RULES
from planner.cost.targets import FRAMEWORKS
from planner.search.families import EQUAL_PIECES_RULE, GPIPE_RULE
from planner.search.removed import DOMINATED, Removed
from planner.search.space import SEQUENCE_PARALLEL
from planner.search.tree import PATH_RULES, rule_name
from planner.spec.shortlist import PrunedRule, RuleKind


class Reason(NamedTuple):
    """Of one rule."""

    kind: RuleKind
    why: str


def _of_functions(kind: RuleKind, rules: Iterable[Callable[..., object]]) -> Iterator[tuple[str, Reason]]:
    for rule in rules:
        yield rule_name(rule), Reason(kind, " ".join((getdoc(rule) or "").split()))


REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        **dict(_of_functions(RuleKind.PRUNED_BY_EXPERIENCE, PATH_RULES)),
        SEQUENCE_PARALLEL: Reason(
            RuleKind.PRUNED_BY_EXPERIENCE,
            "Tensor parallelism with sequence parallelism has the same traffic and less memory, so it is not tried "
            "without.",
        ),
        GPIPE_RULE: Reason(
            RuleKind.PRUNED_BY_EXPERIENCE, "1F1B has the same bubble as GPipe, with fewer micro-batches in flight."
        ),
        EQUAL_PIECES_RULE: Reason(
            RuleKind.PRUNED_BY_EXPERIENCE,
            "Interleaving gives every stage equal pieces, which groups of unlike devices do not finish together.",
        ),
        DOMINATED: Reason(
            RuleKind.DOMINATED,
            "Another strategy of the layer with the same layout is no worse in any time or memory; counted for each "
            "problem that was looked at closely.",
        ),
        "micro-batch-size-limit": Reason(
            RuleKind.LIMIT_OF_OPTIONS,
            "No data-parallel degree that divides the stage's devices leaves each rank at least one sample and at most "
            "max_micro_batch_size.",
        ),
        "stages-need-layers": Reason(RuleKind.CANNOT_BE_COMPUTED, "Each stage holds at least one layer."),
        "interleaving-in-rounds-of-stages": Reason(
            RuleKind.CANNOT_BE_COMPUTED,
            "An interleaved pipeline takes micro-batches in rounds of as many as it has stages.",
        ),
        "interleaving-in-equal-pieces": Reason(
            RuleKind.CANNOT_BE_COMPUTED, "Virtual stages are equal pieces, so their number divides the blocks."
        ),
        **dict(_of_functions(RuleKind.CANNOT_BE_COMPUTED, (*SHAPE_RULES, *EXPERT_RULES))),
        **dict(_of_functions(RuleKind.CANNOT_BE_RUN_BY_TARGET, (*PIPELINE_RULES, *STRATEGY_RULES))),
        **{
            name: reason
            for framework in FRAMEWORKS.values()
            for rules in (framework.pipeline_rules, framework.strategy_rules)
            for name, reason in _of_functions(RuleKind.CANNOT_BE_RUN_BY_TARGET, rules)
        },
    }
)
"""By the name that certificates count under."""


def pruned_rules(removed: Removed) -> tuple[PrunedRule, ...]:
    """Every rule that removed something, with its reason: by kind, and of one kind the one that removed most first."""
    kinds = list(RuleKind)
    found = [
        PrunedRule(
            rule=rule, kind=REASONS[rule].kind, removed=count, why=REASONS[rule].why, examples=removed.listed(rule)
        )
        for rule, count in removed.counts.items()
    ]
    return tuple(sorted(found, key=lambda each: (kinds.index(each.kind), -each.removed, each.rule)))

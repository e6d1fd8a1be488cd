"""What the offline stage hands to the online stage, and how sure it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.cluster import Provenance
from planner.spec.errors import NearestMiss
from planner.spec.estimate import Estimate
from planner.spec.plan import Plan
from planner.spec.value import Count, Index, Name, NonNegative, Positive, StrEnum, Value
from planner.spec.workload import Scenario


class CertificateStatus(StrEnum):
    """`optimal`: nothing in the declared space is faster. `bounded`: at most `gap_ratio` faster."""

    OPTIMAL = "optimal"
    BOUNDED = "bounded"


class RuleKind(StrEnum):
    """Why a rule removes candidates. Only what is pruned by experience can be switched off: Options.without_rules."""

    PRUNED_BY_EXPERIENCE = "pruned_by_experience"
    DOMINATED = "dominated"
    LIMIT_OF_OPTIONS = "limit_of_options"
    CANNOT_BE_COMPUTED = "cannot_be_computed"
    CANNOT_BE_RUN_BY_TARGET = "cannot_be_run_by_target"


class PrunedRule(Value):
    """What one named rule removed from the space, and why."""

    rule: Name
    kind: RuleKind
    removed: Count
    """Candidates."""
    why: str
    examples: tuple[str, ...] = ()
    """What was removed, in the order of removal: each once, at most a hundred."""


class Certificate(Value):
    """How far the best plan can be from the optimum of the declared space, for balanced load."""

    status: CertificateStatus
    lower_bound_s: Positive
    gap_ratio: NonNegative
    """(best - lower bound) / lower bound; with batch size `max` on the time per sample."""
    space: str
    evaluated: Index
    """Plan families (degrees, micro-batches, schedule) that were solved rather than excluded by their bound."""
    pruned: dict[str, int]
    """Candidates that each named rule removed."""
    pruned_rules: tuple[PrunedRule, ...] = ()
    """The same with reasons and examples, where Options.explain_pruning asks for them."""


class ShortlistEntry(Value):
    """One plan of the shortlist, with the batch and sequence length of the question.

    In a scenario of another batch it runs more or fewer micro-batches, in one of another length the same strategies.
    """

    rank: Count
    plan: Plan
    estimate: Estimate
    """For the question under balanced load."""
    best_for: tuple[str, ...]
    """Scenarios in which no other plan of the shortlist is faster."""
    regret_ratio: NonNegative
    """Expected loss against the best plan known for each scenario, over the scenarios in which the plan fits.

    0 where it fits in none: see `out_of_memory_in`."""
    worst_regret_ratio: NonNegative = 0.0
    """The largest of these losses."""
    out_of_memory_in: tuple[str, ...] = ()
    """Scenarios whose busiest rank would run out of memory under this plan."""
    cannot_run_in: tuple[str, ...] = ()
    """Scenarios whose batch or sequence this plan does not cut evenly, or not as the target does."""
    scenario_step_time_s: dict[str, Positive] = Field(default_factory=dict)
    """Predicted step in each scenario in which the plan fits."""
    scenario_regret_ratio: dict[str, NonNegative] = Field(default_factory=dict)
    """Loss in each scenario in which the plan fits."""
    switch_cost_s: dict[str, float]
    """Predicted pause to go over to another plan of the shortlist, by plan id; no scenario changes what is moved.

    Only those that a time limit allowed."""


class BaselineResult(Value):
    """One restricted space: its best plan, or the plan that came closest to fitting, or why it holds none at all."""

    name: Name
    plan: Plan | None = None
    step_time_s: Positive | None = None
    speedup_ratio: Positive | None = None
    """How many times more tokens a second the best plan of the whole space trains on."""
    status: CertificateStatus | None = None
    """Whether the plan is proven to be the best of its space."""
    nearest_miss: NearestMiss | None = None
    impossible: str | None = None

    @model_validator(mode="after")
    def _one_outcome(self) -> BaselineResult:
        if sum(outcome is not None for outcome in (self.plan, self.nearest_miss, self.impossible)) != 1:
            raise ValueError("give exactly one of plan, nearest_miss and impossible")
        beside = {self.step_time_s is None, self.speedup_ratio is None, self.status is None}
        if beside != {self.plan is None}:
            raise ValueError("step_time_s: must be set, with speedup_ratio and status, where there is a plan")
        return self


class Shortlist(Value):
    """At most k plans; the first is the best for balanced load."""

    plans: Annotated[tuple[ShortlistEntry, ...], Field(min_length=1)]
    certificate: Certificate
    scenarios: tuple[Scenario, ...]
    """Those in which some plan fits, with probabilities scaled to sum to 1."""
    proven_in: tuple[str, ...] = ()
    """Scenarios whose best known plan is proven to be the best of the declared space, among those with micro-batches
    that also cut the batch of the question evenly. Elsewhere, a better plan may exist."""
    without_plan: tuple[str, ...] = ()
    """Scenarios that were asked for, and in which no plan fits, or can cut the batch."""
    provenance: Provenance
    search_time_s: NonNegative
    baselines: tuple[BaselineResult, ...] = ()
    """The best of restricted spaces, where they were asked for."""

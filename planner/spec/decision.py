"""What the online stage answers to a window."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.placement import Move, Placement
from planner.spec.value import Index, NonNegative, StrEnum, Value


class Action(StrEnum):
    """Stay, move experts, or go over to another plan of the shortlist."""

    KEEP = "keep"
    REBALANCE = "rebalance"
    SWITCH_PLAN = "switch_plan"


class Decision(Value):
    """One decision with its ledger. Imbalance is max over mean load of the ranks, averaged over MoE layers."""

    window: Index
    action: Action
    plan_id: str
    """The plan to run from now on."""
    placement: Placement | None = None
    """The placement to reach; None: as it is."""
    moves: tuple[Move, ...] = ()
    gain_s_per_step: NonNegative = 0.0
    cost_s: NonNegative = 0.0
    """Predicted pause of the training for the move."""
    payback_steps: NonNegative | None = None
    """Steps after which the gain has paid the cost; None where there is no gain."""
    horizon_steps: NonNegative = 0.0
    """Steps for which the forecast is expected to hold."""
    imbalance_before: Annotated[float, Field(ge=1)]
    imbalance_after: Annotated[float, Field(ge=1)]
    imbalance_bound: Annotated[float, Field(ge=1)]
    """No placement in the same slots can be better balanced than this."""
    imbalance_bounds: tuple[Annotated[float, Field(ge=1)], ...] = ()
    """The same by MoE layer; `imbalance_bound` is their mean. Empty where there is no placement."""
    reason: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _action_matches(self) -> Decision:
        if (self.action is Action.KEEP) != (self.placement is None and not self.moves):
            if self.action is not Action.SWITCH_PLAN:
                raise ValueError("placement: must be set for rebalance, and absent for keep")
        return self

"""How tokens spread over experts."""

from __future__ import annotations

from math import isclose
from typing import Annotated, Any

from pydantic import Field, model_validator

from planner.spec.value import Name, NonNegative, Value

Shares = tuple[Annotated[tuple[NonNegative, ...], Field(min_length=1)], ...]


class Workload(Value):
    """The share of tokens that each expert of each MoE layer gets.

    `expert_shares[i][e]` belongs to the i-th MoE layer and sums to 1 over e; one single row holds for all MoE
    layers; no row means balanced.
    """

    name: Name = "balanced"
    """`balanced` without shares; shares without a name are called `custom`."""
    expert_shares: Shares = ()

    @model_validator(mode="before")
    @classmethod
    def _named_custom(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("expert_shares") and "name" not in data:
            return {**data, "name": "custom"}
        return data

    @model_validator(mode="after")
    def _rows_sum_to_one(self) -> Workload:
        for number, row in enumerate(self.expert_shares):
            if not isclose(sum(row), 1.0, rel_tol=1e-6):
                raise ValueError(f"expert_shares[{number}]: must sum to 1, it sums to {sum(row):.6g}")
        return self

    def shares(self, moe_layer: int, num_experts: int) -> tuple[float, ...]:
        """The row of the `moe_layer`-th MoE layer, which has `num_experts` experts."""
        if not self.expert_shares:
            return (1.0 / num_experts,) * num_experts
        return self.expert_shares[0 if len(self.expert_shares) == 1 else moe_layer]


BALANCED = Workload()


class Scenario(Value):
    """A workload with its probability."""

    workload: Workload
    probability: Annotated[float, Field(gt=0, le=1)]

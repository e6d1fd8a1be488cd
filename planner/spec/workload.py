"""How tokens spread over experts, and the other circumstances that a plan may meet."""

from __future__ import annotations

from math import isclose
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from planner.spec.training import MAX_BATCH_SIZE
from planner.spec.value import Count, Measure, Name, NonNegative, Value

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


def _name(given: dict[str, Any]) -> str:
    """The name of a scenario with these fields: `zipf-0.3`, or `batch 512, length 8192`, or `zipf-0.3, capacity 1.25`.

    Raises nothing: what was not given is missing.
    """
    workload, capacity = given.get("workload", BALANCED), given.get("capacity_factor")
    changes = {
        "capacity": f"{capacity:g}" if isinstance(capacity, float) else None,
        "top-k": given.get("top_k"),
        "batch": given.get("global_batch_size"),
        "length": given.get("sequence_length"),
    }
    parts = [f"{word} {value}" for word, value in changes.items() if value is not None]
    parts = ["dropless", *parts] if capacity == "dropless" else parts
    return ", ".join(parts if parts and workload == BALANCED else [workload.name, *parts])


class Scenario(Value):
    """Circumstances that a plan may meet, with their probability; what is None is as in the question."""

    workload: Workload = BALANCED
    probability: Annotated[float, Field(gt=0, le=1)]
    capacity_factor: Measure | Literal["dropless"] | None = None
    """Tokens that an expert takes at most, over its even share."""
    top_k: Count | None = None
    """Experts that the gate picks for each token."""
    global_batch_size: Annotated[Count, Field(le=MAX_BATCH_SIZE)] | None = None
    sequence_length: Count | None = None
    name: Name = Field(default_factory=_name, validate_default=True)
    """Said wherever the scenario is; made of what differs from the question unless it is given."""

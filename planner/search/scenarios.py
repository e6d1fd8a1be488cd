"""Standard scenarios, for users who name none or only what they want besides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.spec.model import Model
from planner.spec.workload import BALANCED, Scenario, Workload

# Zipf exponents and probabilities. Measured max/mean loads without an auxiliary loss reach several times the mean and
# stay there; with one they stay close to balance (../docs/glossary.md, "scenario").
_SKEWS = ((0.3, 0.3), (0.8, 0.2))
_GOLDEN = (5**0.5 - 1) / 2


def standard_scenarios(model: Model) -> tuple[Scenario, ...]:
    """Balanced load, and for models with experts a mild and a strong skew."""
    if not model.moe_layers:
        return (Scenario(workload=BALANCED, probability=1.0),)
    skewed = tuple(
        Scenario(workload=zipf_workload(model, exponent), probability=probability) for exponent, probability in _SKEWS
    )
    balanced = 1.0 - sum(probability for _, probability in _SKEWS)
    return (Scenario(workload=BALANCED, probability=balanced), *skewed)


def beside_the_usual(model: Model, others: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """The standard scenarios, all together as likely as each of the others, whatever probability those had."""
    share = 1.0 / (1 + len(others))
    usual = standard_scenarios(model)
    return (
        *(each.model_copy(update={"probability": each.probability * share}) for each in usual),
        *(each.model_copy(update={"probability": share}) for each in others),
    )


def zipf_workload(model: Model, exponent: float) -> Workload:
    """Shares that fall with a power of the expert's rank; hot experts are scattered over the numbers, evenly."""
    rows = {count: _zipf(count, exponent) for count in {model.moe(layer).num_experts for layer in model.moe_layers}}
    shares = tuple(rows[model.moe(layer).num_experts] for layer in model.moe_layers)
    return Workload(name=f"zipf-{exponent:g}", expert_shares=shares[:1] if len(rows) == 1 else shares)


def _zipf(experts: int, exponent: float) -> tuple[float, ...]:
    weights = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    # The k-th hottest expert gets the k-th place of a golden-ratio sequence: neighbours in heat stand far apart.
    places = np.argsort(np.argsort((np.arange(experts) * _GOLDEN) % 1.0))
    shares = np.empty(experts)
    shares[places] = weights / weights.sum()
    return tuple(shares.tolist())

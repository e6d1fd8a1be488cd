"""Measured steps of SmartMoE's artifact, and the same questions to the planner.

Source: thu-pacman/SmartMoE-AE, logs/ at e19b3a99 (SmartMoE, USENIX ATC 2023, figure 10): GPT of 16 layers and width
2,560 with 16 or 32 experts, top-2, sequences of 1,024, micro-batches of 4, fp16, on a cluster of A100; medians of 190
steps. Measured is one plan for each gate, besides expert parallelism alone: what SmartMoE chose, and for 32 experts
also what a search that does not look at the load chose (Alpa). Not published: the loads.
"""

from __future__ import annotations

import numpy as np

from planner.cost import StepPrices
from planner.cost.balance import Floats
from planner.search import plan_from_shorthand
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from profiles.runs import Case, case_of
from profiles.runs.reading import records

MEASURED_S = {
    (16, 1.2, "pp1-dp16-ep16"): 2.7878,
    (16, 1.2, "pp2-dp8-ep8"): 1.7677,
    (16, 4.8, "pp1-dp16-ep16"): 3.8491,
    (16, 4.8, "pp4-dp4-ep2"): 2.3436,
    (32, None, "pp1-dp32-ep32"): 12.0807,
    (32, None, "pp4-dp8-ep8"): 4.5269,
    (32, None, "pp8-dp4-ep2"): 3.7925,
}
"""Seconds of a step, by experts (as many devices), capacity factor of GShard's gate, and plan. None: the naive gate,
which has neither capacity nor auxiliary loss."""
LAYERS = 16


def case(experts: int) -> Case:
    """Model, cluster and recipe of the runs with so many experts."""
    row = {
        "id": f"smartmoe-{experts}",
        "source": "SmartMoE ATC23 artifact logs (Fig.10)",
        "model": {
            "name": f"GPT-L16-H2560-{experts}MoE",
            "family": "gpt-moe(fastmoe)",
            "layers": LAYERS,
            "hidden": 2560,
            "ffn_hidden": 10240,
            "heads": 16,
            "kv_heads": 16,
            "vocab": 50304,
            "seq": 1024,
            "experts": experts,
            "top_k": 2,
            "moe_layer_freq": "all",
        },
        "hardware": {"gpu": "A100-SXM4-80GB", "gpus_per_node": 8, "gpus": experts},
        "parallel": {"tp": 1, "pp": 2, "ep": 8, "dp": experts // 2, "zero": 0, "recompute": "none"},
        "batch": {"global": 16 * experts, "micro": 4, "seq": 1024},
        "precision": "fp16",
        "measured": {},
    }
    found = case_of(records([row])[0])
    assert isinstance(found, Case), found
    return found


def plan(experts: int, words: str) -> Plan:
    """A plan of the logs."""
    asked = case(experts)
    return plan_from_shorthand(f"{words}-etp1-mbs4-zero0", asked.model, asked.cluster, asked.training)


def predicted_s(experts: int, capacity_factor: float | None, words: str, shares: Floats) -> float:
    """Our price of a step, experts in order."""
    asked = case(experts)
    training = asked.training.model_copy(update={"capacity_factor": capacity_factor})
    prices = StepPrices(asked.model, asked.cluster, training, plan(experts, words))
    return float(prices.under([(shares, None)]).seconds[0])


def context(experts: int, capacity_factor: float | None, *words: str) -> RunContext:
    """A run whose shortlist is some plans of the logs."""
    asked = case(experts)
    return RunContext(
        model=asked.model,
        cluster=asked.cluster,
        training=asked.training.model_copy(update={"capacity_factor": capacity_factor}),
        plans=tuple(plan(experts, each) for each in words),
    )


def zipf(experts: int, exponent: float) -> Floats:
    """Shares [layers, experts] by Zipf's law, of another order in every layer."""
    weights = (np.arange(experts) + 1.0) ** -exponent
    chance = np.random.default_rng(0)
    return np.stack([chance.permutation(weights / weights.sum()) for _ in range(LAYERS)])

"""Which plan is best under which load: SmartMoE's measured runs beside the prices. By hand: `python
benchmarks/bench_joint.py [RUNS.json]`, half a minute.

RUNS.json: the rows of published runs (docs/runs-format.md). The loads of these runs were not published: prices are told
for even load and for Zipf's law with three exponents, experts in order and, after a slash, in the best places found.
"""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from planner.cost import Seats, StepPrices
from planner.cost.balance import Floats
from planner.cost.migration import expert_ranks
from planner.online.placement.options import afresh
from planner.online.pricing import placement_from, served
from profiles.runs import Case, RunRecord, case_of, read_runs

RUNS = Path(__file__).parents[2] / "shared" / "data" / "published_runs.json"
EXPONENTS = (0.0, 0.4, 1.0, 1.5)


def main() -> None:
    """Print one line for each run, by question."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    records = [
        record
        for record in read_runs(path.read_bytes())
        if "smartmoe" in record.source.lower() and "shadow on" not in record.words
    ]
    table = Table("run", "measured", *(f"zipf {exponent:g}" for exponent in EXPONENTS), title="seconds of a step")
    for _, rows in groupby(sorted(records, key=_question), key=_question):
        for record in rows:
            case = _case(record)
            if case is not None:
                table.add_row(record.id, f"{record.measured.step_time_s:.2f}", *_prices(case))
        table.add_section()
    Console(width=150).print(table)


def _question(record: RunRecord) -> tuple[str, str]:
    """Device, and experts with gate and capacity as the id has them: of rows that differ in their plan alone."""
    found = re.search(r"E\d+-[a-z]+[\d.]+", record.id)
    return record.hardware.gpu, found[0] if found else record.id


def _case(record: RunRecord) -> Case | None:
    """As `case_of` has it, whatever the gate; the naive one drops no tokens."""
    found = case_of(record.model_copy(update={"notes": None}) if "gate naive" in record.words else record)
    return found if isinstance(found, Case) else None


def _prices(case: Case) -> list[str]:
    """In order / in the best places found, for each exponent."""
    model, plan = case.model, case.plan
    layers, experts = len(model.moe_layers), model.moe(model.moe_layers[0]).num_experts
    ranks, prices = expert_ranks(model, plan), StepPrices(model, case.cluster, case.training, plan)
    assert ranks is not None
    found = []
    for exponent in EXPONENTS:
        shares = _zipf(layers, experts, exponent)
        slots = afresh(served(shares, case.training), ranks, -(-experts // ranks))
        placed = placement_from(Seats(slots, ranks))
        in_order, best = prices.under([(shares, None), (shares, placed)]).seconds
        found.append(f"{in_order:.2f} / {best:.2f}")
    return found


def _zipf(layers: int, experts: int, exponent: float) -> Floats:
    """Shares [layers, experts], of another order in every layer."""
    weights = (np.arange(experts) + 1.0) ** -exponent
    chance = np.random.default_rng(0)
    return np.stack([chance.permutation(weights / weights.sum()) for _ in range(layers)])


if __name__ == "__main__":
    main()

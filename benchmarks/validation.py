"""Whether prices are as good as they should be: `benchmarks/validation.py RUNS.json [--write docs/validation.md]`.

Prints the aims of the validation beside what is reached. With --write the parts between markers of the document are
written anew (its other text is by hand and stays), and the plot as SVG beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import NamedTuple

from validation_document import read_record, sections, write_sections

from api.commands.terminal import progress_bar, show
from api.scatter import draw_scatter
from planner.cost.estimate import estimate
from planner.search.shorthand import plan_from_shorthand
from planner.spec.errors import InputError
from planner.spec.training import Training
from planner.view import Column, Table
from profiles import cluster_from_shorthand, model_preset, resolve_cluster
from profiles.runs import Summary, outcomes_of, read_runs, summarise

RECORD = Path(__file__).parents[1] / "profiles" / "fit" / "record.json"
WORST = 15
MODEL, CLUSTER, PLAN = "gpt-3-175b", "128x8:a100-sxm-80g", "tp8-pp16-dp8-vpp3-mbs1-sp-recompute:selective"
BATCH, TOKENS = 1536, 2048
REPEATS = 20
COARSE_MS = 0.5
"""In the document a time is rounded up to a multiple of this, lest it change with every run."""


class Reached(NamedTuple):
    """What the aims are held against."""

    summary: Summary
    estimate_ms: float


class Number(NamedTuple):
    """One aim: a bound, and where to find what is reached; None where no row tells."""

    what: str
    aim: float
    find: Callable[[Reached], float | None]
    show: Callable[[float], str] = lambda ratio: f"{100 * ratio:.2f} %"
    at_least: bool = False

    def row(self, reached: Reached) -> tuple[str, ...]:
        """What, aim, reached, met."""
        found = self.find(reached)
        aim = f"{'≥' if self.at_least else '≤'} {self.show(self.aim)}"
        if found is None:
            return (self.what, aim, "–", "no rows")
        met = found >= self.aim if self.at_least else found <= self.aim
        return (self.what, aim, self.show(found), "yes" if met else "no")


def _mean(line: str) -> Callable[[Reached], float | None]:
    return lambda reached: (lines := reached.summary["step_time"]).get(line) and lines[line]["mean_absolute_error"]


def _median(line: str) -> Callable[[Reached], float | None]:
    return lambda reached: (lines := reached.summary["step_time"]).get(line) and lines[line]["median_absolute_error"]


def _peak(reached: Reached) -> float | None:
    found = reached.summary["memory"]
    return found and found["median_absolute_error"]


def _called(reached: Reached) -> float | None:
    found = reached.summary["out_of_memory"]
    return found["oom_called"] / found["oom_rows"] if found["oom_rows"] else None


def _false_alarms(reached: Reached) -> float | None:
    found = reached.summary["out_of_memory"]
    return found["false_alarms"] / found["ran_rows"] if found["ran_rows"] else None


NUMBERS = (
    Number("all sources but vTrain, step time, mean error", 0.12, _mean("all sources but vTrain")),
    Number("all sources but vTrain, step time, median error", 0.08, _median("all sources but vTrain")),
    Number("vTrain, multi-node, mean error", 0.10, _mean("vTrain multi-node")),
    Number("vTrain, single-node, mean error", 0.07, _mean("vTrain single-node")),
    Number("Korthikanti et al., table 5, mean error", 0.04, _mean("Korthikanti et al., table 5")),
    Number("MoE, mean error", 0.15, _mean("MoE")),
    Number(
        "groups of at least 3 plans, mean rank correlation (Spearman)",
        0.8,
        lambda reached: reached.summary["ranking"]["mean_spearman"],
        "{:.2f}".format,
        at_least=True,
    ),
    Number(
        "measured time lost by taking the predicted best, mean",
        0.05,
        lambda reached: reached.summary["ranking"]["mean_regret_ratio"],
    ),
    Number("peak memory, median error", 0.10, _peak),
    Number("runs out of memory that are called", 0.80, _called, at_least=True),
    Number("false alarms among runs that ran", 0.05, _false_alarms),
    Number("usable rows without a price", 0.05, lambda reached: reached.summary["skipped"]["usable_ratio"]),
    Number(
        "one estimate of a plan of 96 blocks, processor time",
        2.0,
        lambda reached: reached.estimate_ms,
        "{:.1f} ms".format,
    ),
)
"""The aims for the development part of the collection."""


def numbers_table(reached: Reached) -> Table:
    """All aims beside what is reached."""
    columns = (Column("what"), Column("aim", True), Column("reached", True), Column("met"))
    return Table("", columns, tuple(number.row(reached) for number in NUMBERS))


def estimate_ms() -> float:
    """Milliseconds of processor time of one estimate of GPT-3 175B on 1,024 A100, the best of several."""
    model, cluster = model_preset(MODEL), resolve_cluster(cluster_from_shorthand(CLUSTER))
    training = Training(global_batch_size=BATCH, sequence_length=TOKENS)
    plan = plan_from_shorthand(PLAN, model, cluster, training)
    taken = []
    for _ in range(REPEATS):
        begun = time.process_time()
        estimate(model, cluster, training, plan)
        taken.append(time.process_time() - begun)
    return min(taken) * 1e3


def validation(runs: Path, document: Path | None, record_file: Path) -> None:
    """Price the runs, print the numbers, and write the document if one is named; raises InputError."""
    records = read_runs(runs)
    record = read_record(record_file) if document else {}
    with progress_bar("Pricing") as report:
        outcomes = outcomes_of(records, report)
    reached = Reached(summarise(outcomes, WORST), estimate_ms())
    show(numbers_table(reached))
    if document is not None:
        rounded = reached._replace(estimate_ms=ceil(reached.estimate_ms / COARSE_MS) * COARSE_MS)
        write_sections(document, sections(numbers_table(rounded), outcomes, reached.summary, record))
        draw_scatter(outcomes, document.with_suffix(".svg"))


def main() -> int:
    """Exit code 2, and one line on stderr, for a file that is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS.json", type=Path, help="measured runs; docs/runs-format.md says how")
    parser.add_argument("--write", metavar="FILE.md", type=Path, help="write the figures into this document")
    parser.add_argument("--record", metavar="FILE.json", type=Path, default=RECORD, help="what the last fit wrote")
    arguments = parser.parse_args()
    try:
        validation(arguments.runs, arguments.write, arguments.record)
    except InputError as error:
        print(f"{error} (docs/runs-format.md says what a RUNS file holds)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scenarios on the command line: from a file, or in short forms beside the usual ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from planner.search.question import Question, under
from planner.search.scenarios import beside_the_usual
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.workload import Scenario
from profiles.files import read_json_file

ScenariosOption = Annotated[
    Path | None,
    typer.Option(
        "--scenarios",
        metavar="FILE.json",
        help='What training may meet: {"scenarios": [{"sequence_length": 32768, "probability": 0.2}, …]}; of workload, '
        "capacity_factor, top_k, global_batch_size and sequence_length, what is left out is as asked; without any "
        "probability all are equally likely",
    ),
]
AlsoBatch = Annotated[
    list[int] | None, typer.Option("--also-batch", metavar="N", help="Also this batch size; can be repeated")
]
AlsoLength = Annotated[
    list[int] | None, typer.Option("--also-length", metavar="N", help="Also this sequence length; can be repeated")
]
AlsoCapacity = Annotated[
    list[str] | None,
    typer.Option("--also-capacity", metavar="X|dropless", help="Also this capacity factor; can be repeated"),
]
AlsoTopK = Annotated[
    list[int] | None, typer.Option("--also-top-k", metavar="N", help="Also so many experts per token; can be repeated")
]


class Also(NamedTuple):
    """Short forms: each value is a scenario that differs from the question in this alone."""

    batch: Sequence[int] | None
    length: Sequence[int] | None
    capacity: Sequence[str] | None
    top_k: Sequence[int] | None

    def scenarios(self) -> Iterator[tuple[str, Scenario]]:
        """Each with the option that it comes from; raises InputError at the option."""
        capacities = [_number(text) for text in self.capacity or ()]
        for option, field, values in (
            ("--also-batch", "global_batch_size", self.batch),
            ("--also-length", "sequence_length", self.length),
            ("--also-capacity", "capacity_factor", capacities),
            ("--also-top-k", "top_k", self.top_k),
        ):
            for value in values or ():
                try:
                    yield option, parse(Scenario, {field: value, "probability": 1.0})
                except InputError as error:
                    raise InputError.at(option, error.problems[0].message) from None


def scenarios_from(question: Question, file: Path | None, also: Also) -> tuple[Scenario, ...] | None:
    """The scenarios that the options name, or None; raises InputError that names the option."""
    short = list(also.scenarios())
    if file is not None:
        if short:
            raise InputError.at(short[0][0], "must be left out with --scenarios: write it into that file")
        return _read(file)
    for option, scenario in short:
        try:
            under(question, scenario)
        except InputError as error:
            raise InputError.at(option, error.problems[0].message) from None
    return beside_the_usual(question.model, [scenario for _, scenario in short]) if short else None


def _read(file: Path) -> tuple[Scenario, ...]:
    data = read_json_file(file, "--scenarios")
    rows = data.get("scenarios")
    if not isinstance(rows, list) or not rows or data.keys() != {"scenarios"}:
        raise InputError.at("--scenarios", f'{file} must hold {{"scenarios": [...]}} with at least one')
    given = [isinstance(row, dict) and "probability" in row for row in rows]
    if not any(given):
        rows = [{**row, "probability": 1 / len(rows)} if isinstance(row, dict) else row for row in rows]
    return parse(tuple[Scenario, ...], rows, "options.scenarios")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text

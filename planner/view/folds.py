"""Neighbouring stages that do the same, folded into one, so that a view of 64 stages stays readable.

Two stages are the same if they have as many devices, and layers of the same kinds under the same strategies.
Where they stand in the pipeline is not compared, so their memory may differ.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from planner.spec.model import Model
from planner.spec.plan import Plan, Stage
from planner.view.match import check_model
from planner.view.quantities import span


class Fold(NamedTuple):
    """One or more neighbouring stages that are the same; `first_number` counts from 0."""

    first_number: int
    stages: tuple[Stage, ...]

    @property
    def first_stage(self) -> Stage:
        """The stage that stands for all of them."""
        return self.stages[0]

    @property
    def num_stages(self) -> int:
        """How many stages are folded."""
        return len(self.stages)

    @property
    def numbers(self) -> range:
        """Numbers of the stages."""
        return range(self.first_number, self.first_number + self.num_stages)

    @property
    def name(self) -> str:
        """`stage 3`, or `stages 1–14 (×14)`."""
        if self.num_stages == 1:
            return f"stage {self.first_number}"
        return f"stages {span(self.first_number, self.numbers[-1])} (×{self.num_stages})"

    @property
    def device_span(self) -> str:
        """All devices of the stages: `16–31`."""
        last = self.stages[-1]
        return span(self.first_stage.first_device, last.first_device + last.num_devices - 1)


def fold_stages(model: Model, plan: Plan) -> tuple[Fold, ...]:
    """All stages of the plan in order, equal neighbours folded; raises InputError if the plan is for other layers."""
    check_model(model, plan)
    folds = []
    for _, group in groupby(enumerate(plan.stages), key=lambda numbered: _content(model, numbered[1])):
        members = tuple(group)
        folds.append(Fold(members[0][0], tuple(stage for _, stage in members)))
    return tuple(folds)


def single_stages(model: Model, plan: Plan) -> tuple[Fold, ...]:
    """All stages of the plan in order, each alone; raises InputError if the plan is for other layers."""
    check_model(model, plan)
    return tuple(Fold(number, (stage,)) for number, stage in enumerate(plan.stages))


def _content(model: Model, stage: Stage) -> tuple[object, ...]:
    pieces = tuple(
        tuple((model.layers[run.first_layer : run.end_layer], run.strategy) for run in piece) for piece in stage.pieces
    )
    return (stage.num_devices, pieces)

"""Neighbouring stages that do the same, folded into one, so that a view of 64 stages stays readable.

Two stages are the same if they have as many devices (of the same kind and limit, where an estimate says so), and
layers of the same kinds under the same strategies. Where they stand in the pipeline is not compared, so their memory
may differ.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan, Stage
from planner.view.match import check_model
from planner.view.quantities import span


class Fold(NamedTuple):
    """One or more neighbouring stages that are the same; `first_number` counts from 0."""

    first_number: int
    stages: tuple[Stage, ...]
    device: str | None = None
    """Which kind the devices are; None where those of all stages are equal."""

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

    @property
    def devices(self) -> str:
        """`16–31`, or `16–31: a100-sxm-80g` where stages stand on unlike devices."""
        return self.device_span + (f": {self.device}" if self.device else "")


def fold_stages(model: Model, plan: Plan, estimate: Estimate | None = None) -> tuple[Fold, ...]:
    """All stages of the plan in order, equal neighbours folded; raises InputError if the plan is for other layers."""
    singles = single_stages(model, plan, estimate)
    limits = [None] * len(singles) if estimate is None else [stage.limit_bytes for stage in estimate.stages]

    def content(fold: Fold) -> tuple[object, ...]:
        return fold.device, limits[fold.first_number], *_content(model, fold.first_stage)

    groups = [tuple(group) for _, group in groupby(singles, key=content)]
    return tuple(
        Fold(group[0].first_number, tuple(fold.first_stage for fold in group), group[0].device) for group in groups
    )


def single_stages(model: Model, plan: Plan, estimate: Estimate | None = None) -> tuple[Fold, ...]:
    """All stages of the plan in order, each alone; raises InputError if the plan is for other layers."""
    check_model(model, plan)
    kinds = [None if estimate is None else estimate.stages[number].device for number in range(len(plan.stages))]
    if len(set(kinds)) == 1:
        kinds = [None] * len(kinds)
    return tuple(Fold(number, (stage,), kinds[number]) for number, stage in enumerate(plan.stages))


def _content(model: Model, stage: Stage) -> tuple[object, ...]:
    pieces = tuple(
        tuple((model.layers[run.first_layer : run.end_layer], run.strategy) for run in piece) for piece in stage.pieces
    )
    return (stage.num_devices, pieces)

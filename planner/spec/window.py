"""Token counts over consecutive steps of a run."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from planner.spec.placement import Placement
from planner.spec.value import Count, Index, Measure, MeasureOrZero, Value

Tokens = Annotated[int, Field(ge=0, lt=2**53)]
Row = Annotated[tuple[Tokens, ...], Field(min_length=1, fail_fast=True)]
"""Of one layer. The first wrong number is enough: a window has tens of thousands."""


class Window(Value):
    """`tokens[i][e]`: tokens that expert e of the i-th MoE layer got in steps first_step … first_step+num_steps-1."""

    index: Index
    first_step: Index
    num_steps: Count
    tokens: Annotated[tuple[Row, ...], Field(min_length=1, fail_fast=True)]
    step_time_s: Measure | None = None
    """Mean measured time of a step."""
    plan_id: str | None = None
    """The plan in force when the window is handed over; None: the one that was decided last."""
    placement: Placement | None = None
    """The placement in force when the window is handed over; None: the one that was decided last."""
    placed_step: Index | None = None
    """The first step under that plan and placement; None: in force through the whole window. It may come after the
    window: what was decided is carried out before the window is handed over."""
    pause_s: MeasureOrZero | None = None
    """Measured: how long what was decided and led to this placement, moves or another split, held training up; None:
    nothing since the last window, or not measured."""

    @model_validator(mode="after")
    def _counted_something(self) -> Window:
        for number, row in enumerate(self.tokens):
            if sum(row) == 0:
                raise ValueError(f"tokens[{number}]: no expert got a token; a window covers at least one step")
        return self

    @cached_property
    def counts(self) -> NDArray[np.float64]:
        """`tokens` as an array [layers, experts], not to be written to; all layers must have as many experts."""
        return np.array(self.tokens, dtype=np.float64)

    @property
    def settled_steps(self) -> int:
        """Steps of the window that ran under the reported plan and placement."""
        if self.placed_step is None:
            return self.num_steps
        return min(max(self.first_step + self.num_steps - self.placed_step, 0), self.num_steps)

    @property
    def begun_step(self) -> int:
        """The first step, as far as the window tells, under the reported plan and placement."""
        return self.first_step if self.placed_step is None else self.placed_step

"""How far measured steps were from predicted ones, for runs that are like the one in question."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.value import Count, Positive, Value


class ErrorBand(Value):
    """Measured over predicted step time in a class of runs: its 10th and its 90th percentile."""

    low_ratio: Positive
    high_ratio: Positive
    rows: Count
    """Measured runs of the class."""
    basis: Annotated[str, Field(min_length=1)]
    """The class in words, such as `74 runs of dense models on a100-sxm-80g with megatron-deepspeed`."""

    @model_validator(mode="after")
    def _low_comes_first(self) -> ErrorBand:
        if self.low_ratio > self.high_ratio:
            raise ValueError(f"low_ratio: must be at most high_ratio, {self.high_ratio}")
        return self


class ErrorBands(Value):
    """What is known of a device with a stack, by kind of model."""

    dense: ErrorBand
    moe: ErrorBand


class StepTimeBand(Value):
    """Where the step time lies if the error is one that 10 to 90 % of comparable runs had.

    Both ends are on one side of the prediction where predictions for the class are mostly too fast or too slow.
    """

    step_time_low_s: Positive
    step_time_high_s: Positive
    rows: Count
    basis: Annotated[str, Field(min_length=1)]

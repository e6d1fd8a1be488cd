"""A plan: stages with their layers and strategies, micro-batches, schedule. Its id is the hash of its content."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, computed_field, model_validator

from planner.spec.strategy import Recompute, Sharding, Strategy
from planner.spec.value import Count, Index, StrEnum, Value, content_id


class ScheduleKind(StrEnum):
    """Order of forward and backward passes on a stage."""

    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved"
    GPIPE = "gpipe"
    ZERO_BUBBLE = "zero_bubble"


class Schedule(Value):
    """`interleaved` gives each stage `virtual_stages` separate pieces of the model (arXiv 2104.04473).

    `zero_bubble` is ZB-H1 (arXiv 2401.10241): 1F1B that puts off weight gradients, in the memory of its first stage.
    """

    kind: ScheduleKind = ScheduleKind.ONE_F_ONE_B
    virtual_stages: Count = 1

    @model_validator(mode="after")
    def _interleaved_has_pieces(self) -> Schedule:
        if (self.kind is ScheduleKind.INTERLEAVED) != (self.virtual_stages > 1):
            raise ValueError("virtual_stages: must be at least 2 for interleaved, and 1 for every other schedule")
        return self


class StageRun(Value):
    """`num_layers` consecutive layers under one strategy."""

    first_layer: Index
    num_layers: Count
    strategy: Strategy

    @property
    def end_layer(self) -> int:
        """The layer after the last."""
        return self.first_layer + self.num_layers


class Stage(Value):
    """Consecutive devices and the layers that they hold, in order."""

    first_device: Index
    num_devices: Count
    runs: Annotated[tuple[StageRun, ...], Field(min_length=1, fail_fast=True)]

    @model_validator(mode="after")
    def _strategies_fill_stage(self) -> Stage:
        for number, run in enumerate(self.runs):
            if run.strategy.num_devices != self.num_devices:
                raise ValueError(
                    f"runs[{number}]: the axes multiply to {run.strategy.num_devices} devices, "
                    f"the stage has {self.num_devices}"
                )
        for number, (run, following) in enumerate(pairwise(self.runs)):
            if run.end_layer == following.first_layer and run.strategy == following.strategy:
                raise ValueError(f"runs[{number + 1}]: goes on with the strategy of the run before; write one run")
        return self

    @cached_property
    def pieces(self) -> tuple[tuple[StageRun, ...], ...]:
        """The runs grouped into unbroken stretches of layers: one, or `virtual_stages` of them."""
        pieces: list[list[StageRun]] = []
        for run in self.runs:
            if pieces and pieces[-1][-1].end_layer == run.first_layer:
                pieces[-1].append(run)
            else:
                pieces.append([run])
        return tuple(tuple(piece) for piece in pieces)

    def strategies(self) -> tuple[tuple[int, Strategy], ...]:
        """(layer, strategy) for each layer of the stage, in order."""
        return tuple((layer, run.strategy) for run in self.runs for layer in range(run.first_layer, run.end_layer))


class Plan(Value):
    """One complete hybrid plan."""

    schema_version: Literal[1] = 1
    global_batch_size: Count
    sequence_length: Count
    micro_batch_size: Count
    """Samples per micro-batch and data-parallel rank of the first layer."""
    num_micro_batches: Count
    schedule: Schedule = Schedule()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def _derived_fields_agree(cls, data: Any) -> Any:
        """Accept what `model_dump` wrote: `id` is checked against the content, `summary` is made anew."""
        if not isinstance(data, dict) or not {"id", "summary"} & data.keys():
            return data
        rest = {key: value for key, value in data.items() if key not in ("id", "summary")}
        if "id" in data and cls.model_validate(rest).id != data["id"]:
            raise ValueError("id: does not match the content of the plan; leave it out after an edit")
        return rest

    @model_validator(mode="after")
    def _complete(self) -> Plan:
        self._check_devices()
        self._check_layers()
        self._check_batch()
        return self

    def _check_devices(self) -> None:
        expected = 0
        for number, stage in enumerate(self.stages):
            if stage.first_device != expected:
                raise ValueError(f"stages[{number}].first_device: must be {expected}, right after the stage before")
            expected += stage.num_devices
        if self.schedule.virtual_stages > 1 and len(self.stages) == 1:
            raise ValueError("schedule: interleaving needs at least 2 stages")
        if self.schedule.virtual_stages > 1 and self.num_micro_batches % len(self.stages):
            raise ValueError(
                f"num_micro_batches: interleaving goes in rounds of {len(self.stages)} stages, so that must divide the "
                f"{self.num_micro_batches} micro-batches"
            )

    def _check_layers(self) -> None:
        expected = 0
        for number, stage in enumerate(self.stages):
            if len(stage.pieces) != self.schedule.virtual_stages:
                raise ValueError(
                    f"stages[{number}]: must hold {self.schedule.virtual_stages} unbroken stretches of layers, "
                    f"holds {len(stage.pieces)}"
                )
        for piece in range(self.schedule.virtual_stages):
            for number, stage in enumerate(self.stages):
                if stage.pieces[piece][0].first_layer != expected:
                    raise ValueError(f"stages[{number}]: layer {expected} must follow here")
                expected = stage.pieces[piece][-1].end_layer

    def _check_batch(self) -> None:
        first = self.stages[0].runs[0].strategy.data_parallel_size
        total = self.micro_batch_size * first * self.num_micro_batches
        if total != self.global_batch_size:
            raise ValueError(
                f"global_batch_size: must be micro_batch_size x data-parallel size x num_micro_batches = "
                f"{self.micro_batch_size} x {first} x {self.num_micro_batches} = {total}"
            )
        for number, stage in enumerate(self.stages):
            for run in stage.runs:
                if self.samples_per_micro_batch % run.strategy.data_parallel_size:
                    raise ValueError(
                        f"stages[{number}]: data-parallel size {run.strategy.data_parallel_size} must divide the "
                        f"{self.samples_per_micro_batch} samples of a micro-batch"
                    )

    @cached_property
    def samples_per_micro_batch(self) -> int:
        """Samples of one micro-batch over all data-parallel ranks."""
        return self.global_batch_size // self.num_micro_batches

    @cached_property
    def num_layers(self) -> int:
        """Layers of all stages."""
        return sum(run.num_layers for stage in self.stages for run in stage.runs)

    @cached_property
    def num_devices(self) -> int:
        """Devices of all stages."""
        return sum(stage.num_devices for stage in self.stages)

    @cached_property
    def main_strategy(self) -> Strategy:
        """The strategy with most layers; of equals the first that spreads experts, or else the first."""
        strategies = self.distinct_strategies
        return max(strategies, key=lambda s: (self._layers_under(s), s.experts is not None, -strategies.index(s)))

    @cached_property
    def distinct_strategies(self) -> tuple[Strategy, ...]:
        """All strategies in order, each once."""
        objects = {id(run.strategy): run.strategy for stage in self.stages for run in stage.runs}
        return tuple(dict.fromkeys(objects.values()))

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def id(self) -> str:
        """Hash of the canonical JSON of everything but `id` and `summary`.

        Fields that strategies got later count only where they are set: plans keep the ids that they had before.
        """
        content = self.model_dump(mode="json", exclude={"id", "summary"})
        for stage in content["stages"]:
            for run in stage["runs"]:
                if not run["strategy"]["offload"]:
                    del run["strategy"]["offload"]
        return content_id(content)

    @computed_field  # type: ignore[prop-decorator]
    @cached_property
    def summary(self) -> str:
        """One line for people, of the strategy with most layers: `pp4 · tp2 dp8 zero1 · ep8 · selective · mbs1 x64`."""
        strategies = self.distinct_strategies
        shown = self.main_strategy
        parts = [f"pp{len(self.stages)}{_virtual(self.schedule)}", _degrees(shown)]
        experts = shown.experts or next((s.experts for s in strategies if s.experts), None)
        if experts:
            parts.append(_expert_degrees(experts.model_dump()))
        if shown.recompute is not Recompute.NONE:
            parts.append(shown.recompute.value)
        parts.append(f"mbs{self.samples_per_micro_batch // shown.data_parallel_size} x{self.num_micro_batches}")
        if len(strategies) > 1:
            parts.append(f"{len(strategies)} strategies")
        return " · ".join(parts)

    def _layers_under(self, strategy: Strategy) -> int:
        return sum(run.num_layers for stage in self.stages for run in stage.runs if run.strategy == strategy)


_ZERO = {Sharding.NONE: "", Sharding.OPTIMIZER: " zero1", Sharding.GRADIENTS: " zero2", Sharding.FULL: " zero3"}


def _virtual(schedule: Schedule) -> str:
    if schedule.kind is ScheduleKind.INTERLEAVED:
        return f" vpp{schedule.virtual_stages}"
    return {ScheduleKind.GPIPE: " gpipe", ScheduleKind.ZERO_BUBBLE: " zb"}.get(schedule.kind, "")


def _degrees(strategy: Strategy) -> str:
    axes = " ".join(f"{axis.kind.value}{axis.degree}" for axis in reversed(strategy.axes)) or "dp1"
    return (
        axes
        + (" sp" if strategy.sequence_parallel else "")
        + _ZERO[strategy.sharding]
        + (" offload" if strategy.offload else "")
    )


def _expert_degrees(sizes: dict[str, int]) -> str:
    names = {"expert_parallel_size": "ep", "expert_tensor_parallel_size": "etp", "expert_data_parallel_size": "edp"}
    shown = [f"{names[key]}{size}" for key, size in sizes.items() if size > 1 or names[key] == "ep"]
    return " ".join(shown)

"""From the numbers of a solution back to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from planner.search.families import Family
from planner.search.places import places
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.plan import Plan, Stage
from planner.spec.strategy import Strategy
from planner.spec.stretches import Stretches, runs_of
from planner.spec.training import Training


def assemble(
    cluster: AnyCluster,
    training: Training,
    family: Family,
    stages: Sequence[Stretches],
    strategies: Sequence[Sequence[Strategy]],
) -> Plan:
    """The plan with these stretches of layers on each stage, and for each stage one strategy per layer, in order."""
    first = strategies[0][0]
    return Plan(
        global_batch_size=family.global_batch_size,
        sequence_length=training.sequence_length,
        micro_batch_size=family.samples // first.data_parallel_size,
        num_micro_batches=family.num_micro_batches,
        schedule=family.schedule,
        stages=tuple(
            Stage(first_device=place.first_device, num_devices=place.num_devices, runs=runs_of(stretches, chosen))
            for place, stretches, chosen in zip(places(cluster, family), stages, strategies, strict=True)
        ),
    )

"""Where the stages of a family stand: consecutive devices, in the order of their numbers."""

from __future__ import annotations

from typing import NamedTuple

from planner.search.families import Family
from planner.spec.mixed_cluster import AnyCluster

ACROSS_RULE = "pipeline-across-slow-links"
"""Stages are consecutive devices, so that what joins far devices carries the messages of the pipeline."""


class Place(NamedTuple):
    """The devices of a stage."""

    group: int
    """Which group of the cluster; 0 where devices are equal."""
    first_device: int
    num_devices: int


def places(cluster: AnyCluster, family: Family) -> tuple[Place, ...]:
    """Of each stage: the groups one after the other, each in equal stages."""
    found = []
    cuts = family.cut or (family.num_stages,)
    for number, (group, first, stages) in enumerate(zip(cluster.groups, cluster.first_devices, cuts, strict=True)):
        devices = group.num_devices // stages
        found += [Place(number, first + stage * devices, devices) for stage in range(stages)]
    return tuple(found)

"""Clusters of unlike devices, or of nodes of unlike sizes: groups of equal nodes under one link."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate

from pydantic import model_validator

from planner.spec.cluster import Cluster, Level, Link, Provenance
from planner.spec.error_band import ErrorBands
from planner.spec.value import Value

_WEAKEST_FIRST = (Provenance.DATASHEET, Provenance.FITTED, Provenance.MEASURED)


class MixedCluster(Value):
    """Groups, each a cluster of equal devices with its own links, stack and limit; numbered group after group.

    A stage of a plan lies in one group. What `Cluster` says of one group by the same name, this says of all.
    """

    groups: tuple[Cluster, ...]
    inter_group: Link
    """Between any two devices of different groups."""
    error_bands: ErrorBands | None = None
    """The widest of what is known of the groups, none of which was measured beside another; None: not looked up."""

    @model_validator(mode="after")
    def _several(self) -> MixedCluster:
        if len(self.groups) < 2:
            raise ValueError("groups: must be at least two; one alone is a cluster itself")
        return self

    @cached_property
    def num_devices(self) -> int:
        """All devices."""
        return sum(group.num_devices for group in self.groups)

    @cached_property
    def first_devices(self) -> tuple[int, ...]:
        """Number of the first device of each group."""
        return (0, *accumulate(group.num_devices for group in self.groups[:-1]))

    def group_number(self, first_device: int, num_devices: int = 1) -> int:
        """Which group consecutive devices lie in; raises ValueError if they lie in several, or beyond the end."""
        number = bisect_right(self.first_devices, first_device) - 1
        if first_device + num_devices > self.first_devices[number] + self.groups[number].num_devices:
            raise ValueError(f"must lie in one group of the cluster: {self.describe()}")
        return number

    def group_of(self, first_device: int, num_devices: int = 1) -> Cluster:
        """The group of a stage; raises ValueError if there is no single one."""
        return self.groups[self.group_number(first_device, num_devices)]

    def link_between(self, one: int, other: int) -> Link:
        """The link that joins two devices, by their numbers: of the nearest tier of their group, or between groups."""
        number = self.group_number(one)
        if number != self.group_number(other):
            return self.inter_group
        first = self.first_devices[number]
        return self.groups[number].link_between(one - first, other - first)

    def describe(self) -> str:
        """`devices 0–7 a100-sxm-80g, devices 8–15 v100-sxm2-32g`."""
        return ", ".join(
            f"devices {first}–{first + group.num_devices - 1} {group.device.name}"
            for first, group in zip(self.first_devices, self.groups, strict=True)
        )

    @property
    def levels(self) -> tuple[Level, ...]:
        """What any two devices can count on: one tier, as narrow as the narrowest link and as late as the latest."""
        links = [self.inter_group, *(level.link for group in self.groups for level in group.levels)]
        pair = min(link.pair_bytes_per_s for link in links)
        least = min(link.bytes_per_s for link in links)
        narrowest = Link(
            bandwidth_bytes_per_s=least,
            latency_s=max(link.latency_s for link in links),
            pair_bandwidth_bytes_per_s=pair if pair < least else None,
        )
        return (Level(name="cluster", num_devices=self.num_devices, link=narrowest),)

    @property
    def provenance(self) -> Provenance:
        """Of the numbers that prices are made of: the weakest of the groups'."""
        return min((group.provenance for group in self.groups), key=_WEAKEST_FIRST.index)


AnyCluster = Cluster | MixedCluster

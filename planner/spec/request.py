"""What a user asks for: names and inline objects, before `profiles` resolves them to values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from planner.spec.cluster import Device, Level, Link
from planner.spec.model import Model
from planner.spec.plan import ScheduleKind
from planner.spec.stack import Stack
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import Training
from planner.spec.value import Count, Index, Measure, MeasureOrZero, Name, Positive, StrEnum, Value
from planner.spec.workload import Scenario

MAX_DEVICES = 2**20
"""More than any cluster has; what is larger is a slip, and would only cost time and memory."""
AxisName = Literal["dp", "sdp", "tp", "pp", "ep", "cp", "sp", "ulysses"]
MAX_TIERS = 64
"""Of links."""
MAX_GROUPS = 64
"""Of unlike devices."""
MAX_LINKS = 2**16
"""Of a graph."""
MAX_SCENARIOS = 64
RuleName = Literal[
    "dp-and-sdp-apart",
    "tp-on-nearest-devices",
    "cp-inside-dp",
    "ulysses-inside-cp",
    "tp-within-node",
    "sequence-parallel-where-possible",
    "1f1b-instead-of-gpipe",
    "interleaving-on-equal-devices",
]
USUAL_AXES: tuple[AxisName, ...] = ("dp", "sdp", "tp", "pp", "ep", "cp", "sp")
"""What is searched unless asked otherwise."""
ALL_AXES: tuple[AxisName, ...] = (*USUAL_AXES, "ulysses")


Chosen = TypeVar("Chosen")
AtLeastOne = Annotated[tuple[Chosen, ...], Field(min_length=1)]
"""Of what a search may use: nothing at all leaves no plan."""


class Target(StrEnum):
    """The framework that is to run the plan; `any`: not said."""

    ANY = "any"
    MEGATRON = "megatron"
    TORCHTITAN = "torchtitan"
    DEEPSPEED = "deepspeed"


class ModelRequest(Value):
    """Exactly one of a preset's name, the content of a Hugging Face config.json, or explicit layers."""

    preset: Name | None = None
    hf_config: dict[str, Any] | None = None
    spec: Model | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelRequest:
        given = [self.preset is not None, self.hf_config is not None, self.spec is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of preset, hf_config and spec")
        return self


class Connection(Value):
    """One edge of a graph of links: a device is a number from 0 on, a switch is a name."""

    a: Index | Name
    b: Index | Name
    bandwidth_bytes_per_s: Measure
    """Per direction, of the whole connection; several between the same two add up."""
    latency_s: MeasureOrZero

    @model_validator(mode="after")
    def _joins_two(self) -> Connection:
        if self.a == self.b:
            raise ValueError(f"b: must be another end than a, {self.a!r}")
        return self


Links = Annotated[tuple[Connection, ...], Field(max_length=MAX_LINKS, fail_fast=True)]


class ClusterRequest(Value):
    """A cluster with its device by name or inline; links default to the usual node of the device."""

    nodes: Count
    devices_per_node: Count
    device: Name | Device
    intra_node: Link | None = None
    inter_node: Link | None = None
    levels: Annotated[tuple[Level, ...], Field(max_length=MAX_TIERS)] | None = None
    """All tiers of links, nearest first; instead of intra_node and inter_node."""
    links: Links | None = None
    """A graph of links in which the tiers are found; instead of all of the above."""
    stack: Name | Stack | None = None
    """The software, by name or inline; None: that of `options.target`, or the one that is usual today."""
    memory_limit_bytes: Count | None = None

    @model_validator(mode="after")
    def _links_once(self) -> ClusterRequest:
        if self.levels is not None and (self.intra_node or self.inter_node):
            raise ValueError("levels: give either levels or intra_node and inter_node")
        if self.links is not None and (self.intra_node or self.inter_node or self.levels):
            raise ValueError("links: give either links or levels, or intra_node and inter_node")
        if (total := self.nodes * self.devices_per_node) > MAX_DEVICES:
            raise ValueError(f"nodes: a cluster may have at most {MAX_DEVICES} devices, this has {total}")
        return self


class MixedClusterRequest(Value):
    """A cluster of several groups, each of equal nodes; its devices are numbered group after group."""

    groups: Annotated[tuple[ClusterRequest, ...], Field(max_length=MAX_GROUPS)]
    inter_group: Link | None = None
    """Between devices of different groups; None: the narrowest of the groups' networks between nodes."""
    links: Links | None = None
    """A graph of links between all devices, numbered group after group; instead of any links of the groups."""

    @model_validator(mode="after")
    def _several_and_not_too_large(self) -> MixedClusterRequest:
        if len(self.groups) < 2:
            raise ValueError("groups: must be at least two; one alone is written without groups")
        own = any(group.intra_node or group.inter_node or group.levels or group.links for group in self.groups)
        if self.links is not None and (own or self.inter_group):
            raise ValueError("links: give either links of the cluster, or links of its groups and inter_group")
        if (total := sum(group.nodes * group.devices_per_node for group in self.groups)) > MAX_DEVICES:
            raise ValueError(f"groups: a cluster may have at most {MAX_DEVICES} devices, this has {total}")
        return self


def _form(value: object) -> str:
    """Which of the two forms a request has, by a word that is no field of either."""
    mixed = isinstance(value, MixedClusterRequest) or (isinstance(value, Mapping) and "groups" in value)
    return "mixed" if mixed else "equal"


AnyClusterRequest = Annotated[
    Annotated[ClusterRequest, Tag("equal")] | Annotated[MixedClusterRequest, Tag("mixed")], Discriminator(_form)
]


class Options(Value):
    """What the search may do."""

    shortlist_size: Annotated[int, Field(strict=True, ge=1, le=64)] = 8
    target: Target = Target.ANY
    """Only plans that this framework can run."""
    axes: AtLeastOne[AxisName] = USUAL_AXES
    sharding: AtLeastOne[Sharding] = tuple(Sharding)
    recompute: AtLeastOne[Recompute] = tuple(Recompute)
    schedules: AtLeastOne[ScheduleKind] = (ScheduleKind.ONE_F_ONE_B, ScheduleKind.INTERLEAVED)
    offload: bool = False
    """Whether layers may keep their optimizer state on the host, which updates the weights."""
    without_rules: tuple[RuleName, ...] = ()
    """Rules that prune the space by experience, switched off: a larger space, and a longer search."""
    explain_pruning: bool = False
    """Let the certificate say why each rule removed what, with examples."""
    uniform: bool = False
    """Only plans with one strategy for all blocks; the embedding and the head follow."""
    max_virtual_stages: Count = 8
    max_micro_batch_size: Count = 256
    """Samples per micro-batch and data-parallel rank, at most."""
    scenarios: Annotated[tuple[Scenario, ...], Field(max_length=MAX_SCENARIOS)] | None = None
    """What the training may meet, with probabilities that sum to 1; None: balanced load and standard skews."""
    effort_limit: Count = 20_000_000_000
    """Comparisons of partial choices after which the best plan so far is returned with its bound; ten to thirty seconds
    of one core, prices not counted. Unlike a time limit it gives the same answer on every machine."""
    time_limit_s: Positive | None = None
    """Wall-clock time after which the best plan so far is returned with its bound, within about a second. While no plan
    is known the search goes on; scenarios that it has not come to are left to the plans that are known."""

    @model_validator(mode="after")
    def _scenarios_sum_to_one(self) -> Options:
        if self.scenarios is not None:
            total = sum(scenario.probability for scenario in self.scenarios)
            if abs(total - 1) > 1e-6:
                raise ValueError(f"scenarios: probabilities must sum to 1, they sum to {total:.6g}")
            names = [scenario.name for scenario in self.scenarios]
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise ValueError(f"scenarios[{number}].name: must be a name of its own, {name!r} stands before it")
        return self


class SearchRequest(Value):
    """The body of a search."""

    model: ModelRequest
    cluster: AnyClusterRequest
    training: Training
    options: Options = Options()

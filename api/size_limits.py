"""How large a question this service takes. The planner's own bounds are wider: it may run on a machine of its own."""

from __future__ import annotations

from typing import NamedTuple

from api.resolution import ProfileNamed, cluster_of, model_of
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import ClusterRequest, MixedClusterRequest, ModelRequest, Options, Target


class SizeLimits(NamedTuple):
    """The settings of these names. Each method raises InputError that names the field."""

    max_layers: int
    max_experts: int
    max_experts_in_all: int
    max_devices: int
    max_links: int
    max_scenarios: int

    def model_of(self, request: ModelRequest) -> Model:
        """The model, if it has not too many layers, nor experts in one of them or in all."""
        model = model_of(request)
        form = "preset" if request.preset is not None else "hf_config" if request.hf_config is not None else "spec"
        layers = sum(run.num_layers for run in model.runs)
        experts = [model.moe(layer).num_experts for layer in model.moe_layers]
        _check(f"model.{form}", layers, "layers", self.max_layers)
        _check(f"model.{form}", max(experts, default=0), "experts in a layer", self.max_experts)
        _check(f"model.{form}", sum(experts), "experts in all", self.max_experts_in_all)
        return model

    def cluster_of(
        self,
        request: ClusterRequest | MixedClusterRequest,
        profile_named: ProfileNamed,
        target: Target = Target.ANY,
    ) -> AnyCluster:
        """The cluster, if it has not too many devices, nor links; counted before the links are looked at."""
        is_mixed = isinstance(request, MixedClusterRequest)
        groups = request.groups if isinstance(request, MixedClusterRequest) else (request,)
        devices = sum(group.nodes * group.devices_per_node for group in groups)
        links = len(request.links or ()) + (sum(len(group.links or ()) for group in groups) if is_mixed else 0)
        _check("cluster.groups" if is_mixed else "cluster.nodes", devices, "devices in all", self.max_devices)
        _check("cluster.links", links, "links", self.max_links)
        return cluster_of(request, profile_named, target)

    def check_options(self, options: Options) -> None:
        """The number of scenarios."""
        _check("options.scenarios", len(options.scenarios or ()), "scenarios", self.max_scenarios)


def _check(field: str, number: int, what: str, most: int) -> None:
    if number > most:
        raise InputError.at(field, f"must not have more than {most} {what} on this service, got {number}")

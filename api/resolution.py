"""From what a user asks for to the values that the planner works on, with fields named from the whole request."""

from __future__ import annotations

from collections.abc import Callable

from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import ClusterRequest, MixedClusterRequest, ModelRequest, Target
from profiles import MeasuredProfile, on_measured_device, resolve_cluster, resolve_model

ProfileNamed = Callable[[str], MeasuredProfile | None]
"""The measured profile of a name; None if there is none."""


def no_profiles(name: str) -> MeasuredProfile | None:
    """Where devices are presets alone."""
    return None


def resolve(
    model: ModelRequest,
    cluster: ClusterRequest | MixedClusterRequest,
    profile_named: ProfileNamed = no_profiles,
    target: Target = Target.ANY,
) -> tuple[Model, AnyCluster]:
    """Model and cluster; raises InputError under `model` and `cluster`."""
    return model_of(model), cluster_of(cluster, profile_named, target)


def model_of(request: ModelRequest) -> Model:
    """The model; raises InputError under `model`."""
    try:
        return resolve_model(request)
    except InputError as error:
        raise error.under("model") from None


def cluster_of(
    request: ClusterRequest | MixedClusterRequest,
    profile_named: ProfileNamed = no_profiles,
    target: Target = Target.ANY,
) -> AnyCluster:
    """The cluster, its devices measured profiles or presets, its stack the target's unless it names one.

    Raises InputError under `cluster`.
    """
    try:
        return resolve_cluster(_with_profiles(request, profile_named), target)
    except InputError as error:
        raise error.under("cluster") from None


def _with_profiles(
    request: ClusterRequest | MixedClusterRequest, profile_named: ProfileNamed
) -> ClusterRequest | MixedClusterRequest:
    if isinstance(request, ClusterRequest):
        return _with_profile(request, profile_named)
    groups = []
    for number, group in enumerate(request.groups):
        try:
            groups.append(_with_profile(group, profile_named))
        except InputError as error:
            raise error.under(f"groups[{number}]") from None
    return request.model_copy(update={"groups": tuple(groups)})


def _with_profile(request: ClusterRequest, profile_named: ProfileNamed) -> ClusterRequest:
    profile = profile_named(request.device) if isinstance(request.device, str) else None
    return request if profile is None else on_measured_device(request, profile)

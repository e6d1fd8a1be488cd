"""From what a user asks for to the values that the planner works on, with fields named from the whole request."""

from __future__ import annotations

from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import ClusterRequest, MixedClusterRequest, ModelRequest
from profiles import resolve_cluster, resolve_model


def resolve(model: ModelRequest, cluster: ClusterRequest | MixedClusterRequest) -> tuple[Model, AnyCluster]:
    """Model and cluster; raises InputError under `model` and `cluster`."""
    return model_of(model), cluster_of(cluster)


def model_of(request: ModelRequest) -> Model:
    """The model; raises InputError under `model`."""
    try:
        return resolve_model(request)
    except InputError as error:
        raise error.under("model") from None


def cluster_of(request: ClusterRequest | MixedClusterRequest) -> AnyCluster:
    """The cluster; raises InputError under `cluster`."""
    try:
        return resolve_cluster(request)
    except InputError as error:
        raise error.under("cluster") from None

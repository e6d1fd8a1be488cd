"""How far off a price may be: the errors of comparable runs around it."""

from __future__ import annotations

from planner.spec.error_band import StepTimeBand
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model


def error_band(model: Model, cluster: AnyCluster, step: float) -> StepTimeBand | None:
    """The predicted step under the errors of runs of this kind of model."""
    if cluster.error_bands is None:
        return None
    band = cluster.error_bands.moe if model.moe_layers else cluster.error_bands.dense
    return StepTimeBand(
        step_time_low_s=step * band.low_ratio,
        step_time_high_s=step * band.high_ratio,
        rows=band.rows,
        basis=band.basis,
    )

"""What DeepSpeed's configuration cannot say of a plan or a recipe, as rules with names.

Source: DeepSpeed 0.19.8: `runtime/config.py` (removed keys), `runtime/engine.py` (`_do_optimizer_sanity_check`),
`module_inject/auto_ep_config.py`, `moe/layer.py`.
"""

from __future__ import annotations

from planner.export.job import Job
from planner.export.rules import ExportRule, gradients_as_weights, nodes_of_one_size
from planner.spec.cluster import Precision
from planner.spec.strategy import AxisKind, Sharding


def deepspeed_without_mics(job: Job) -> str | None:
    """ "MiCS ZeRO-3 sharding has been removed": shards are not replicated since 0.19.8."""
    if job.first.degree(AxisKind.SDP) > 1:
        return "axes must not replicate shards (dp beside sdp) for DeepSpeed 0.19.8, which has no MiCS"
    return None


def deepspeed_gradients_under_zero(job: Job) -> str | None:
    """Without ZeRO "unsupported mix of model_dtype and grad_accum_dtype"; ZeRO-1 over one rank is no ZeRO."""
    plain = job.sharding is Sharding.NONE and job.first.data_parallel_size > 1
    if plain and mixed_gradients(job):
        return (
            f"gradient_precision must be {job.training.precision} where nothing is sharded for DeepSpeed, or sharding "
            "must be optimizer"
        )
    return None


def deepspeed_dropless_under_zero_3(job: Job) -> str | None:
    """AutoEP, which alone has experts under ZeRO-3, drops no token."""
    if job.experts and job.sharding is Sharding.FULL and job.training.capacity_factor is not None:
        return "capacity_factor must be left out for DeepSpeed's experts under ZeRO-3"
    return None


def mixed_gradients(job: Job) -> bool:
    """Whether gradients are summed in other numbers than weights have."""
    precision = job.training.precision
    return precision is not Precision.FP32 and job.training.gradient_precision is not precision


DEEPSPEED_EXPORT_RULES: tuple[ExportRule, ...] = (
    nodes_of_one_size,
    gradients_as_weights,
    deepspeed_without_mics,
    deepspeed_gradients_under_zero,
    deepspeed_dropless_under_zero_3,
)

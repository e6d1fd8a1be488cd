"""What DeepSpeed's configuration cannot say of a plan or a recipe, as rules with names.

Source: DeepSpeed 0.19.8: `module_inject/auto_ep_config.py`, `moe/layer.py`.
"""

from __future__ import annotations

from planner.export.job import Job
from planner.export.rules import ExportRule, gradients_as_weights, nodes_of_one_size
from planner.spec.cluster import Precision
from planner.spec.strategy import Sharding


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
    deepspeed_dropless_under_zero_3,
)

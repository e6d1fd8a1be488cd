"""What torchtitan's trainer cannot be told of a model or a recipe, as rules with names.

Source: torchtitan v0.2.2 (`config/job_config.py`, `components/optimizer.py`), 0.3.0 (`config/configs.py`).
"""

from __future__ import annotations

from planner.export.job import Job
from planner.export.rules import ExportRule, decoder_only, nodes_of_one_size
from planner.spec.training import AttentionKernel, Optimizer


def torchtitan_adam(job: Job) -> str | None:
    """`optimizer.name` is Adam or AdamW."""
    return None if job.training.optimizer is Optimizer.ADAM else "the optimizer must be adam for torchtitan"


def torchtitan_dropless(job: Job) -> str | None:
    """Its experts take every token."""
    if job.model.moe_layers and job.training.capacity_factor is not None:
        return "capacity_factor must be left out for torchtitan, whose experts drop no token"
    return None


def torchtitan_without_dropout(job: Job) -> str | None:
    """Its models have none."""
    return "dropout must be false for torchtitan" if job.training.dropout else None


def torchtitan_fused_attention(job: Job) -> str | None:
    """Attention is SDPA, FlexAttention or varlen, none of which writes scores to memory."""
    if job.training.attention_kernel is not AttentionKernel.FLASH:
        return "attention_kernel must be flash for torchtitan"
    return None


TORCHTITAN_EXPORT_RULES: tuple[ExportRule, ...] = (
    nodes_of_one_size,
    decoder_only,
    torchtitan_adam,
    torchtitan_dropless,
    torchtitan_without_dropout,
    torchtitan_fused_attention,
)

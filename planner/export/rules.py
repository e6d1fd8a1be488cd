"""What cannot be written down for a framework, though its parallelism could be run: each rule has a name.

What a framework can run of a plan is in planner/cost/targets.py. Here is what its training programs can be told of a
model and a recipe, which a search does not ask. Unknown is forbidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from planner.cost.framework import rule_name
from planner.cost.rules import Broken
from planner.export.job import Job
from planner.spec.cluster import Precision
from planner.spec.model import Block, Embedding, Head

ExportRule = Callable[[Job], str | None]
"""None, or what would be right."""


def broken_export_rules(rules: Iterable[ExportRule], job: Job) -> Iterator[Broken]:
    """All of the rules that the job breaks."""
    for rule in rules:
        message = rule(job)
        if message:
            yield Broken(rule_name(rule), message)


def nodes_of_one_size(job: Job) -> str | None:
    """Launchers start equally many processes on every node."""
    sizes = job.nodes[1]
    if len(sizes) > 1:
        return f"all nodes must have equally many devices, they have {' and '.join(map(str, sorted(sizes)))}"
    return None


def decoder_only(job: Job) -> str | None:
    """An embedding, causal blocks of one width, a head: what the frameworks' language models are."""
    first, *middle, last = job.model.layers
    if not isinstance(first, Embedding) or not isinstance(last, Head):
        return "the model must begin with the embedding of tokens and end with a head"
    if not all(isinstance(layer, Block) for layer in middle):
        return "the model must have nothing but blocks between embedding and head"
    if any(layer.hidden_size not in (None, job.model.hidden_size) for layer in job.model.layers):
        return "all layers must have the model's hidden_size"
    if any(not attention.causal for block in job.blocks for attention in block.attentions):
        return "all attention must be causal"
    if any(layer.tokens_per_sample is not None for layer in job.model.layers):
        return "all layers must have the training's sequence_length"
    return None


def gradients_as_weights(job: Job) -> str | None:
    """Gradients are summed in 32 bits, or as they are computed."""
    allowed = {Precision.FP32, _computed(job.training.precision)}
    if job.training.gradient_precision not in allowed:
        return f"gradient_precision must be {' or '.join(sorted(allowed))} with precision {job.training.precision}"
    return None


def _computed(precision: Precision) -> Precision:
    return Precision.BF16 if precision.is_quantised else precision

"""Does a plan match its model, cluster and training? Every mismatch is an InputError that names the plan's field."""

from __future__ import annotations

from collections.abc import Iterator

from planner.cost.rules import Broken, broken_rules, offload_needs_host
from planner.spec.errors import InputError, Problem
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Embedding, Head, Model
from planner.spec.plan import Plan
from planner.spec.training import Training


def check_plan(model: Model, cluster: AnyCluster, training: Training, plan: Plan) -> None:
    """Raise InputError if the plan cannot train this model here in this way."""
    check_sequence(model, training)
    problems = [*_sizes(model, cluster, training, plan), *_places(cluster, plan)]
    if not problems:
        problems = [*_layers(model, cluster, training, plan)]
    if problems:
        raise InputError(*problems)


def check_sequence(model: Model, training: Training) -> None:
    """Do the lengths of the recipe fit the model's layers? Learned positions end somewhere; raises InputError."""
    first = model.layers[0]
    if training.encoder_sequence_length is not None and not model.has_encoder:
        raise InputError.at("training.encoder_sequence_length", "must be left out: the model has no encoder apart")
    if isinstance(first.tokens_per_sample, int) and training.sequence_length != first.tokens_per_sample:
        raise InputError.at(
            "training.sequence_length",
            f"must be {first.tokens_per_sample}, the tokens that the model makes of an image, "
            f"is {training.sequence_length}",
        )
    if isinstance(first, Embedding) and 0 < first.num_positions < training.sequence_length:
        raise InputError.at(
            "training.sequence_length",
            f"must be at most the model's {first.num_positions} learned positions, is {training.sequence_length}",
        )


def tied_stage(model: Model, plan: Plan) -> bool:
    """Whether embedding and tied head share one stage, and so one matrix."""
    last = model.layers[-1]
    return isinstance(last, Head) and last.tied and len(plan.stages) == 1


def _sizes(model: Model, cluster: AnyCluster, training: Training, plan: Plan) -> list[Problem]:
    expected = [
        ("plan.stages", "devices of all stages", cluster.num_devices, plan.num_devices),
        ("plan.stages", "layers of all stages", len(model.layers), plan.num_layers),
        ("plan.sequence_length", "the training's sequence length", training.sequence_length, plan.sequence_length),
    ]
    if training.global_batch_size != "max":
        expected.append(
            ("plan.global_batch_size", "the training's batch", training.global_batch_size, plan.global_batch_size)
        )
    return [
        Problem(field, f"{what} must be {wanted}, got {given}")
        for field, what, wanted, given in expected
        if wanted != given
    ]


def _places(cluster: AnyCluster, plan: Plan) -> Iterator[Problem]:
    """Stages that lie in no one group of the cluster, if the plan has the right number of devices at all."""
    if plan.num_devices != cluster.num_devices:
        return
    for number, stage in enumerate(plan.stages):
        try:
            cluster.group_number(stage.first_device, stage.num_devices)
        except ValueError as error:
            last = stage.first_device + stage.num_devices - 1
            yield Problem(f"plan.stages[{number}]", f"has devices {stage.first_device}–{last}; a stage {error}")


def _layers(model: Model, cluster: AnyCluster, training: Training, plan: Plan) -> list[Problem]:
    problems = []
    known: dict[tuple[int, int], list[Broken]] = {}
    for number, stage in enumerate(plan.stages):
        device = cluster.group_of(stage.first_device, stage.num_devices).device
        for index, run in enumerate(stage.runs):
            found = [*offload_needs_host(run.strategy, device)]
            for layer, _, _ in model.stretches(run.first_layer, run.end_layer):
                key = (id(layer), id(run.strategy))
                if key not in known:
                    known[key] = list(broken_rules(layer, run.strategy, training))
                found += known[key]
            problems += [
                Problem(f"plan.stages[{number}].runs[{index}].strategy", f"{broken.message} ({broken.rule})")
                for broken in found
            ]
    broken = tied_weights_are_cut_alike(model, plan)
    if broken is not None:
        problems.append(Problem("plan.stages[0]", broken.message))
    return list(dict.fromkeys(problems))


def tied_weights_are_cut_alike(model: Model, plan: Plan) -> Broken | None:
    """Embedding and tied head on one stage share one matrix, and so axes and sharding."""
    if not tied_stage(model, plan):
        return None
    first, last = plan.stages[0].runs[0].strategy, plan.stages[0].runs[-1].strategy
    if (first.axes, first.sharding) == (last.axes, last.sharding):
        return None
    return Broken("tied-weights-are-cut-alike", "embedding and tied head share one matrix and so axes and sharding")

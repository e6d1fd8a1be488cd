"""The outer choices: batch size, stages, micro-batches, schedule. A family is what they leave open below."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

from planner.cost.framework import Pipelined, broken_pipeline_rules
from planner.cost.rules import Broken
from planner.cost.targets import FRAMEWORKS
from planner.search.removed import DOMINATED, Removed
from planner.search.tree import divisors
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster, MixedCluster
from planner.spec.model import Model
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.request import Options
from planner.spec.strategy import AxisKind
from planner.spec.stretches import Stretches, equal_pieces
from planner.spec.training import Training

GPIPE_RULE = "1f1b-instead-of-gpipe"

EQUAL_PIECES_RULE = "interleaving-on-equal-devices"
"""Interleaving gives every stage equal pieces, which unlike devices do not finish together."""


class Family(NamedTuple):
    """Plans that share these choices."""

    global_batch_size: int
    num_stages: int
    num_micro_batches: int
    schedule: Schedule
    cut: tuple[int, ...] = ()
    """Stages of each group of a cluster of groups; none where devices are equal."""

    @property
    def samples(self) -> int:
        """Samples of a micro-batch over all data-parallel ranks."""
        return self.global_batch_size // self.num_micro_batches


def batch_sizes(training: Training, num_devices: int) -> list[int]:
    """The batch sizes to try: the given one, or for `max` those up to the limit that the devices can share.

    These are the powers of two, times each odd divisor of the number of devices.
    """
    if training.global_batch_size != "max":
        return [training.global_batch_size]
    limit = training.max_global_batch_size
    odd = [divisor for divisor in divisors(num_devices) if divisor % 2]
    return sorted(factor << power for factor in odd for power in range((limit // factor).bit_length()))


def families(model: Model, cluster: AnyCluster, training: Training, options: Options, removed: Removed) -> list[Family]:
    """All families of the declared space; counts what each rule removes."""
    shapes = [shape for shape in _pipelines(cluster, options) if _has_layers(shape, model, removed)]
    found = []
    for batch in batch_sizes(training, cluster.num_devices):
        for shape in shapes:
            for micro_batches in divisors(batch):
                samples = batch // micro_batches
                wide = [devices for devices in shape.stage_devices if not _cuttable(devices, samples, options)]
                if wide:
                    removed.note("micro-batch-size-limit", 1, f"{samples} samples over {wide[0]} devices")
                    continue
                for schedule in _schedules(model, shape, micro_batches, options, removed):
                    broken = _not_run(model, shape.num_stages, micro_batches, schedule, options)
                    if broken is None:
                        found.append(Family(batch, shape.num_stages, micro_batches, schedule, shape.cut))
                    else:
                        removed.note(broken.rule, 1, broken.message)
    if not found:
        raise no_strategy(cluster, training, options, removed)
    return found


class _Shape(NamedTuple):
    """How devices are cut into stages."""

    num_stages: int
    stage_devices: tuple[int, ...]
    """The different sizes of stages."""
    cut: tuple[int, ...]


def _pipelines(cluster: AnyCluster, options: Options) -> Iterator[_Shape]:
    """Equal devices are cut into equal stages; of groups, each into equal stages of its own."""
    if not isinstance(cluster, MixedCluster):
        for stages in divisors(cluster.num_devices) if "pp" in options.axes else [1]:
            yield _Shape(stages, (cluster.num_devices // stages,), ())
        return
    for cut in product(*(divisors(group.num_devices) for group in cluster.groups)):
        devices = (group.num_devices // stages for group, stages in zip(cluster.groups, cut, strict=True))
        yield _Shape(sum(cut), tuple(dict.fromkeys(devices)), cut)


def _has_layers(shape: _Shape, model: Model, removed: Removed) -> bool:
    if shape.num_stages > len(model.layers):
        removed.note("stages-need-layers", 1, f"pp{shape.num_stages} for {len(model.layers)} layers")
    return shape.num_stages <= len(model.layers)


def cuts(model: Model, num_stages: int, options: Options) -> list[tuple[Stretches, ...]] | None:
    """The ways in which the target can cut the model into so many stages; None: any."""
    framework = FRAMEWORKS.get(options.target)
    if framework is None or framework.cuts is None:
        return None
    found: list[tuple[Stretches, ...]] = []
    for starts in framework.cuts(model, num_stages):
        found.append(tuple(((first, end),) for first, end in pairwise((*starts, len(model.layers)))))
    return found


def _not_run(model: Model, stages: int, micro_batches: int, schedule: Schedule, options: Options) -> Broken | None:
    """The rule of the target that these choices break, if any."""
    framework = FRAMEWORKS.get(options.target)
    if framework is None:
        return None
    return next(broken_pipeline_rules(framework, Pipelined(model, stages, micro_batches, schedule)), None)


def _cuttable(stage_devices: int, samples: int, options: Options) -> bool:
    """Whether some data-parallel degree leaves each rank at least one sample and not too many."""
    allowed = {kind.value for kind in (AxisKind.DP, AxisKind.SDP)} & set(options.axes)
    degrees = divisors(stage_devices) if allowed else [1]
    return any(samples % degree == 0 and samples // degree <= options.max_micro_batch_size for degree in degrees)


def _schedules(
    model: Model, shape: _Shape, micro_batches: int, options: Options, removed: Removed
) -> Iterator[Schedule]:
    stages = shape.num_stages
    one_f_one_b = ScheduleKind.ONE_F_ONE_B in options.schedules
    if one_f_one_b or stages == 1:
        yield Schedule()
    if stages == 1:
        return
    if ScheduleKind.GPIPE in options.schedules:
        if one_f_one_b and GPIPE_RULE not in options.without_rules:
            removed.note(GPIPE_RULE, 1, f"pp{stages}, {micro_batches} micro-batches")
        else:
            yield Schedule(kind=ScheduleKind.GPIPE)
    if ScheduleKind.ZERO_BUBBLE in options.schedules:
        yield Schedule(kind=ScheduleKind.ZERO_BUBBLE)
    if ScheduleKind.INTERLEAVED not in options.schedules:
        return
    for virtual in range(2, options.max_virtual_stages + 1):
        if shape.cut and EQUAL_PIECES_RULE not in options.without_rules:
            removed.note(EQUAL_PIECES_RULE, 1, f"pp{stages} in {virtual} pieces")
        elif micro_batches % stages:
            removed.note("interleaving-in-rounds-of-stages", 1, f"{micro_batches} micro-batches in rounds of {stages}")
        elif equal_pieces(model, stages, virtual) is None:
            removed.note("interleaving-in-equal-pieces", 1, f"pp{stages} in {virtual} pieces")
        else:
            yield Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=virtual)


def no_strategy(cluster: AnyCluster, training: Training, options: Options, removed: Removed) -> InputError:
    """The error for a space in which no strategy can cut the batch, whatever the memory."""
    devices, batch = cluster.num_devices, training.global_batch_size
    found = (
        f"no way to cut {batch} samples over {devices} devices with axes {' '.join(options.axes)} and at most "
        f"{options.max_micro_batch_size} samples per micro-batch and rank"
    )
    if batch == "max" or batch % devices:
        return InputError.at("training.global_batch_size", f"{found}; try a multiple of {devices}, or allow more axes")
    rules = [rule for rule, _ in removed.counts.most_common() if rule != DOMINATED]
    why = f"; what else there is was removed by {', '.join(rules)}" if rules else ""
    return InputError.at("options.axes", f"{found}{why}; allow more axes")

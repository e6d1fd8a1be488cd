"""From a plan of Galvatron's to one of ours. Degrees of data parallelism, which its files leave out, follow."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, Recompute, Sharding, Strategy
from profiles.galvatron.plan_file import PlanFile

_SCHEDULES = {"gpipe": ScheduleKind.GPIPE, "pipedream_flush": ScheduleKind.ONE_F_ONE_B}


class Recipe(NamedTuple):
    """What a plan of Galvatron's leaves to the training job."""

    num_devices: int
    sequence_length: int
    sequence_parallel: bool
    """Whether tensor parallelism cuts the sequence between its regions (Megatron's way)."""
    reduces_once: bool = True
    """Whether gradients of micro-batches are summed whole and reduced once (`async_grad_reduce`, on by default)."""


class _Cut(NamedTuple):
    """Degrees of one layer, before data parallelism fills the stage."""

    tensor: int
    ulysses: int
    context: int
    consecutive: bool
    """Whether tensor-parallel ranks are neighbours."""
    zero3: bool
    recompute: Recompute


def plan_of(file: PlanFile, recipe: Recipe, field: str) -> Plan:
    """Our plan; raises InputError that names the key of the file under `field`."""
    if recipe.num_devices % file.pp_deg:
        raise InputError.at(f"{field}.pp_deg", f"must divide the {recipe.num_devices} devices, got {file.pp_deg}")
    if file.world_size not in (None, recipe.num_devices):
        raise InputError.at(f"{field}.world_size", f"must be the cluster's {recipe.num_devices}, got {file.world_size}")
    if file.global_bsz % file.chunks:
        raise InputError.at(f"{field}.chunks", f"must divide global_bsz {file.global_bsz}, got {file.chunks}")
    devices = recipe.num_devices // file.pp_deg
    edge = _strategy(_edge_cut(file, edge_degree(file, recipe.num_devices)), file, recipe, f"{field}.vtp")
    blocks = [_strategy(_block_cut(file, n, field), file, recipe, f"{field}.{_at(n)}") for n in range(file.num_blocks)]
    stages, first = [], 0
    for number, count in enumerate(file.pp_division):
        layers = [(first + 1 + n, blocks[first + n]) for n in range(count)]
        layers = [(0, edge)] * (number == 0) + layers
        first += count
        layers += [(first + 1, edge)] * (first == file.num_blocks)
        stages.append(Stage(first_device=number * devices, num_devices=devices, runs=_runs(layers)))
    return parse(Plan, _content(file, recipe, stages, edge), field)


def _content(file: PlanFile, recipe: Recipe, stages: list[Stage], first: Strategy) -> dict[str, object]:
    return {
        "global_batch_size": file.global_bsz,
        "sequence_length": recipe.sequence_length,
        "micro_batch_size": file.global_bsz // file.chunks // first.data_parallel_size,
        "num_micro_batches": file.chunks,
        "schedule": Schedule(kind=_SCHEDULES[file.pipeline_type]),
        "stages": tuple(stages),
    }


def _at(block: int) -> str:
    return f"tp_sizes_enc[{block}]"


def edge_degree(file: PlanFile, num_devices: int) -> int:
    """In how many parts embedding and head are cut.

    Files of v2.1 do not say. Its reader does not cut them, and gives ranks unlike numbers of samples where those do
    not divide; as our ranks have equally many, they are cut as far as that takes, at most as the blocks are.
    """
    if file.vtp is not None:
        return file.vtp
    ranks, samples = num_devices // file.pp_deg, file.global_bsz // file.chunks
    for degree in range(1, min(file.tp_sizes_enc)):
        if ranks % degree == 0 and samples % (ranks // degree) == 0:
            return degree
    return min(file.tp_sizes_enc)


def _edge_cut(file: PlanFile, degree: int) -> _Cut:
    """Embedding and head. Cut along the sequence (`vsp`), weights are whole on each rank, as under Ulysses."""
    tensor, along_sequence = (1, degree) if file.vsp else (degree, 1)
    return _Cut(tensor, along_sequence, file.vcp, True, bool(file.embed_sdp), Recompute.NONE)


def _block_cut(file: PlanFile, block: int, field: str) -> _Cut:
    for key in ("ep_sizes_enc", "tp_of_ep_sizes_enc"):
        if (degree := getattr(file, key)[block]) > 1:
            raise InputError.at(f"{field}.{key}[{block}]", f"must be 1: plans with experts are not read, got {degree}")
    tensor, ulysses = file.tp_sizes_enc[block], 1
    if file.use_sp[block]:
        tensor, ulysses = ulysses, tensor
    return _Cut(
        tensor,
        ulysses,
        file.cp_sizes_enc[block],
        bool(file.tp_consecutive_flags[block]),
        bool(file.dp_types_enc[block]),
        Recompute.FULL if file.checkpoint[block] else Recompute.NONE,
    )


def _strategy(cut: _Cut, file: PlanFile, recipe: Recipe, field: str) -> Strategy:
    """Data parallelism over what the other axes leave of a stage; raises InputError at `field`."""
    devices, inner = recipe.num_devices // file.pp_deg, cut.tensor * cut.ulysses * cut.context
    if devices % inner:
        raise InputError.at(field, f"{inner} must divide the {devices} devices of a stage")
    data = devices // inner
    samples = file.global_bsz // file.chunks
    if samples % data:
        raise InputError.at(
            field, f"leaves data parallelism of {data}, which must divide the {samples} samples of a micro-batch"
        )
    axes = [(AxisKind.DP, data), (AxisKind.CP, cut.context), (AxisKind.ULYSSES, cut.ulysses), (AxisKind.TP, cut.tensor)]
    sharding = Sharding.FULL if cut.zero3 else _default_sharding(file, recipe)
    return Strategy(
        axes=tuple(Axis(kind, degree) for kind, degree in (axes if cut.consecutive else reversed(axes)) if degree > 1),
        sharding=sharding if data * cut.context * cut.ulysses > 1 else Sharding.NONE,
        sequence_parallel=recipe.sequence_parallel and cut.tensor > 1,
        recompute=cut.recompute,
    )


def _default_sharding(file: PlanFile, recipe: Recipe) -> Sharding:
    """ZeRO-2 that sums gradients whole is ZeRO-1."""
    if file.default_dp_type == "ddp":
        return Sharding.NONE
    return Sharding.OPTIMIZER if recipe.reduces_once and file.chunks > 1 else Sharding.GRADIENTS


def _runs(layers: list[tuple[int, Strategy]]) -> tuple[StageRun, ...]:
    """Neighbours of one strategy as one run."""
    runs = []
    for strategy, equal in groupby(layers, key=lambda layer: layer[1]):
        numbers = [number for number, _ in equal]
        runs.append(StageRun(first_layer=numbers[0], num_layers=len(numbers), strategy=strategy))
    return tuple(runs)

"""From a row's degrees to a plan: how stages, strategies and micro-batches follow from them.

Blocks that do not divide by the stages are dealt as evenly as possible, fewer to the first and the last (embedding and
head count as a layer there, as with Megatron's account-for-embedding-in-pipeline-split).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby

from planner.spec.errors import InputError
from planner.spec.model import AnyLayer, Block, Embedding, Head, Model
from planner.spec.parse import parse
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training
from profiles.runs.fsdp import fsdp_of
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped
from profiles.runs.stack import ALPA, MEGATRON_CORE, PYTORCH_FSDP, TORCHTITAN

_LEVELS = tuple(Sharding)
_OF_FSDP = (PYTORCH_FSDP, TORCHTITAN)
_OTHER_SCHEDULES = re.compile(r"\b(zero[- ]bubble|zb-?(?:v|h1|h2)|v-half|v-min|dualpipe|1f1b-overlap)\b")


def plan_of(record: RunRecord, model: Model, training: Training, stack: str, recompute: Recompute) -> Plan | Skipped:
    """The plan of a row with this recomputation; what the row does not say follows from the stack."""
    given, micro = record.parallel, _micro_batch(record)
    missing = _unknown(record) or _unmodelled(record)
    if missing is not None:
        return Skipped(missing)
    if isinstance(micro, Skipped):
        return micro
    assert given.pp is not None and given.dp is not None
    strategies = _strategies(record, model, stack, recompute)
    if isinstance(strategies, Skipped):
        return strategies
    virtual = given.vpp or 1 if given.pp > 1 else 1
    pieces = _pieces(model, given.pp * virtual)
    if pieces is None:
        return Skipped(f"parallel.pp: the layers of the model cannot fill {given.pp} x {virtual} pieces")
    assert training.global_batch_size != "max"
    content = {
        "global_batch_size": training.global_batch_size,
        "sequence_length": training.sequence_length,
        "micro_batch_size": micro,
        "num_micro_batches": training.global_batch_size // (micro * given.dp),
        "schedule": Schedule(
            kind=ScheduleKind.INTERLEAVED if virtual > 1 else ScheduleKind.ONE_F_ONE_B, virtual_stages=virtual
        ),
        "stages": _stages(model, strategies, [pieces[number :: given.pp] for number in range(given.pp)]),
    }
    try:
        return parse(Plan, content)
    except InputError as error:
        return Skipped(f"parallel: {error}")


def _unknown(record: RunRecord) -> str | None:
    given = record.parallel
    lacking = [f"parallel.{name}" for name in ("tp", "pp", "dp") if getattr(given, name) is None]
    return f"{', '.join(lacking)}: not known" if lacking else None


def _unmodelled(record: RunRecord) -> str | None:
    schedule = _OTHER_SCHEDULES.search(record.words)
    if schedule:
        return f"notes: the {schedule[0]} schedule is not modelled"
    fsdp = fsdp_of(record.parallel.fsdp)
    if isinstance(fsdp, Skipped):
        return fsdp.reason
    if record.parallel.offload not in (None, False, 0, "none", "no", "off"):
        return "parallel.offload: offloading is not modelled"
    return None


def recompute_of(text: str | None) -> Recompute | Skipped | None:
    """What a row says of recomputation; None: nothing."""
    words = (text or "").lower()
    if not words:
        return None
    if "full" in words or words in ("all", "true", "on"):
        return Recompute.FULL
    if any(word in words for word in ("select", "core", "attn", "attention")):
        return Recompute.SELECTIVE
    return (
        Recompute.NONE
        if words in ("none", "no", "off", "false")
        else Skipped(f"parallel.recompute: {text!r} is not known")
    )


def sharding_of(record: RunRecord, stack: str) -> Sharding:
    """ZeRO's level; where it is not said, what FSDP's mode or the stack's default is.

    Alpa spreads the update of replicated weights over their replicas by itself (arXiv 2201.12023, section 4.2).
    """
    given = record.parallel
    if given.zero is not None:
        return _LEVELS[given.zero]
    fsdp = fsdp_of(given.fsdp)
    if isinstance(fsdp, Sharding) and (fsdp is not Sharding.NONE or stack in _OF_FSDP):
        return fsdp
    if stack == ALPA and "data_parallel" not in record.words:
        return Sharding.GRADIENTS
    if stack in _OF_FSDP:
        return Sharding.FULL
    return Sharding.OPTIMIZER if stack in MEGATRON_CORE else Sharding.NONE


def _micro_batch(record: RunRecord) -> int | Skipped:
    """Given, or what accumulation leaves, or 1 where each rank has one sample."""
    batch, dp, accumulated = record.batch, record.parallel.dp or 1, record.grad_accum
    assert batch.samples is not None, "training_of() has looked"
    if batch.micro is None and accumulated is None and batch.samples != dp:
        return Skipped("batch.micro: not known")
    micro = batch.micro or batch.samples // (dp * (accumulated or 1))
    if not micro or batch.samples % (micro * dp):
        return Skipped(f"batch.global: {batch.samples} samples are no multiple of micro {micro} x dp {dp}")
    return micro


def _strategies(record: RunRecord, model: Model, stack: str, recompute: Recompute) -> Mapping[str, Strategy] | Skipped:
    """By kind of layer: blocks recompute, blocks with experts spread them."""
    given = record.parallel
    tp, cp, dp = given.tp or 1, given.cp or 1, given.dp or 1
    moe = bool(model.moe_layers)
    experts = _expert_strategy(record, stack) if moe else None
    if isinstance(experts, Skipped):
        return experts
    sharding = sharding_of(record, stack)
    # Megatron's experts take tokens from tensor-parallel ranks only under sequence parallelism.
    sequence_parallel = tp > 1 and (moe or (stack in MEGATRON_CORE if given.sp is None else given.sp))
    common = {
        "axes": _axes(record, sharding),
        "sharding": sharding if dp * cp > 1 else Sharding.NONE,
        "sequence_parallel": sequence_parallel,
    }
    try:
        found = {
            "edge": parse(Strategy, common),
            "dense": parse(Strategy, common | {"recompute": recompute}),
        }
        if experts is not None:
            found["moe"] = parse(Strategy, common | {"recompute": recompute, "experts": experts})
    except InputError as error:
        return Skipped(f"parallel: {error}")
    return found


def _axes(record: RunRecord, sharding: Sharding) -> list[tuple[AxisKind, int]]:
    """Data parallelism farthest; where FSDP shards within fewer ranks than dp, it replicates over the rest."""
    given = record.parallel
    dp, inner = given.dp or 1, given.fsdp
    axes = [(AxisKind.DP, dp)]
    if sharding is Sharding.FULL and isinstance(inner, int) and 1 < inner < dp and dp % inner == 0:
        axes = [(AxisKind.DP, dp // inner), (AxisKind.SDP, inner)]
    axes += [(AxisKind.CP, given.cp or 1), (AxisKind.TP, given.tp or 1)]
    return [(kind, degree) for kind, degree in axes if degree > 1]


def _expert_strategy(record: RunRecord, stack: str) -> ExpertStrategy | Skipped:
    given = record.parallel
    devices = (given.dp or 1) * (given.cp or 1) * (given.tp or 1)
    ep = given.ep or 1
    tensor = given.etp or (1 if stack in MEGATRON_CORE else given.tp or 1)
    if given.etp is None and devices % (ep * tensor):
        tensor = 1
    if devices % (ep * tensor):
        return Skipped(f"parallel.ep: ep {ep} x etp {tensor} must divide the {devices} devices of a stage")
    return ExpertStrategy(
        expert_parallel_size=ep,
        expert_tensor_parallel_size=tensor,
        expert_data_parallel_size=devices // (ep * tensor),
    )


def _pieces(model: Model, count: int) -> list[range] | None:
    """Layers of each piece of the model, in order; None if some piece would be empty."""
    if count > len(model.layers):
        return None
    blocks = sum(isinstance(layer, Block) for layer in model.layers)
    size, rest = divmod(blocks, count)
    # The middle pieces first, then the first, then the last.
    order = sorted(range(count), key=lambda piece: (piece == count - 1, piece == 0, piece))
    longer = set(order[:rest])
    sizes = [size + (piece in longer) for piece in range(count)]
    sizes[0] += isinstance(model.layers[0], Embedding)
    sizes[-1] += isinstance(model.layers[-1], Head)
    if min(sizes) < 1:
        return None
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _stages(model: Model, strategies: Mapping[str, Strategy], pieces: Sequence[Sequence[range]]) -> list[Stage]:
    """One stage for each of `pieces`, on as many devices as its strategies span."""
    devices = strategies["edge"].num_devices
    return [
        Stage(
            first_device=number * devices,
            num_devices=devices,
            runs=tuple(run for piece in own for run in _runs(model, piece, strategies)),
        )
        for number, own in enumerate(pieces)
    ]


def _runs(model: Model, piece: range, strategies: Mapping[str, Strategy]) -> list[StageRun]:
    runs = []
    for strategy, group in groupby(piece, key=lambda layer: strategies[_kind(model.layers[layer])]):
        layers = list(group)
        runs.append(StageRun(first_layer=layers[0], num_layers=len(layers), strategy=strategy))
    return runs


def _kind(layer: AnyLayer) -> str:
    if not isinstance(layer, Block):
        return "edge"
    return "dense" if layer.moe is None else "moe"

"""How strategies, layers and batches are put in words: one wording for pictures, tables and explanations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from planner.spec.error_band import StepTimeBand
from planner.spec.model import AnyLayer, Block, Model
from planner.spec.plan import Plan, Schedule, ScheduleKind, StageRun
from planner.spec.strategy import ExpertStrategy, Recompute, Sharding, Strategy
from planner.view.quantities import seconds, span

_SHARDING = {
    Sharding.NONE: "nothing sharded",
    Sharding.OPTIMIZER: "optimizer states sharded (ZeRO-1)",
    Sharding.GRADIENTS: "optimizer states and gradients sharded (ZeRO-2)",
    Sharding.FULL: "optimizer states, gradients and weights sharded (ZeRO-3)",
}
_RECOMPUTE = {
    Recompute.NONE: "no recomputation",
    Recompute.SELECTIVE: "attention core recomputed",
    Recompute.FULL: "whole layer recomputed",
}
_SHORT_SHARDING = {Sharding.NONE: "", Sharding.OPTIMIZER: "zero1", Sharding.GRADIENTS: "zero2", Sharding.FULL: "zero3"}


def degrees(strategy: Strategy) -> str:
    """Degrees of the axes, nearest devices first, as in a plan's summary: `tp2 dp8`; one device alone: `dp1`."""
    return " ".join(f"{axis.kind.value}{axis.degree}" for axis in reversed(strategy.axes)) or "dp1"


def expert_degrees(experts: ExpertStrategy) -> str:
    """Degrees of the experts, nearest devices first: `etp1 ep8 edp2`."""
    return (
        f"etp{experts.expert_tensor_parallel_size} ep{experts.expert_parallel_size} "
        f"edp{experts.expert_data_parallel_size}"
    )


def strategy_short(strategy: Strategy) -> str:
    """One short line: `tp2 dp8 sp zero1 · etp1 ep8 edp2 · selective`."""
    flags = ("sp" if strategy.sequence_parallel else "", _SHORT_SHARDING[strategy.sharding])
    first = (degrees(strategy), *flags, "offload" if strategy.offload else "")
    parts = [" ".join(word for word in first if word)]
    if strategy.experts:
        parts.append(expert_degrees(strategy.experts))
    if strategy.recompute is not Recompute.NONE:
        parts.append(strategy.recompute.value)
    return " · ".join(parts)


def strategy_lines(strategy: Strategy) -> tuple[str, ...]:
    """What a strategy does, one full phrase per line: sequence, sharding, recomputation."""
    lines = [_SHARDING[strategy.sharding], _RECOMPUTE[strategy.recompute]]
    if strategy.sequence_parallel:
        lines.insert(0, "sequence parallel between tensor-parallel regions")
    if strategy.offload:
        lines.append("optimizer states on the host")
    return tuple(lines)


def layer_kind(layer: AnyLayer) -> str:
    """`embedding`, `patch embedding`, `dense block`, `MoE block`, `merging`, `encoder end` or `head`."""
    if isinstance(layer, Block):
        return "MoE block" if layer.moe else "dense block"
    return layer.kind.replace("_", " ")


def layer_kinds(model: Model, first_layer: int, num_layers: int) -> tuple[tuple[str, int], ...]:
    """Consecutive layers by kind: ((`embedding`, 1), (`MoE block`, 8))."""
    kinds: list[tuple[str, int]] = []
    for layer in model.layers[first_layer : first_layer + num_layers]:
        kind = layer_kind(layer)
        if kinds and kinds[-1][0] == kind:
            kinds[-1] = (kind, kinds[-1][1] + 1)
        else:
            kinds.append((kind, 1))
    return tuple(kinds)


def layers(model: Model, runs: Iterable[StageRun]) -> str:
    """All layers of the runs, by number and by kind: `1–4, 17–20: 8 MoE blocks`."""
    runs = tuple(runs)
    numbers = ", ".join(span(run.first_layer, run.end_layer - 1) for run in runs)
    kinds: Counter[str] = Counter()
    for run in runs:
        for kind, count in layer_kinds(model, run.first_layer, run.num_layers):
            kinds[kind] += count
    return f"{numbers}: {', '.join(f'{count} {kind}s' if count > 1 else kind for kind, count in kinds.items())}"


def schedule(value: Schedule) -> str:
    """The schedule in words."""
    if value.kind is ScheduleKind.INTERLEAVED:
        return f"interleaved 1F1B, {value.virtual_stages} virtual stages per device"
    names = {ScheduleKind.ONE_F_ONE_B: "1F1B", ScheduleKind.GPIPE: "GPipe", ScheduleKind.ZERO_BUBBLE: "zero-bubble"}
    return names[value.kind]


def schedule_short(value: Schedule) -> str:
    """`1F1B`, or `interleaved vpp3`."""
    if value.kind is ScheduleKind.INTERLEAVED:
        return f"interleaved vpp{value.virtual_stages}"
    return schedule(value)


def sharding_short(strategy: Strategy) -> str:
    """`none`, or `zero1` to `zero3`."""
    return _SHORT_SHARDING[strategy.sharding] or "none"


def batch(plan: Plan) -> str:
    """`1,024 samples of 4,096 tokens: 64 micro-batches of 16, 1 per data-parallel rank`, or `1 to 4` in mixed plans."""
    degrees = {run.strategy.data_parallel_size for stage in plan.stages for run in stage.runs}
    sizes = [plan.samples_per_micro_batch // degree for degree in (max(degrees), min(degrees))]
    each = f"{sizes[0]}" if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
    return (
        f"{plan.global_batch_size:,} samples of {plan.sequence_length:,} tokens: {plan.num_micro_batches} "
        f"micro-batch{'es' if plan.num_micro_batches > 1 else ''} of {plan.samples_per_micro_batch}, "
        f"{each} per data-parallel rank"
    )


def error_band(band: StepTimeBand) -> str:
    """`8.71 s to 10.6 s (10–90 % of comparable runs: 74 runs of dense models on …)`."""
    ends = f"{seconds(band.step_time_low_s)} to {seconds(band.step_time_high_s)}"
    return f"{ends} (10–90 % of comparable runs: {band.basis})"


def joined(words: Iterable[str]) -> str:
    """Words with commas, a dash for none."""
    return ", ".join(words) or "–"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))

"""Plans with estimates written by hand: views draw whatever numbers they get, so these need no cost model."""

from __future__ import annotations

from collections.abc import Sequence

from planner.spec.cluster import Provenance
from planner.spec.error_band import StepTimeBand
from planner.spec.estimate import Estimate, StageEstimate, StageTime
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Model,
    MoeFeedForward,
)
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.shortlist import Certificate, CertificateStatus, Shortlist, ShortlistEntry
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.workload import BALANCED, Scenario

GIB = 2**30
ATTENTION = GroupedQueryAttention(num_heads=32, num_kv_heads=8, head_dim=128)
DENSE = Block(attention=ATTENTION, feed_forward=DenseFeedForward(width=14336))
MOE = Block(attention=ATTENTION, feed_forward=MoeFeedForward(num_experts=8, top_k=2, expert_width=14336))


def model(dense: int = 0, moe: int = 0, name: str = "mixtral-8x7b") -> Model:
    """Embedding, dense blocks, MoE blocks, head."""
    blocks = [LayerRun(layer=layer, num_layers=count) for layer, count in ((DENSE, dense), (MOE, moe)) if count]
    return Model(
        name=name,
        hidden_size=4096,
        runs=(LayerRun(layer=Embedding(vocab_size=32000)), *blocks, LayerRun(layer=Head(vocab_size=32000))),
    )


def strategy(tp: int = 1, dp: int = 1, cp: int = 1, ep: int | None = None, **rest: object) -> Strategy:
    """Data parallel outside, context parallel, tensor parallel inside; experts over the rest when ep is given."""
    kinds = ((AxisKind.DP, dp), (AxisKind.CP, cp), (AxisKind.TP, tp))
    experts = None
    if ep is not None:
        experts = ExpertStrategy(expert_parallel_size=ep, expert_data_parallel_size=tp * dp * cp // ep)
    axes = tuple(Axis(kind, degree) for kind, degree in kinds if degree > 1)
    return Strategy.model_validate({"axes": axes, "experts": experts, **rest})


def even_plan(
    layers: Sequence[int], first: Strategy, schedule: Schedule | None = None, num_micro_batches: int = 64
) -> Plan:
    """One strategy for all, without experts for embedding and head; `layers` of each piece in pipeline order."""
    schedule = schedule or Schedule()
    num_stages = len(layers) // schedule.virtual_stages
    starts = [sum(layers[:number]) for number in range(len(layers))]
    stages = tuple(
        Stage(
            first_device=stage * first.num_devices,
            num_devices=first.num_devices,
            runs=tuple(
                run
                for piece in range(stage, len(layers), num_stages)
                for run in _runs(starts[piece], starts[piece] + layers[piece], sum(layers), first)
            ),
        )
        for stage in range(num_stages)
    )
    return Plan(
        global_batch_size=num_micro_batches * first.data_parallel_size,
        sequence_length=4096,
        micro_batch_size=1,
        num_micro_batches=num_micro_batches,
        schedule=schedule,
        stages=stages,
    )


def _runs(first_layer: int, end_layer: int, num_layers: int, inner: Strategy) -> list[StageRun]:
    edge = inner.model_copy(update={"experts": None})
    runs: list[StageRun] = []
    for layer in range(first_layer, end_layer):
        chosen = edge if layer in (0, num_layers - 1) else inner
        if runs and runs[-1].strategy == chosen:
            runs[-1] = runs[-1].model_copy(update={"num_layers": runs[-1].num_layers + 1})
        else:
            runs.append(StageRun(first_layer=layer, num_layers=1, strategy=chosen))
    return runs


def estimate(plan: Plan, peak_gib: float = 62.0, limit_gib: float = 80.0, step_time_s: float = 11.8) -> Estimate:
    """Named parts in plausible proportion; the first stages hold more activations than the last, as in 1F1B."""
    count = len(plan.stages)
    stages = tuple(_stage(peak_gib * (1 - 0.35 * number / count), limit_gib) for number in range(count))
    tokens_per_s = plan.global_batch_size * plan.sequence_length / step_time_s
    return Estimate(
        plan_id=plan.id,
        workload="balanced",
        step_time_s=step_time_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_device=tokens_per_s / plan.num_devices,
        tflops_per_device=412.0,
        mfu=0.417,
        time={key: share * step_time_s for key, share in TIME_SHARES.items()},
        stages=stages,
        fits=all(stage.missing_bytes == 0 for stage in stages),
        provenance=Provenance.DATASHEET,
        assumptions=("no stragglers", "input pipeline is free"),
    )


BAND = StepTimeBand(
    step_time_low_s=10.9, step_time_high_s=13.4, rows=74, basis="74 runs of MoE models on h100-sxm-80g with any stack"
)
TIME_SHARES = {
    "compute": 0.57,
    "recompute": 0.04,
    "tensor_parallel_communication": 0.06,
    "context_parallel_communication": 0.0,
    "expert_all_to_all": 0.11,
    "expert_imbalance": 0.02,
    "data_parallel_communication": 0.03,
    "pipeline_communication": 0.01,
    "pipeline_bubble": 0.12,
    "optimizer": 0.01,
    "layout_change": 0.03,
}
MEMORY_SHARES = {
    "weights": 0.16,
    "gradients": 0.24,
    "optimizer_states": 0.19,
    "activations": 0.27,
    "logits": 0.02,
    "workspace": 0.03,
    "buffers": 0.03,
    "reserve": 0.06,
}


def _stage(peak_gib: float, limit_gib: float) -> StageEstimate:
    memory = {key: int(share * peak_gib * GIB) for key, share in MEMORY_SHARES.items()}
    return StageEstimate(
        memory=memory,
        peak_memory_bytes=sum(memory.values()),
        limit_bytes=int(limit_gib * GIB),
        time=StageTime(micro_batch_s=0.17, once_per_step_s=0.3),
    )


def mixtral() -> tuple[Model, Plan, Estimate]:
    """Mixtral on 64 devices: 4 stages, interleaved, experts over 8."""
    plan = even_plan(
        [5, 4, 4, 4, 4, 4, 4, 5],
        strategy(tp=2, dp=8, ep=8, sharding=Sharding.OPTIMIZER, sequence_parallel=True, recompute=Recompute.SELECTIVE),
        Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=2),
    )
    return model(moe=32), plan, estimate(plan)


def one_device() -> tuple[Model, Plan, Estimate]:
    """Everything on one device."""
    plan = even_plan([6], strategy(), num_micro_batches=4)
    return model(dense=4, name="tiny"), plan, estimate(plan, peak_gib=3.1, limit_gib=8, step_time_s=0.0123)


def offloaded() -> tuple[Model, Plan, Estimate]:
    """The second of two stages keeps more on its host than there is."""
    choice = strategy(dp=8, sharding=Sharding.OPTIMIZER).model_copy(update={"offload": True})
    plan = even_plan([3, 3], choice)
    found = estimate(plan)
    held = zip(found.stages, (200 * GIB, 300 * GIB), strict=True)
    stages = tuple(stage.model_copy(update={"host_bytes": kept, "host_limit_bytes": 256 * GIB}) for stage, kept in held)
    return model(dense=4, name="tiny"), plan, found.model_copy(update={"stages": stages, "fits": False})


def two_strategies_per_stage() -> tuple[Model, Plan, Estimate]:
    """Dense blocks without experts, MoE blocks with; the plan does not fit in its first stage."""
    dense = strategy(tp=2, dp=4, cp=2, sharding=Sharding.FULL, sequence_parallel=True, recompute=Recompute.FULL)
    moe = dense.model_copy(update={"experts": ExpertStrategy(expert_parallel_size=8, expert_data_parallel_size=2)})
    wide = strategy(dp=16, ep=16, sharding=Sharding.FULL)
    stages = (
        Stage(
            first_device=0,
            num_devices=16,
            runs=(
                StageRun(first_layer=0, num_layers=4, strategy=dense),
                StageRun(first_layer=4, num_layers=8, strategy=moe),
                StageRun(first_layer=12, num_layers=3, strategy=wide),
            ),
        ),
        Stage(
            first_device=16,
            num_devices=16,
            runs=(
                StageRun(first_layer=15, num_layers=14, strategy=wide),
                StageRun(first_layer=29, num_layers=1, strategy=dense),
            ),
        ),
    )
    plan = Plan(global_batch_size=512, sequence_length=8192, micro_batch_size=4, num_micro_batches=32, stages=stages)
    return model(dense=3, moe=25, name="deepseek <v3> & kin"), plan, estimate(plan, peak_gib=101, limit_gib=80)


def largest() -> tuple[Model, Plan, Estimate]:
    """64 stages of 2048 devices, two virtual stages each."""
    plan = even_plan(
        [2] + [1] * 126 + [2],
        strategy(tp=8, dp=256, ep=8, sharding=Sharding.OPTIMIZER, sequence_parallel=True),
        Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=2),
        num_micro_batches=128,
    )
    return model(moe=128, name="giant"), plan, estimate(plan, peak_gib=76)


def many_unequal_stages() -> tuple[Model, Plan, Estimate]:
    """64 stages whose neighbours differ, so that none can be folded."""
    layers = [3, 2] * 32
    plan = even_plan(layers, strategy(dp=2, sharding=Sharding.FULL, recompute=Recompute.FULL))
    return model(dense=sum(layers) - 2, name="alternating"), plan, estimate(plan, peak_gib=95)


def sixteen_stages() -> tuple[Model, Plan, Estimate]:
    """As many stages as have rows of their own."""
    layers = [5, *[6] * 14, 5]
    plan = even_plan(layers, strategy(tp=4, dp=2, sequence_parallel=True), num_micro_batches=48)
    return model(dense=sum(layers) - 2, name="sixteen"), plan, estimate(plan)


def narrow_ends() -> tuple[Model, Plan, Estimate]:
    """Embedding and head under a strategy of their own, each a sliver beside few blocks."""
    layers = [4] * 15 + [3]
    plan = even_plan(layers, strategy(tp=2, dp=8, ep=8), num_micro_batches=240)
    return model(moe=sum(layers) - 2, name="slivers"), plan, estimate(plan)


def many_strategies() -> tuple[Model, Plan, Estimate]:
    """30 layers in one stage, each under a strategy of its own."""
    choices = [
        strategy(tp=tp, dp=64 // tp, sharding=sharding, recompute=recompute)
        for tp in (1, 2, 4, 8)
        for sharding in Sharding
        for recompute in Recompute
    ][:30]
    runs = tuple(StageRun(first_layer=n, num_layers=1, strategy=choice) for n, choice in enumerate(choices))
    plan = Plan(
        global_batch_size=1024,
        sequence_length=4096,
        micro_batch_size=2,
        num_micro_batches=8,
        stages=(Stage(first_device=0, num_devices=64, runs=runs),),
    )
    return model(dense=28, name="every layer its own way"), plan, estimate(plan)


ALL = (
    one_device,
    mixtral,
    two_strategies_per_stage,
    sixteen_stages,
    many_unequal_stages,
    many_strategies,
    narrow_ends,
    largest,
)


def shortlist(*estimates: Estimate, plans: Sequence[Plan] = (), scenarios: int = 3) -> Shortlist:
    """Plans of Mixtral in the order given, or three of them; the second lacks memory in the last scenario."""
    plans = plans or [
        even_plan([17, 17], strategy(tp=tp, dp=8 // tp, ep=4), num_micro_batches=32 * tp) for tp in (2, 4, 8)
    ]
    estimates = estimates or tuple(
        estimate(plan, peak_gib=peak, step_time_s=seconds)
        for plan, peak, seconds in zip(plans, (62.0, 74.5, 55.0), (11.8, 12.9, 13.3), strict=True)
    )
    names = ["balanced", *(f"zipf-{number / 10:g}" for number in range(3, 2 + scenarios))]
    entries = []
    for rank, (plan, price) in enumerate(zip(plans, estimates, strict=True), start=1):
        missing = (names[-1],) if rank == 2 and scenarios > 1 else ()
        regrets = {name: 0.01 * (rank - 1) * place for place, name in enumerate(names) if name not in missing}
        entries.append(
            ShortlistEntry(
                rank=rank,
                plan=plan,
                estimate=price,
                best_for=tuple(names) if rank == 1 else (),
                regret_ratio=0.0123 * (rank - 1),
                worst_regret_ratio=0.0456 * (rank - 1),
                out_of_memory_in=missing,
                scenario_regret_ratio=regrets,
                switch_cost_s={},
            )
        )
    certificate = Certificate(
        status=CertificateStatus.BOUNDED, lower_bound_s=11.0, gap_ratio=0.07, space="all", evaluated=10, pruned={}
    )
    return Shortlist(
        plans=tuple(entries),
        certificate=certificate,
        scenarios=tuple(Scenario(name=name, workload=BALANCED, probability=1 / scenarios) for name in names),
        provenance=Provenance.DATASHEET,
        search_time_s=1.0,
    )

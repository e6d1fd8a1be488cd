"""What a price takes for granted and does not model, as sentences for the plan, recipe and stack in question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.spec.mixed_cluster import AnyCluster, MixedCluster
from planner.spec.model import Block, GroupedQueryAttention, Model
from planner.spec.placement import Placement
from planner.spec.plan import Plan, ScheduleKind
from planner.spec.stack import Stack
from planner.spec.strategy import Strategy
from planner.spec.training import AttentionKernel, Training
from planner.spec.workload import BALANCED, Workload

NOT_MODELLED = (
    "not modelled: data loading, evaluation, checkpoints, failures, stragglers, devices that slow down as they warm "
    "up, other jobs on the network"
)
EVERY_COPY = (
    "every copy of a token crosses the network by itself: node-limited routing saves traffic only where a token goes "
    "to a node once for all its experts there"
)
FULL_SEQUENCES = "every sequence is full: no padding, and no packing of shorter ones that attention keeps apart"


def assumptions(
    model: Model,
    cluster: AnyCluster,
    training: Training,
    plan: Plan,
    workload: Workload,
    placement: Placement | None,
) -> tuple[str, ...]:
    """Short sentences; only those that can matter to this plan."""
    found = [*_of_cluster(cluster), *_of_layers(model)]
    for stack in dict.fromkeys(group.stack for group in cluster.groups):
        found += [*_of_traffic(stack, plan), *_of_host(stack), *_of_products(training, stack)]
    found += [*_of_pipeline(plan), *_of_offload(plan)]
    if model.moe_layers:
        found += _of_experts(training, workload, placement)
        found += _of_copies(placement)
        if any(model.moe(layer).num_groups > 1 for layer in model.moe_layers):
            found.append(EVERY_COPY)
    return (*dict.fromkeys(found), FULL_SEQUENCES, NOT_MODELLED)


def _of_cluster(cluster: AnyCluster) -> Iterator[str]:
    if isinstance(cluster, MixedCluster):
        rate = cluster.inter_group.pair_bytes_per_s / 1e9
        yield (
            f"the cluster has {len(cluster.groups)} groups, {cluster.describe()}: each stage is priced on its own, "
            f"messages between them at {rate:.3g} GB/s; no measured run of unlike devices is known"
        )
    for first, group in zip(cluster.first_devices, cluster.groups, strict=True):
        if group.device_order:
            yield (
                f"devices from {first} on are renumbered so that islands are consecutive; counted from {first}, they "
                f"are {_numbers(group.device_order)} of the graph of links"
            )


def _numbers(numbers: Sequence[int]) -> str:
    """`0–7, 16–23, 8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def _of_layers(model: Model) -> Iterator[str]:
    if model.has_encoder:
        yield "what the decoder reads is embedded in layer 0 and carried through the encoder's stages"
    attentions = [each for run in model.runs if isinstance(run.layer, Block) for each in run.layer.attentions]
    if any(isinstance(each, GroupedQueryAttention) and each.position_buckets for each in attentions):
        yield "learned biases by relative position take the memory of their tables, and no time"


def _of_traffic(stack: Stack, plan: Plan) -> Iterator[str]:
    """How much of each kind of traffic that the plan has may hide."""
    strategies = plan.distinct_strategies
    experts = [strategy.experts for strategy in strategies if strategy.experts is not None]
    kinds = (
        ("tensor-parallel", any(strategy.tp > 1 for strategy in strategies), stack.tensor_overlap_ratio),
        ("all-to-all", any(each.expert_parallel_size > 1 for each in experts), stack.expert_overlap_ratio),
        ("between stages", len(plan.stages) > 1, 0.0),
        ("data-parallel", any(map(_reduces, strategies)), stack.data_overlap_ratio),
        ("ring attention", any(strategy.cp > 1 for strategy in strategies), 1.0),
        ("Ulysses", any(strategy.ulysses > 1 for strategy in strategies), 0.0),
    )
    shares = [f"{name} {100 * ratio:.0f} %" for name, is_sent, ratio in kinds if is_sent]
    if shares:
        yield f"of the traffic, what may hide behind compute under stack {stack.name}: {', '.join(shares)}"


def _reduces(strategy: Strategy) -> bool:
    """Whether gradients are summed over devices that see other tokens."""
    return strategy.data_parallel_size * strategy.sequence_parts > 1


def _of_offload(plan: Plan) -> Iterator[str]:
    if any(run.strategy.offload for stage in plan.stages for run in stage.runs):
        yield (
            "offloaded optimizer state: once per step gradients go to the host, it updates, weights come back, one "
            "after the other; the devices of a node share its host evenly; to move experts or to switch plans costs no "
            "copies between host and device"
        )


def _of_host(stack: Stack) -> Iterator[str]:
    if not (stack.block_host_s or stack.step_host_s or stack.message_host_s):
        yield f"under stack {stack.name} no device waits for its host"


def _of_products(training: Training, stack: Stack) -> Iterator[str]:
    if training.attention_kernel is AttentionKernel.FLASH and stack.fused_softmax_batch > 1:
        yield f"attention is fused (flash), which stack {stack.name} had not: attention_kernel of the training"
    if training.precision.is_quantised:
        yield f"{training.precision.value} holds for products with weights; attention is computed in bf16"


def _of_pipeline(plan: Plan) -> Iterator[str]:
    kind = plan.schedule.kind
    if len(plan.stages) == 1:
        return
    if kind is ScheduleKind.INTERLEAVED:
        yield "the pieces of a stage take equally long"
    elif kind is ScheduleKind.ZERO_BUBBLE:
        yield (
            "a weight's gradient takes as long as the forward product, at most half of the backward pass, and can be "
            "put off whole; the optimizer is not started early"
        )
    if kind is not ScheduleKind.GPIPE:
        yield (
            "the pipeline is priced by a closed form, meant for stages that take equally long; of others it counts one "
            "micro-batch each beside those of the slowest"
        )


def _of_experts(training: Training, workload: Workload, placement: Placement | None) -> Iterator[str]:
    if workload == BALANCED:
        yield "tokens spread evenly over the experts in every step"
    else:
        yield f"every step spreads its tokens as workload {workload.name!r} does"
        if placement is None:
            yield "experts stand on their ranks in order, none has replicas"
    yield "the experts of a rank get equally many tokens each: uneven load inside a rank makes products no slower"
    if training.capacity_factor is not None:
        yield "tokens beyond the capacity of an expert take no time, and neither does padding up to it"


def _of_copies(placement: Placement | None) -> Iterator[str]:
    if placement is None:
        return
    if placement.shadow_slots_per_rank:
        yield (
            "shadow experts get their weights once per step, before its first forward pass, and give their gradients "
            "back after its last backward pass"
        )
    if any(len(row) > placement.num_experts(number) for number, row in enumerate(placement.layers)):
        yield "each rank sends tokens to the replicas of an expert in the same proportions, to those beside it too"

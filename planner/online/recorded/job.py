"""The job that a trace without its plan is replayed as: all devices data parallel, experts over some of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from planner.spec.errors import InputError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Block, Embedding, GroupedQueryAttention, Head, LayerRun, Model, MoeFeedForward, Norm
from planner.spec.placement import TokenSplit
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.run import RunContext
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import MAX_BATCH_SIZE, Training

TRACE_SEQUENCE_LENGTH = 1024
"""Of the model that `trace_model` makes up, as in SmartMoE's runs."""


def replay_context(
    tokens: ArrayLike,
    top_k: int,
    cluster: AnyCluster,
    num_ranks: int,
    extra_slots: int = 0,
    model: Model | None = None,
    *,
    shadow_slots: int = 0,
    token_split: TokenSplit = TokenSplit.EVEN,
    global_batch_size: int | None = None,
) -> RunContext:
    """A context for a trace: all devices data parallel, experts over `num_ranks` of them, ZeRO-1.

    `tokens` [samples, layers, experts] are those of one step. Without a model, `trace_model`. The batch is what they
    are, in sequences, unless `global_batch_size` says so; rounded up to whole samples for each device. Raises
    InputError if the ranks do not divide devices and experts, or if the model's MoE layers are not those of the trace.
    """
    counts = np.asarray(tokens)
    layers, experts = counts.shape[1:]
    if num_ranks < 1 or cluster.num_devices % num_ranks or experts % num_ranks:
        raise InputError.at(
            "num_ranks", f"must divide the {cluster.num_devices} devices and the {experts} experts, got {num_ranks}"
        )
    planned = trace_model(layers, experts, top_k) if model is None else model
    shape = {planned.moe(layer).num_experts for layer in planned.moe_layers}
    if len(planned.moe_layers) != layers or shape != {experts}:
        raise InputError.at("model", f"must have {layers} MoE layers of {experts} experts, as the trace has")
    length = min(TRACE_SEQUENCE_LENGTH, planned.max_sequence_length or TRACE_SEQUENCE_LENGTH)
    samples = global_batch_size or int(counts[0, 0].sum()) // (top_k * length)
    batch = max(1, -(-samples // cluster.num_devices)) * cluster.num_devices
    if batch > MAX_BATCH_SIZE:
        field = "trace.tokens" if global_batch_size is None else "global_batch_size"
        raise InputError.at(field, f"must make a batch of at most {MAX_BATCH_SIZE} samples, make {batch}")
    training = Training(global_batch_size=batch, sequence_length=length)
    plan = _expert_parallel_plan(planned, training, batch, cluster.num_devices, num_ranks)
    return RunContext(
        model=planned,
        cluster=cluster,
        training=training,
        plans=(plan,),
        extra_slots_per_rank=extra_slots,
        shadow_slots_per_rank=shadow_slots,
        token_split=token_split,
    )


def trace_model(num_layers: int, num_experts: int, top_k: int) -> Model:
    """A GPT of the width of SmartMoE's (hidden size 2048, 16 heads, experts of 8192), every block with experts.

    Source: SmartMoE artifact logs, GPT-L8-H2048-32MoE. The recorded trace does not say its own width.
    """
    block = Block(
        attention=GroupedQueryAttention(num_heads=16, num_kv_heads=16, head_dim=128),
        feed_forward=MoeFeedForward(num_experts=num_experts, top_k=top_k, expert_width=8192, gated=False),
        norm=Norm.LAYER,
    )
    runs = (
        LayerRun(layer=Embedding(vocab_size=50304, num_positions=TRACE_SEQUENCE_LENGTH)),
        LayerRun(layer=block, num_layers=num_layers),
        LayerRun(layer=Head(vocab_size=50304, norm=Norm.LAYER)),
    )
    return Model(name="gpt-moe-of-the-trace", hidden_size=2048, runs=runs)


def _expert_parallel_plan(model: Model, training: Training, batch: int, devices: int, num_ranks: int) -> Plan:
    axes = (Axis(AxisKind.DP, devices),) if devices > 1 else ()
    dense = Strategy(axes=axes, sharding=Sharding.OPTIMIZER if devices > 1 else Sharding.NONE)
    spread = ExpertStrategy(expert_parallel_size=num_ranks, expert_data_parallel_size=devices // num_ranks)
    moe = dense.model_copy(update={"experts": spread})
    runs: list[StageRun] = []
    for layer in range(len(model.layers)):
        strategy = moe if layer in model.moe_layers else dense
        if runs and runs[-1].strategy == strategy:
            runs[-1] = runs[-1].model_copy(update={"num_layers": runs[-1].num_layers + 1})
        else:
            runs.append(StageRun(first_layer=layer, num_layers=1, strategy=strategy))
    return Plan(
        global_batch_size=batch,
        sequence_length=training.sequence_length,
        micro_batch_size=1,
        num_micro_batches=batch // devices,
        stages=(Stage(first_device=0, num_devices=devices, runs=tuple(runs)),),
    )

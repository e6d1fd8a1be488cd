"""Random small planning questions of every kind: models, clusters, recipes, loads of experts, options."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st
from small_questions import MIB, a_device

from planner.spec.cluster import Cluster, Level, Link
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    LayerRun,
    Model,
    MoeFeedForward,
)
from planner.spec.stack import Stack
from planner.spec.training import AttentionKernel, Training
from planner.spec.workload import BALANCED, Workload

HIDDEN = 96
EXPERTS = 6
_ATTENTIONS = (
    GroupedQueryAttention(num_heads=12, num_kv_heads=12, head_dim=8, qkv_bias=True),
    GroupedQueryAttention(num_heads=12, num_kv_heads=4, head_dim=8, window=64),
    LatentAttention(
        num_heads=12, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16
    ),
)
STACKS = (
    Stack(),
    Stack(tensor_overlap_ratio=0.5, expert_overlap_ratio=0.9, data_overlap_ratio=0.8, message_host_s=3e-5),
    Stack(block_host_s=2e-4, step_host_s=1e-3, accumulate_bytes=4.0, fragmentation_ratio=0.1, selective_products=True),
)


class Question(NamedTuple):
    """What is planned, as search() and estimate() take it."""

    model: Model
    cluster: Cluster
    training: Training


@st.composite
def models(draw, blocks: st.SearchStrategy[int], experts: bool | None = None) -> Model:
    """Blocks between embedding and head; of models with experts, the first blocks may have none."""
    attention = draw(st.sampled_from(_ATTENTIONS))
    dense = Block(attention=attention, feed_forward=DenseFeedForward(width=4 * HIDDEN, gated=draw(st.booleans())))
    count, runs = draw(blocks), []
    if draw(st.booleans()) if experts is None else experts:
        moe = MoeFeedForward(
            num_experts=EXPERTS,
            top_k=draw(st.integers(1, 3)),
            expert_width=HIDDEN,
            shared_width=draw(st.sampled_from([0, HIDDEN])),
        )
        first = draw(st.integers(0, count - 1))
        runs = [LayerRun(layer=dense, num_layers=first)] if first else []
        runs.append(LayerRun(layer=Block(attention=attention, feed_forward=moe), num_layers=count - first))
    else:
        runs = [LayerRun(layer=dense, num_layers=count)]
    head = Head(vocab_size=3000, tied=draw(st.booleans()))
    embedding = Embedding(vocab_size=3000, num_positions=draw(st.sampled_from([0, 512])))
    return Model(name="any", hidden_size=HIDDEN, runs=(LayerRun(layer=embedding), *runs, LayerRun(layer=head)))


@st.composite
def clusters(draw, sizes: st.SearchStrategy[tuple[int, ...]], memory_mib: st.SearchStrategy[int]) -> Cluster:
    """Devices under tiers of links; `sizes` are the devices that each tier joins, nearest first."""
    joined = draw(sizes)
    levels = tuple(
        Level(
            name=f"tier{size}",
            num_devices=size,
            link=Link(
                bandwidth_bytes_per_s=draw(st.sampled_from([1e9, 1e10, 1e11])) / 4**number,
                latency_s=draw(st.sampled_from([0.0, 5e-6])),
                efficiency_ratio=draw(st.sampled_from([0.7, 1.0])),
            ),
        )
        for number, size in enumerate(joined)
    )
    return Cluster(
        nodes=joined[-1] // joined[0],
        devices_per_node=joined[0],
        device=a_device(draw(memory_mib) * MIB),
        levels=levels,
        stack=draw(st.sampled_from(STACKS)),
    )


@st.composite
def trainings(draw, batches: st.SearchStrategy[int]) -> Training:
    """Recipes that any of the models can have."""
    return Training(
        global_batch_size=draw(batches),
        sequence_length=draw(st.sampled_from([96, 192])),
        attention_kernel=draw(st.sampled_from(list(AttentionKernel))),
        capacity_factor=draw(st.sampled_from([None, 1.25])),
        dropout=draw(st.booleans()),
    )


@st.composite
def workloads(draw, model: Model) -> Workload:
    """Balanced, one row of shares for all MoE layers, or a row for each."""
    rows = draw(st.sampled_from(sorted({0, 1, len(model.moe_layers)} if model.moe_layers else {0})))
    if not rows:
        return BALANCED
    shares = []
    for _ in range(rows):
        weights = draw(st.lists(st.integers(1, 20), min_size=EXPERTS, max_size=EXPERTS))
        shares.append(tuple(weight / sum(weights) for weight in weights))
    return Workload(name="skewed", expert_shares=tuple(shares))

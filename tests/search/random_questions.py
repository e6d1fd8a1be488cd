"""Random small planning questions of every kind: models, clusters, recipes, loads of experts, options."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st
from small_questions import MIB, a_device

from planner.spec.cluster import Cluster, Level, Link
from planner.spec.model import (
    AnyLayer,
    Block,
    DenseFeedForward,
    Embedding,
    EncoderEnd,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    LayerRun,
    Merging,
    Model,
    MoeFeedForward,
    PatchEmbedding,
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
_ALL = GroupedQueryAttention(num_heads=12, num_kv_heads=12, head_dim=8, causal=False)
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


def models(blocks: st.SearchStrategy[int]) -> st.SearchStrategy[Model]:
    """Models of all shapes with so many blocks, or one more where they need two."""
    return st.one_of(decoders(blocks, False), decoders(blocks, True), encoder_decoders(blocks), pyramids(blocks))


def _model(*runs: tuple[AnyLayer, int]) -> Model:
    return Model(
        name="any", hidden_size=HIDDEN, runs=tuple(LayerRun(layer=layer, num_layers=count) for layer, count in runs)
    )


@st.composite
def encoder_decoders(draw, blocks: st.SearchStrategy[int]) -> Model:
    """Blocks on both sides of an encoder's end, those after it with cross-attention."""
    count = max(2, draw(blocks))
    first = draw(st.integers(1, count - 1))
    network = DenseFeedForward(width=4 * HIDDEN, gated=False)
    return _model(
        (Embedding(vocab_size=3000, tokens_per_sample="encoder"), 1),
        (Block(attention=_ALL, feed_forward=network, tokens_per_sample="encoder"), first),
        (EncoderEnd(), 1),
        (Block(attention=_ATTENTIONS[0], cross_attention=_ALL, feed_forward=network), count - first),
        (Head(vocab_size=3000), 1),
    )


@st.composite
def pyramids(draw, blocks: st.SearchStrategy[int]) -> Model:
    """Blocks over windows of an image, of which neighbouring patches become one between them."""
    count = max(2, draw(blocks))
    first = draw(st.integers(1, count - 1))
    network = DenseFeedForward(width=4 * HIDDEN, gated=False)
    windows = _ALL.model_copy(update={"window": 16})
    wide = {"hidden_size": 2 * HIDDEN, "tokens_per_sample": 48}
    return _model(
        (PatchEmbedding(tokens_per_sample=192, patch_values=48), 1),
        (Block(attention=windows, feed_forward=network, tokens_per_sample=192), first),
        (Merging(**wide, input_size=HIDDEN, merged_tokens=4), 1),
        (Block(**wide, attention=windows, feed_forward=network), count - first),
        (Head(**wide, vocab_size=3000, pooled=True), 1),
    )


@st.composite
def decoders(draw, blocks: st.SearchStrategy[int], experts: bool) -> Model:
    """Blocks between embedding and head; of models with experts, the first blocks may have none."""
    attention = draw(st.sampled_from(_ATTENTIONS))
    dense = Block(attention=attention, feed_forward=DenseFeedForward(width=4 * HIDDEN, gated=draw(st.booleans())))
    count = draw(blocks)
    runs: list[tuple[AnyLayer, int]] = [(dense, count)]
    if experts:
        moe = MoeFeedForward(
            num_experts=EXPERTS,
            top_k=draw(st.integers(1, 3)),
            expert_width=HIDDEN,
            shared_width=draw(st.sampled_from([0, HIDDEN])),
        )
        first = draw(st.integers(0, count - 1))
        runs = [(dense, first)] if first else []
        runs.append((Block(attention=attention, feed_forward=moe), count - first))
    head = Head(vocab_size=3000, tied=draw(st.booleans()))
    embedding = Embedding(vocab_size=3000, num_positions=draw(st.sampled_from([0, 512])))
    return _model((embedding, 1), *runs, (head, 1))


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
def questions(
    draw,
    blocks: st.SearchStrategy[int],
    sizes: st.SearchStrategy[tuple[int, ...]],
    memory_mib: st.SearchStrategy[int],
    batches: st.SearchStrategy[int],
) -> Question:
    """Any model on any cluster, with a recipe that it can have."""
    model, cluster = draw(models(blocks)), draw(clusters(sizes, memory_mib))
    return Question(model, cluster, draw(_trainings(model, batches)))


@st.composite
def _trainings(draw, model: Model, batches: st.SearchStrategy[int]) -> Training:
    images = isinstance(model.layers[0], PatchEmbedding)
    return Training(
        global_batch_size=draw(batches),
        sequence_length=192 if images else draw(st.sampled_from([96, 192])),
        encoder_sequence_length=draw(st.sampled_from([48, 192])) if model.has_encoder else None,
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

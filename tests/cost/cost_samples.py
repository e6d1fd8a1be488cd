"""Models, devices and clusters of the tests of prices: small where numbers are worked out by hand, real where not."""

from __future__ import annotations

from planner.search import plan_from_shorthand
from planner.spec.cluster import Cluster, Device, KernelEfficiency, Level, Link, PeakFlops, Provenance
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Model,
    MoeFeedForward,
    Norm,
)
from planner.spec.plan import Plan
from planner.spec.training import Training

DEVICE = Device(
    name="sample",
    memory_bytes=80 * 10**9,
    memory_bandwidth_bytes_per_s=2e12,
    compute_units=100,
    peak_flops_per_s=PeakFlops(fp32=2e13, fp16=3e14, bf16=3e14),
    efficiency=KernelEfficiency(
        matmul_ratio=0.7,
        matmul_half_depth=150,
        attention_forward_ratio=0.5,
        attention_backward_ratio=0.4,
        memory_ratio=0.8,
        kernel_launch_s=3e-6,
        overlap_slowdown_ratio=1.15,
    ),
    reserve_bytes=10**9,
    provenance=Provenance.DATASHEET,
)
NODE_LINK = Link(bandwidth_bytes_per_s=3e11, latency_s=4e-6, efficiency_ratio=0.8)
NETWORK_LINK = Link(bandwidth_bytes_per_s=2.5e10, latency_s=1e-5, efficiency_ratio=0.8)


def cluster(
    nodes: int = 1,
    devices_per_node: int = 8,
    device: Device = DEVICE,
    node_link: Link = NODE_LINK,
    network_link: Link = NETWORK_LINK,
    memory_limit_bytes: int | None = None,
) -> Cluster:
    """Nodes under one network; a single node has one level only."""
    levels = [Level(name="node", num_devices=devices_per_node, link=node_link)]
    if nodes > 1:
        levels.append(Level(name="network", num_devices=nodes * devices_per_node, link=network_link))
    return Cluster(
        nodes=nodes,
        devices_per_node=devices_per_node,
        device=device,
        levels=tuple(levels),
        memory_limit_bytes=memory_limit_bytes,
    )


def gpt(
    layers: int,
    hidden: int,
    heads: int,
    vocab: int = 51200,
    positions: int = 2048,
    tied: bool = True,
    width: int | None = None,
) -> Model:
    """GPT-2's block: biases everywhere, LayerNorm, learned positions, feed-forward four times as wide unless given."""
    attention = GroupedQueryAttention(
        num_heads=heads, num_kv_heads=heads, head_dim=hidden // heads, qkv_bias=True, output_bias=True
    )
    feed_forward = DenseFeedForward(width=width or 4 * hidden, gated=False, bias=True)
    block = Block(attention=attention, feed_forward=feed_forward, norm=Norm.LAYER)
    return Model(
        name=f"gpt-{layers}x{hidden}",
        hidden_size=hidden,
        runs=(
            LayerRun(layer=Embedding(vocab_size=vocab, num_positions=positions)),
            LayerRun(layer=block, num_layers=layers),
            LayerRun(layer=Head(vocab_size=vocab, norm=Norm.LAYER, tied=tied)),
        ),
    )


def moe_model(
    layers: int = 4,
    hidden: int = 256,
    experts: int = 8,
    top_k: int = 2,
    expert_width: int = 512,
    dense_layers: int = 0,
    shared_width: int = 0,
) -> Model:
    """Mixtral's block, small; `dense_layers` blocks without experts come first."""
    attention = GroupedQueryAttention(num_heads=8, num_kv_heads=4, head_dim=hidden // 8)
    moe = MoeFeedForward(num_experts=experts, top_k=top_k, expert_width=expert_width, shared_width=shared_width)
    dense = LayerRun(layer=Block(attention=attention, feed_forward=DenseFeedForward(width=4 * hidden)))
    return Model(
        name="small-moe",
        hidden_size=hidden,
        runs=(
            LayerRun(layer=Embedding(vocab_size=4096)),
            *((dense.model_copy(update={"num_layers": dense_layers}),) if dense_layers else ()),
            LayerRun(layer=Block(attention=attention, feed_forward=moe), num_layers=layers),
            LayerRun(layer=Head(vocab_size=4096)),
        ),
    )


def even_plan(text: str, model: Model, where: Cluster, training: Training) -> Plan:
    """The plan that `text` names, for instance tp2-pp2-mbs1."""
    return plan_from_shorthand(text, model, where, training)

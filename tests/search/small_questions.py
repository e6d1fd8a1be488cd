"""Small but real planning questions: a tiny model on a few devices with little memory."""

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
)
from planner.spec.training import Training

MIB = 2**20


def a_device(memory_bytes: int) -> Device:
    return Device(
        name="toy-1t",
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=1e11,
        compute_units=4,
        peak_flops_per_s=PeakFlops(fp32=1e12, bf16=4e12),
        efficiency=KernelEfficiency(
            matmul_ratio=0.8,
            matmul_tile=(32, 64),
            matmul_half_depth=16,
            attention_forward_ratio=0.5,
            attention_backward_ratio=0.4,
            memory_ratio=0.9,
            kernel_launch_s=2e-6,
            overlap_slowdown_ratio=1.1,
        ),
        reserve_bytes=1 * MIB,
        provenance=Provenance.DATASHEET,
    )


def a_cluster(num_devices: int, memory_bytes: int, bandwidth_bytes_per_s: float = 1e10) -> Cluster:
    link = Link(bandwidth_bytes_per_s=bandwidth_bytes_per_s, latency_s=5e-6)
    level = Level(name="node", num_devices=num_devices, link=link)
    return Cluster(nodes=1, devices_per_node=num_devices, device=a_device(memory_bytes), levels=(level,))


def a_model(blocks: int = 2, hidden: int = 128, experts: int = 0, tied: bool = False) -> Model:
    feed_forward = (
        MoeFeedForward(num_experts=experts, top_k=2, expert_width=2 * hidden)
        if experts
        else DenseFeedForward(width=4 * hidden)
    )
    attention = GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=hidden // 4)
    block = Block(attention=attention, feed_forward=feed_forward)
    return Model(
        name="tiny",
        hidden_size=hidden,
        runs=(
            LayerRun(layer=Embedding(vocab_size=1000)),
            LayerRun(layer=block, num_layers=blocks),
            LayerRun(layer=Head(vocab_size=1000, tied=tied)),
        ),
    )


def a_training(batch: int | str = 4) -> Training:
    return Training(global_batch_size=batch, sequence_length=256)

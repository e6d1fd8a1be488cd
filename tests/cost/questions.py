"""Random questions for estimate() as a whole: any family of model, tiers of links, plan, stack and number format.

Sizes are small, and rates and times lie so far apart that any part may be the longest. What products read stays in
rows of multiples of 64, in every example: see `Question`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_samples import even_plan
from hypothesis import strategies as st

from planner.cost import estimate
from planner.spec.cluster import (
    Cluster,
    Device,
    HostShare,
    KernelEfficiency,
    Level,
    Link,
    PeakFlops,
    Precision,
    Provenance,
)
from planner.spec.estimate import Estimate
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
from profiles.stacks import stack_names, stack_preset

EXPERTS, HEADS = 8, 16
VOCABULARY = 4096
_GQA = GroupedQueryAttention(num_heads=HEADS, num_kv_heads=4, head_dim=64)
_MLA = LatentAttention(
    num_heads=HEADS, q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64
)


@dataclass(frozen=True)
class Question:
    """A model, a cluster, a recipe and a plan, as the numbers they are made of.

    Whatever grows does so in steps of 64: a product whose rows are no multiples of 16 bytes is really slower than a
    larger one whose are (measured in BLOOM's runs), and the fused softmax of 2021 takes multiples of four.
    """

    attention: GroupedQueryAttention | LatentAttention
    experts: bool
    top_k: int
    dense_layers: int
    """Blocks without experts, which come first."""
    layers: int
    hidden: int
    width: int
    micro_batches: int
    samples: int
    """Of each micro-batch, over all data-parallel ranks."""
    sequence_length: int
    words: tuple[str, ...]
    schedule: str
    zero: str
    recompute: str
    pieces: int
    """Stages times virtual stages."""
    stages: int
    device: Device
    links: tuple[Link, ...]
    stack: Stack
    precision: Precision
    attention_kernel: AttentionKernel
    capacity_factor: float | None

    @property
    def model(self) -> Model:
        """Blocks between embedding and head; where there are experts, blocks without come first."""
        dense = Block(attention=self.attention, feed_forward=DenseFeedForward(width=self.width))
        moe = MoeFeedForward(num_experts=EXPERTS, top_k=self.top_k, expert_width=self.width, shared_width=self.width)
        blocks = [LayerRun(layer=dense, num_layers=self.layers)]
        if self.experts:
            rest = LayerRun(layer=Block(attention=self.attention, feed_forward=moe), num_layers=self.layers)
            blocks = [LayerRun(layer=dense, num_layers=self.dense_layers)] if self.dense_layers else []
            blocks.append(rest.model_copy(update={"num_layers": self.layers - self.dense_layers}))
        edges = LayerRun(layer=Embedding(vocab_size=VOCABULARY)), LayerRun(layer=Head(vocab_size=VOCABULARY))
        return Model(name="any", hidden_size=self.hidden, runs=(edges[0], *blocks, edges[1]))

    @property
    def cluster(self) -> Cluster:
        """Eight devices under one, two or three tiers of links."""
        sizes = {1: (8,), 2: (4, 8), 3: (2, 4, 8)}[len(self.links)]
        levels = [
            Level(name=f"{size}", num_devices=size, link=link) for size, link in zip(sizes, self.links, strict=True)
        ]
        return Cluster(
            nodes=8 // sizes[0], devices_per_node=sizes[0], device=self.device, levels=levels, stack=self.stack
        )

    def price(self) -> Estimate:
        """What estimate() says."""
        training = Training(
            global_batch_size=self.samples * self.micro_batches,
            sequence_length=self.sequence_length,
            precision=self.precision,
            attention_kernel=self.attention_kernel,
            capacity_factor=self.capacity_factor,
        )
        text = "-".join([*self.words, *([self.schedule] if self.schedule else []), self.zero])
        text += f"-recompute:{self.recompute}"
        model, cluster = self.model, self.cluster
        return estimate(model, cluster, training, even_plan(text, model, cluster, training))

    def but(self, **changes: object) -> Question:
        """The same with other arguments."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def with_device(self, **changes: object) -> Question:
        """The same with other fields of the device."""
        return self.but(device=self.device.model_copy(update=changes))

    def with_kernels(self, **changes: object) -> Question:
        """The same with other efficiencies."""
        return self.with_device(efficiency=self.device.efficiency.model_copy(update=changes))

    def with_stack(self, **changes: object) -> Question:
        """The same with other fields of the stack."""
        return self.but(stack=self.stack.model_copy(update=changes))


def powers(low: int, high: int) -> st.SearchStrategy[float]:
    """Numbers of all sizes between two powers of ten."""
    return st.floats(low, high).map(lambda power: 10.0**power)


ratios = st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0])
shares = st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])
times = st.one_of(st.just(0.0), powers(-6, -2))
atop = st.sampled_from([1.0, 1.3, 2.0, 10.0])

stacks = st.one_of(
    st.sampled_from(stack_names()).map(lambda name: stack_preset(name).stack),
    st.builds(
        Stack,
        block_host_s=times,
        dropless_host_s=times,
        step_host_s=times,
        message_host_s=times,
        elementwise_ratio=atop,
        loss_ratio=atop,
        quantise_ratio=atop,
        accumulate_bytes=st.sampled_from([0.0, 4.0, 12.0]),
        optimizer_ratio=atop,
        attention_ratio=ratios,
        grouped_matmul_ratio=ratios,
        tensor_overlap_ratio=shares,
        expert_overlap_ratio=shares,
        data_overlap_ratio=shares,
        eager_blocks=st.booleans(),
        eager_loss=st.booleans(),
        selective_products=st.booleans(),
        casts_shards=st.booleans(),
        computed_gradient_bytes=st.sampled_from([0.0, 2.0]),
        update_gradient_bytes=st.sampled_from([0.0, 4.0]),
        fragmentation_ratio=shares,
        library_bytes=st.sampled_from([0, 10**9]),
    ),
)
links = st.builds(
    Link,
    bandwidth_bytes_per_s=powers(8, 12),
    latency_s=times,
    efficiency_ratio=ratios,
    pair_bandwidth_bytes_per_s=st.one_of(st.none(), powers(8, 12)),
)


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """Any device that computes in every number format."""
    peak = draw(powers(11, 15))
    return Device(
        name="any",
        memory_bytes=80 * 10**9,
        memory_bandwidth_bytes_per_s=draw(powers(10, 13)),
        compute_units=draw(st.sampled_from([1, 8, 100])),
        peak_flops_per_s=PeakFlops(fp32=peak / 8, fp16=peak, bf16=peak, fp8=2 * peak, mxfp8=2 * peak, nvfp4=4 * peak),
        efficiency=KernelEfficiency(
            matmul_ratio=draw(ratios),
            quantised_matmul_ratio=draw(ratios),
            half_tile_ratio=draw(ratios),
            last_wave_ratio=draw(ratios),
            misaligned_ratio=draw(ratios),
            matmul_half_depth=draw(st.sampled_from([0.0, 150.0])),
            attention_forward_ratio=draw(ratios),
            attention_backward_ratio=draw(ratios),
            memory_ratio=draw(ratios),
            kernel_launch_s=draw(times),
            overlap_slowdown_ratio=draw(st.sampled_from([1.0, 1.13, 2.0, 5.0])),
        ),
        reserve_bytes=10**9,
        provenance=Provenance.DATASHEET,
        host=HostShare(
            link_bytes_per_s=draw(powers(8, 12)),
            memory_bytes=10**12,
            memory_bandwidth_bytes_per_s=draw(powers(8, 12)),
        ),
    )


@st.composite
def _plans(draw: st.DrawFn, experts: bool) -> dict[str, object]:
    """Degrees over eight devices that go together, with batch and sequence that they divide."""
    stages = draw(st.sampled_from([1, 2, 4]))
    rest = 8 // stages
    tensor = draw(st.sampled_from([degree for degree in (1, 2, 4) if degree <= rest]))
    flash = draw(st.booleans())
    context = draw(st.sampled_from([1, 2]) if flash and tensor < rest else st.just(1))
    heads = draw(st.sampled_from([degree for degree in (1, 2, 4) if rest % (tensor * context * degree) == 0]))
    data = rest // (tensor * context * heads)
    micro_batch = draw(st.sampled_from([1, 2]))
    words = [f"tp{tensor}", f"pp{stages}", f"cp{context}", f"ulysses{heads}", f"dp{data}", f"mbs{micro_batch}"]
    if tensor > 1 and (experts or draw(st.booleans())):
        words.append("sp")
    if draw(st.booleans()):
        words.append("offload")
    if experts:
        parallel = draw(st.sampled_from([degree for degree in (1, 2, 4, 8) if degree <= rest]))
        words += [f"ep{parallel}", f"etp{draw(st.sampled_from([d for d in (1, 2) if parallel * d <= rest]))}"]
    schedule = draw(st.sampled_from(["", "gpipe", "zb", *(["vpp2"] if stages > 1 else [])]))
    return {
        "words": tuple(words),
        "schedule": schedule,
        "stages": stages,
        "pieces": stages * (2 if schedule == "vpp2" else 1),
        "zero": draw(st.sampled_from([f"zero{level}" for level in range(4)]))
        if data * context * heads > 1
        else "zero0",
        "micro_batches": stages * draw(st.integers(1, 3)),
        "samples": micro_batch * data,
        "sequence_length": 256 * tensor * context * heads * draw(st.sampled_from([1, 4])),
        "attention_kernel": AttentionKernel.FLASH if flash else AttentionKernel.UNFUSED,
    }


@st.composite
def questions(draw: st.DrawFn, experts: bool | None = None) -> Question:
    """Any question whose plan its model and cluster allow."""
    has_experts = draw(st.booleans()) if experts is None else experts
    plan = draw(_plans(has_experts))
    layers = plan["pieces"] * draw(st.integers(1, 3))  # type: ignore[operator]
    return Question(
        attention=draw(st.sampled_from([_GQA, _MLA])),
        experts=has_experts,
        top_k=draw(st.integers(1, EXPERTS - 1)),
        dense_layers=draw(st.integers(0, layers - 1)) if has_experts else 0,
        layers=layers,
        hidden=256 * draw(st.integers(1, 4)),
        width=256 * draw(st.integers(1, 4)),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        device=draw(devices()),
        links=tuple(draw(st.lists(links, min_size=1, max_size=3))),
        stack=draw(stacks),
        precision=draw(st.sampled_from(list(Precision))),
        capacity_factor=draw(st.sampled_from([None, 1.0, 1.5])),
        **plan,  # type: ignore[arg-type]
    )

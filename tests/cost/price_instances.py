"""Random small questions for estimate(), written as the arguments they are made of, so that one can be changed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cost_samples import DEVICE, NETWORK_LINK, NODE_LINK, cluster, even_plan, gpt, moe_model
from hypothesis import strategies as st

from planner.cost import estimate
from planner.spec.cluster import Cluster, Device, Link
from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.training import AttentionKernel, Training
from planner.spec.workload import BALANCED, Workload

EXPERTS = 8


@dataclass(frozen=True)
class Instance:
    """A model, a cluster, a recipe and a plan, all small."""

    moe: bool
    layers: int
    hidden: int
    width_factor: int
    nodes: int
    sequence_length: int
    batch_size: int
    words: tuple[str, ...]
    """Of the plan, recomputation apart."""
    recompute: str = "none"
    attention_kernel: AttentionKernel = AttentionKernel.FLASH
    dropout: bool = False
    device: Device = field(default=DEVICE)
    node_link: Link = field(default=NODE_LINK)
    network_link: Link = field(default=NETWORK_LINK)

    @property
    def model(self) -> Model:
        """Blocks of the same kind between embedding and head."""
        if self.moe:
            return moe_model(self.layers, self.hidden, EXPERTS, expert_width=self.hidden * self.width_factor)
        return gpt(self.layers, self.hidden, 8, vocab=4096, positions=8192, width=self.hidden * self.width_factor)

    @property
    def cluster(self) -> Cluster:
        """Nodes of four devices."""
        return cluster(self.nodes, 4, self.device, self.node_link, self.network_link)

    @property
    def training(self) -> Training:
        """The recipe."""
        return Training(
            global_batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            attention_kernel=self.attention_kernel,
            dropout=self.dropout,
        )

    def price(self, workload: Workload = BALANCED) -> Estimate:
        """What estimate() says."""
        text = "-".join([*self.words, f"recompute:{self.recompute}"])
        model, where, training = self.model, self.cluster, self.training
        return estimate(model, where, training, even_plan(text, model, where, training), workload)

    def but(self, **changes: object) -> Instance:
        """The same with other arguments."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def with_device(self, **changes: object) -> Instance:
        """The same with another device."""
        return replace(self, device=self.device.model_copy(update=changes))


@st.composite
def instances(draw: st.DrawFn, moe: bool | None = None) -> Instance:
    """Any plan that its model, cluster and recipe allow."""
    has_experts = draw(st.booleans()) if moe is None else moe
    nodes = draw(st.sampled_from([1, 2]))
    pipeline = draw(st.sampled_from([1, 2, 4]))
    rest = nodes * 4 // pipeline
    tensor = draw(st.sampled_from([degree for degree in (1, 2, 4) if degree <= rest]))
    flash = draw(st.booleans())
    context = draw(
        st.sampled_from([degree for degree in (1, 2) if degree <= rest // tensor and (flash or degree == 1)])
    )
    heads = draw(st.sampled_from([degree for degree in (1, 2) if rest % (tensor * context * degree) == 0]))
    data = rest // (tensor * context * heads)
    schedules = ["1f1b", "gpipe", "zb"] + (["vpp2"] if pipeline > 1 else [])
    schedule = draw(st.sampled_from(schedules))
    micro_batch = draw(st.sampled_from([1, 2]))
    # Interleaving wants micro-batches in multiples of the stages.
    count = pipeline * draw(st.integers(1, 3))
    words = [f"tp{tensor}", f"pp{pipeline}", f"cp{context}", f"ulysses{heads}", f"dp{data}", f"mbs{micro_batch}"]
    words += [schedule] if schedule != "1f1b" else []
    if data * context * heads > 1:
        words.append(draw(st.sampled_from(["zero0", "zero1", "zero2", "zero3"])))
    if tensor > 1 and (has_experts or draw(st.booleans())):
        words.append("sp")
    if has_experts:
        parallel = draw(st.sampled_from([degree for degree in (1, 2, 4, 8) if degree <= rest]))
        expert_tensor = draw(st.sampled_from([degree for degree in (1, 2) if parallel * degree <= rest]))
        words += [f"ep{parallel}", f"etp{expert_tensor}"]
    return Instance(
        moe=has_experts,
        layers=2 * pipeline * draw(st.integers(1, 2)),
        hidden=draw(st.sampled_from([256, 1024])),
        width_factor=draw(st.sampled_from([1, 4])),
        nodes=nodes,
        sequence_length=draw(st.sampled_from([256, 2048])),
        batch_size=micro_batch * data * count,
        words=tuple(words),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        attention_kernel=AttentionKernel.FLASH if flash else AttentionKernel.UNFUSED,
        dropout=draw(st.booleans()),
    )


@st.composite
def skewed_shares(draw: st.DrawFn) -> Workload:
    """Shares of the experts of small models, uneven unless drawn even."""
    weights = draw(st.lists(st.integers(0, 20), min_size=EXPERTS, max_size=EXPERTS).filter(any))
    return Workload(name="skewed", expert_shares=(tuple(weight / sum(weights) for weight in weights),))

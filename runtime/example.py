"""A small Mixture-of-Experts language model and its training loop, with an agent: a program to read and to copy.

The model is built from the planner's own value (`planner.spec.model.Model`), so what is planned is what is trained:
grouped-query attention, expert-parallel feed-forward layers, learned positions. It reads bytes.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import Block, Embedding, GroupedQueryAttention, Head, LayerRun, Model, MoeFeedForward
from planner.spec.placement import TokenSplit
from planner.spec.plan import Plan
from planner.spec.strategy import ExpertStrategy, Recompute, Sharding
from planner.spec.value import Count, Index, Positive, Value
from runtime.agent import Agent
from runtime.comparison import Comparison, compare_placements, without_replicas
from runtime.exchange import Group, num_ranks, rank
from runtime.gradients import average_gradients
from runtime.launch import Report
from runtime.migration import current_placement
from runtime.moe import ExpertParallelMoe, moe_layers

NUM_BYTES = 256
COMPARED_BATCHES = 17


def language_model(  # every argument is a dimension of the model
    *, hidden_size: int, num_blocks: int, num_heads: int, experts: MoeFeedForward, sequence_length: int
) -> Model:
    """The description of a byte-level model with experts in each block, for the planner and for `LanguageModel`."""
    attention = GroupedQueryAttention(num_heads=num_heads, num_kv_heads=num_heads, head_dim=hidden_size // num_heads)
    return Model(
        name="byte-moe",
        hidden_size=hidden_size,
        max_sequence_length=sequence_length,
        runs=(
            LayerRun(layer=Embedding(vocab_size=NUM_BYTES, num_positions=sequence_length)),
            LayerRun(layer=Block(attention=attention, feed_forward=experts), num_layers=num_blocks),
            LayerRun(layer=Head(vocab_size=NUM_BYTES)),
        ),
    )


class SelfAttention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, hidden_size: int, shape: GroupedQueryAttention) -> None:
        super().__init__()
        self.sizes = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(hidden_size, sum(self.sizes) * shape.head_dim, bias=False)
        self.output = nn.Linear(shape.num_heads * shape.head_dim, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[samples, tokens, hidden_size] → the same shape."""
        samples, tokens, _ = hidden.shape
        heads = self.qkv(hidden).view(samples, tokens, -1, self.head_dim).transpose(1, 2)
        query, key, value = torch.split(heads, self.sizes, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.output(mixed.transpose(1, 2).reshape(samples, tokens, -1))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Norm, attention, norm, experts; two residual additions."""

    def __init__(self, hidden_size: int, block: Block, group: Group | None, layer_options: dict[str, Any]) -> None:
        super().__init__()
        attention, experts = block.attention, block.moe
        if experts is None or not isinstance(attention, GroupedQueryAttention) or attention != _plain(attention):
            raise InputError.at("model", "this example builds blocks with plain causal attention and experts only")
        self.attention_norm = nn.RMSNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, attention)
        self.expert_norm = nn.RMSNorm(hidden_size)
        self.experts = ExpertParallelMoe(hidden_size, experts, group, **layer_options)

    def forward(self, hidden: Tensor) -> Tensor:
        """[samples, tokens, hidden_size] → the same shape."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.experts(self.expert_norm(hidden))  # type: ignore[no-any-return]


def _plain(shape: GroupedQueryAttention) -> GroupedQueryAttention:
    """Attention of this size without anything special."""
    return GroupedQueryAttention(num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim)


class LanguageModel(nn.Module):
    """The model that a `Model` of `language_model` describes, with its experts spread over `group`.

    `layer_options`: further arguments of `ExpertParallelMoe`.
    """

    def __init__(self, model: Model, group: Group | None = None, **layer_options: Any) -> None:
        super().__init__()
        embedding = model.layers[0]
        if not isinstance(embedding, Embedding) or embedding.num_positions == 0:
            raise InputError.at("model", "this example needs an embedding with learned positions")
        self.tokens = nn.Embedding(embedding.vocab_size, model.hidden_size)
        self.positions = nn.Embedding(embedding.num_positions, model.hidden_size)
        blocks = (layer for layer in model.layers if isinstance(layer, Block))
        self.blocks = nn.ModuleList(
            TransformerBlock(model.hidden_size, block, group, layer_options) for block in blocks
        )
        self.norm = nn.RMSNorm(model.hidden_size)
        self.head = nn.Linear(model.hidden_size, embedding.vocab_size, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Bytes [samples, tokens + 1] → mean cross-entropy of each byte after the first, in nats."""
        given, wanted = text[:, :-1].long(), text[:, 1:].long()
        hidden = self.tokens(given) + self.positions.weight[: given.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), wanted.flatten())


def library_text(max_bytes: int) -> Tensor:
    """The sources of the Python standard library, file after file, as bytes [at most max_bytes]."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= max_bytes:
            break
    if not text:
        raise NotFoundError("this Python has no sources of its standard library to train on")
    return torch.frombuffer(text[:max_bytes], dtype=torch.uint8)


def batches(text: Tensor, samples: int, sequence_length: int, seed: int) -> Iterator[Tensor]:
    """Endless random pieces of the text, [samples, sequence_length + 1]; equal seeds give equal pieces."""
    generator = torch.Generator().manual_seed(seed)
    within = torch.arange(sequence_length + 1)
    while True:
        starts = torch.randint(len(text) - sequence_length, (samples, 1), generator=generator)
        yield text[starts + within]


class Job(Value):
    """One training job: what to train, by which plan, and where the planner is."""

    model: Model
    plan: Plan
    service: str
    search: str
    run: str
    num_steps: Count
    window_steps: Count
    learning_rate: Positive = 2e-3
    seed: Index = 0
    extra_slots_per_rank: Index = 0
    """For replicas of experts; the run of the planner must have as many."""
    shadow_slots_per_rank: Index = 0
    """For shadow experts, besides; the run begins with as many."""
    token_split: TokenSplit = TokenSplit.WINDOW
    """How replicas share tokens."""


class Progress(NamedTuple):
    """What rank 0 reports at the end of a window: its loss in nats per byte, and seconds; means over the window."""

    step: int
    loss: float
    step_time_s: float


def can_run(plan: Plan) -> bool:
    """Whether this program trains by this plan: data parallelism, experts over all ranks, nothing else."""
    strategies = {run.strategy for stage in plan.stages for run in stage.runs}
    return len(plan.stages) == 1 and all(
        strategy.data_parallel_size == plan.num_devices
        and strategy.sharding is Sharding.NONE
        and strategy.recompute is Recompute.NONE
        and not strategy.offload
        and strategy.experts in (None, ExpertStrategy(expert_parallel_size=plan.num_devices))
        for strategy in strategies
    )


class Trained(NamedTuple):
    """What a rank has at the end."""

    losses: list[float]
    """Its own, by step."""
    comparison: Comparison
    """The experts in order without replicas against the adapted placement, on the model as it is at the end."""


def train(report: Report, job: Job) -> Trained:
    """The training program of one rank. Reports each `Progress` and each `Decision` from rank 0."""
    tell = report if rank(None) == 0 else _say_nothing
    model, optimizer, data = _begin(job)
    agent = Agent(
        service=job.service,
        run=job.run,
        search=job.search,
        plan=job.plan.id,
        model=model,
        optimizer=optimizer,
        window_steps=job.window_steps,
        on_decision=tell,
    )
    at_start = current_placement(moe_layers(model))
    losses: list[float] = []
    began = time.perf_counter()
    for step in range(1, job.num_steps + 1):
        losses.append(train_step(model, optimizer, data, job.plan.num_micro_batches))
        agent.step()
        if step % job.window_steps == 0:
            mean = sum(losses[-job.window_steps :]) / job.window_steps
            tell(Progress(step, mean, (time.perf_counter() - began) / job.window_steps))
            began = time.perf_counter()
    agent.close()
    adapted = current_placement(moe_layers(model))
    placements = (without_replicas(adapted), at_start, adapted)
    compared = [next(data) for _ in range(COMPARED_BATCHES)]
    return Trained(losses, compare_placements(model, optimizer, placements, compared))


def train_alone(report: Report, job: Job) -> list[float]:
    """The same training without an agent, experts in order and no replicas: the losses of this rank, by step.

    Reports each step's number from rank 0.
    """
    tell = report if rank(None) == 0 else _say_nothing
    model, optimizer, data = _begin(job.model_copy(update={"extra_slots_per_rank": 0, "shadow_slots_per_rank": 0}))
    losses = []
    for step in range(1, job.num_steps + 1):
        losses.append(train_step(model, optimizer, data, job.plan.num_micro_batches))
        tell(step)
    return losses


def _begin(job: Job) -> tuple[LanguageModel, torch.optim.Optimizer, Iterator[Tensor]]:
    if not can_run(job.plan) or job.plan.num_devices != num_ranks(None):
        raise InputError.at("plan", f"this example cannot run {job.plan.summary} on {num_ranks(None)} ranks")
    torch.manual_seed(job.seed)
    model = LanguageModel(
        job.model,
        extra_slots_per_rank=job.extra_slots_per_rank,
        shadow_slots_per_rank=job.shadow_slots_per_rank,
        token_split=job.token_split,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate)
    text = library_text(4_000_000)
    return model, optimizer, batches(text, job.plan.micro_batch_size, job.plan.sequence_length, seed=rank(None))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator[Tensor], num_micro_batches: int
) -> float:
    """One step: this rank's micro-batches, gradients averaged over ranks, AdamW. Returns this rank's mean loss."""
    optimizer.zero_grad()
    total = 0.0
    for _ in range(num_micro_batches):
        loss = model(next(data)) / num_micro_batches
        loss.backward()
        total += loss.item()
    average_gradients(model)
    optimizer.step()
    return total


def _say_nothing(_: object) -> None:
    """What ranks other than 0 report."""

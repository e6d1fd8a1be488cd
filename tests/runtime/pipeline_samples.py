"""A language model of four MoE layers on pipeline stages of expert-parallel ranks (two by two), trained by hand."""

from __future__ import annotations

from datetime import datetime, timezone

import torch
import torch.distributed as dist
import torch.nn.functional as F
from planner_samples import SEARCH
from torch import nn
from training_samples import EXPERT_SHAPE, TOKENS

from planner.online import begin
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.request import ClusterRequest
from planner.spec.run import Run, RunContext
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Strategy
from planner.spec.training import Precision, Training
from profiles import resolve_cluster
from runtime.example import LanguageModel, batches, language_model, library_text
from runtime.gradients import average_gradients, clip_gradients

STAGES, EXPERT_RANKS, BLOCKS, HIDDEN, SAMPLES = 2, 2, 4, 32, 2


def sample_model(num_blocks=BLOCKS):
    return language_model(
        hidden_size=HIDDEN, num_blocks=num_blocks, num_heads=2, experts=EXPERT_SHAPE, sequence_length=TOKENS
    )


MODEL = sample_model()
IN_ORDER = ((0, (0, 1)), (1, (2, 3)))
"""In the order of the model: the stage of each chunk, and its blocks."""
INTERLEAVED = ((0, (0,)), (1, (1,)), (0, (2,)), (1, (3,)))
ONE_EACH = ((0, (0,)), (1, (1,)), (2, (2,)), (3, (3,)))
UNCUT = ((0, (0, 1, 2, 3)),)


def pipeline_plan(num_blocks=BLOCKS, micro_batch_size=SAMPLES):
    """pp2·ep2, of the blocks two on the first stage."""
    axes = (Axis(AxisKind.DP, EXPERT_RANKS),)
    plain = Strategy(axes=axes)
    spread = Strategy(axes=axes, experts=ExpertStrategy(expert_parallel_size=EXPERT_RANKS))
    first = (
        StageRun(first_layer=0, num_layers=1, strategy=plain),
        StageRun(first_layer=1, num_layers=2, strategy=spread),
    )
    last = (
        StageRun(first_layer=3, num_layers=num_blocks - 2, strategy=spread),
        StageRun(first_layer=num_blocks + 1, num_layers=1, strategy=plain),
    )
    return Plan(
        global_batch_size=micro_batch_size * EXPERT_RANKS,
        sequence_length=TOKENS,
        micro_batch_size=micro_batch_size,
        num_micro_batches=1,
        stages=(
            Stage(first_device=0, num_devices=EXPERT_RANKS, runs=first),
            Stage(first_device=EXPERT_RANKS, num_devices=EXPERT_RANKS, runs=last),
        ),
    )


def pipeline_run(num_blocks=BLOCKS, micro_batch_size=SAMPLES):
    plan = pipeline_plan(num_blocks, micro_batch_size)
    cluster = resolve_cluster(ClusterRequest(nodes=1, devices_per_node=plan.num_devices, device="cpu-core"))
    training = Training(global_batch_size=plan.global_batch_size, sequence_length=TOKENS, precision=Precision.FP32)
    context = RunContext(model=sample_model(num_blocks), cluster=cluster, training=training, plans=(plan,))
    state = begin(context)
    return Run(
        id="id-of-my-run",
        name="my-run",
        search_id=SEARCH,
        created_at=datetime(2026, 11, 21, tzinfo=timezone.utc),
        plan_id=state.plan_id,
        placement=state.placement,
        context=context,
    )


class Chunk(nn.Module):
    """Some blocks that follow each other, with the embedding before the first of all and the head after the last."""

    def __init__(self, whole, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(whole.blocks[block] for block in blocks)
        self.is_first, self.is_last = blocks[0] == 0, blocks[-1] == BLOCKS - 1
        if self.is_first:
            self.tokens, self.positions = whole.tokens, whole.positions
        if self.is_last:
            self.norm, self.head = whole.norm, whole.head

    def forward(self, hidden, text):
        """Hidden states, or nothing before the first block → hidden states, after the last block the loss."""
        if self.is_first:
            given = text[:, :-1].long()
            hidden = self.tokens(given) + self.positions.weight[: given.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        if not self.is_last:
            return hidden
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), text[:, 1:].long().flatten())


class PipelineJob:
    """This rank's chunks: rank = stage · `expert_ranks` + expert-parallel rank, which is the data-parallel rank too."""

    def __init__(self, layout, expert_ranks=EXPERT_RANKS, seed=0, max_norm=None, **layer_options):
        self.owners = [stage for stage, _ in layout]
        ranks = expert_ranks * (max(self.owners) + 1)
        groups = [dist.new_group(range(n, n + expert_ranks)) for n in range(0, ranks, expert_ranks)]
        pipelines = [dist.new_group(range(place, ranks, expert_ranks)) for place in range(expert_ranks)]
        self.expert_ranks, self.max_norm = expert_ranks, max_norm
        self.stage, self.place = divmod(dist.get_rank(), expert_ranks)
        self.group, self.pipeline = groups[self.stage], pipelines[self.place]
        torch.manual_seed(seed)
        whole = LanguageModel(MODEL, self.group, **layer_options)
        self.chunks = {n: Chunk(whole, blocks) for n, (stage, blocks) in enumerate(layout) if stage == self.stage}
        mine = [blocks for stage, blocks in layout if stage == self.stage]
        self.moe_layers = [block for blocks in mine for block in blocks]
        self.names = [{f"blocks.{n}": f"blocks.{block}" for n, block in enumerate(blocks)} for blocks in mine]
        self.model = list(self.chunks.values())
        self.optimizer = torch.optim.AdamW([p for chunk in self.model for p in chunk.parameters()], lr=1e-2)
        self.data = my_streams(expert_ranks, self.place)

    def train_step(self):
        """All chunks forward, all back; returns the loss over all ranks."""
        text, passes = next(self.data), {}
        self.optimizer.zero_grad()
        output = torch.zeros(())
        for number, chunk in self.chunks.items():
            given = None if number == 0 else self.received(text, number - 1).requires_grad_()
            output = chunk(given, text)
            passes[number] = given, output
            if not chunk.is_last:
                dist.send(output.detach(), self.holder(number + 1))
        loss = output.detach() / self.expert_ranks if chunk.is_last else torch.zeros(())
        for number, (given, output) in reversed(passes.items()):
            output.backward(None if self.chunks[number].is_last else self.received(text, number + 1))
            if given is not None:
                dist.send(given.grad, self.holder(number - 1))
        average_gradients(nn.ModuleList(self.model), self.group)
        if self.max_norm is not None:
            self.norm = clip_gradients(nn.ModuleList(self.model), self.max_norm, self.pipeline).item()
        self.optimizer.step()
        dist.all_reduce(loss)
        return loss.item()

    def holder(self, chunk):
        """The rank that has a chunk for this place."""
        return self.owners[chunk] * self.expert_ranks + self.place

    def received(self, text, chunk):
        """What the chunk before sends forward, or the chunk after sends back."""
        hidden = torch.empty(len(text), TOKENS, HIDDEN)
        dist.recv(hidden, self.holder(chunk))
        return hidden


def my_streams(expert_ranks, place):
    """A place's part of the batches that each step reads, whatever the number of places."""
    text = library_text(100_000)
    streams = [batches(text, SAMPLES, TOKENS, seed) for seed in range(EXPERT_RANKS)]
    mine = slice(place * EXPERT_RANKS // expert_ranks, (place + 1) * EXPERT_RANKS // expert_ranks)
    while True:
        yield torch.cat([next(stream) for stream in streams][mine])


class OneProcess:
    """The same job on one process."""

    def __init__(self, max_norm=float("inf")):
        torch.manual_seed(0)
        self.model = LanguageModel(MODEL)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.data, self.max_norm = my_streams(1, 0), max_norm

    def train_step(self):
        self.optimizer.zero_grad()
        loss = self.model(next(self.data))
        loss.backward()
        self.norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm).item()
        self.optimizer.step()
        return loss.item()

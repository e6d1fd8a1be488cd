"""A language model of four MoE layers on two pipeline stages of two expert-parallel ranks each, trained by hand."""

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
from runtime.gradients import average_gradients

STAGES, EXPERT_RANKS, BLOCKS, HIDDEN, SAMPLES = 2, 2, 4, 32, 2


def sample_model(num_blocks=BLOCKS):
    return language_model(
        hidden_size=HIDDEN, num_blocks=num_blocks, num_heads=2, experts=EXPERT_SHAPE, sequence_length=TOKENS
    )


MODEL = sample_model()
IN_ORDER = ((0, (0, 1)), (1, (2, 3)))
"""In the order of the model: the stage of each chunk, and its blocks."""
INTERLEAVED = ((0, (0,)), (1, (1,)), (0, (2,)), (1, (3,)))


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
    """This rank's chunks: rank = stage · 2 + expert-parallel rank, which is the data-parallel rank too."""

    def __init__(self, layout):
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        self.stage, place = divmod(dist.get_rank(), EXPERT_RANKS)
        self.group, self.partner = groups[self.stage], (1 - self.stage) * EXPERT_RANKS + place
        torch.manual_seed(0)
        whole = LanguageModel(MODEL, self.group)
        self.owners = [stage for stage, _ in layout]
        self.chunks = {n: Chunk(whole, blocks) for n, (stage, blocks) in enumerate(layout) if stage == self.stage}
        self.moe_layers = [block for stage, blocks in layout if stage == self.stage for block in blocks]
        self.model = list(self.chunks.values())
        self.optimizer = torch.optim.AdamW([p for chunk in self.model for p in chunk.parameters()], lr=1e-2)
        self.data = batches(library_text(100_000), SAMPLES, TOKENS, seed=place)

    def train_step(self):
        """All chunks forward, all back; returns the loss over all ranks."""
        text, passes = next(self.data), {}
        self.optimizer.zero_grad()
        output = torch.zeros(())
        for number, chunk in self.chunks.items():
            given = None if number == 0 else self.received(number).requires_grad_()
            output = chunk(given, text)
            passes[number] = given, output
            if not chunk.is_last:
                dist.send(output.detach(), self.partner)
        loss = output.detach() / EXPERT_RANKS if chunk.is_last else torch.zeros(())
        for number, (given, output) in reversed(passes.items()):
            output.backward(None if self.chunks[number].is_last else self.received(number))
            if given is not None:
                dist.send(given.grad, self.partner)
        average_gradients(nn.ModuleList(self.model), self.group)
        self.optimizer.step()
        dist.all_reduce(loss)
        return loss.item()

    def received(self, number):
        """From the other stage: what the chunk before sends forward, or the chunk after sends back."""
        hidden = torch.empty(SAMPLES, TOKENS, HIDDEN)
        dist.recv(hidden, self.partner)
        return hidden


class OneProcess:
    """The same job on one process."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = LanguageModel(MODEL)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        text = library_text(100_000)
        self.data = [batches(text, SAMPLES, TOKENS, seed) for seed in range(EXPERT_RANKS)]

    def train_step(self):
        self.optimizer.zero_grad()
        loss = self.model(torch.cat([next(stream) for stream in self.data]))
        loss.backward()
        self.optimizer.step()
        return loss.item()

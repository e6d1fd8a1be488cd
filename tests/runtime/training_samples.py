"""A tiny language model, its training on any number of ranks, and random placements: what the runtime's tests share."""

from __future__ import annotations

import random

import torch
import torch.distributed as dist

from planner.spec.model import MoeFeedForward
from planner.spec.placement import Placement
from runtime.example import LanguageModel, batches, language_model, library_text
from runtime.exchange import num_ranks, rank
from runtime.gradients import average_gradients
from runtime.migration import migrate
from runtime.moe import moe_layers

RANKS = 4
LAYERS, EXPERTS, TOKENS = 2, 8, 16
EXPERT_SHAPE = MoeFeedForward(num_experts=EXPERTS, top_k=2, expert_width=48)
MODEL = language_model(hidden_size=32, num_blocks=LAYERS, num_heads=2, experts=EXPERT_SHAPE, sequence_length=TOKENS)


def make_job(seed=0, **layer_options):
    torch.manual_seed(seed)
    model = LanguageModel(MODEL, **layer_options)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def my_batches(union=RANKS):
    """This rank's part of the `union` batches that each step reads, whatever the number of ranks."""
    text = library_text(100_000)
    streams = [batches(text, 2, TOKENS, seed) for seed in range(union)]
    mine = slice(rank(None) * union // num_ranks(None), (rank(None) + 1) * union // num_ranks(None))
    while True:
        yield torch.cat([next(stream) for stream in streams][mine])


def train_step(model, optimizer, batch):
    """One step; returns the loss over all ranks."""
    optimizer.zero_grad()
    loss = model(batch)
    loss.backward()
    average_gradients(model)
    optimizer.step()
    total = loss.detach().clone()
    if num_ranks(None) > 1:
        dist.all_reduce(total)
    return (total / num_ranks(None)).item()


def random_placement(random_numbers: random.Random, ranks=RANKS, extra=0, shadows=0, split=False):
    """`extra` and `shadows`: slots of each rank for replicas, and for shadow experts."""
    rows, parts = [], []
    for _ in range(LAYERS):
        experts = [*range(EXPERTS), *random_numbers.choices(range(EXPERTS), k=extra * ranks)]
        random_numbers.shuffle(experts)
        size = len(experts) // ranks
        row = []
        for rank_number in range(ranks):
            row += experts[rank_number * size : (rank_number + 1) * size]
            row += random_numbers.choices(range(EXPERTS), k=shadows)
        weights = [random_numbers.choice([0.0, 1.0, 3.0]) + 0.01 for _ in row]
        whole = [sum(w for w, e in zip(weights, row, strict=True) if e == expert) for expert in range(EXPERTS)]
        rows.append(tuple(row))
        parts.append(tuple(weight / whole[expert] for weight, expert in zip(weights, row, strict=True)))
    return Placement(
        layers=tuple(rows), num_ranks=ranks, shadow_slots_per_rank=shadows, split=tuple(parts) if split else None
    )


def train_with_migrations(report, steps, every):
    """Losses of `steps` steps with a random placement after each `every`-th; 0: none. `report` may be None."""
    model, optimizer = make_job()
    data, random_numbers, losses = my_batches(), random.Random(1), []
    for step in range(1, steps + 1):
        losses.append(train_step(model, optimizer, next(data)))
        if every and step % every == 0:
            migrate(moe_layers(model), random_placement(random_numbers), optimizer)
    return losses


def largest_difference(one, other):
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))

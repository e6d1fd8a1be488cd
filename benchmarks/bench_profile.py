"""Predicted against measured steps of three small models on this machine, by the profile that `trimtab profile` makes.

Run: .venv/bin/python benchmarks/bench_profile.py [PROFILE.json]; without a profile it measures one first.
fp32, forward, backward and fused AdamW, one thread for each process, gloo over loopback. A step is the quickest of a
repetition, since other work on the machine makes steps longer, never shorter; the aim is a ratio of predicted over
measured within 20 %.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from api.cli import run
from planner.cost import estimate
from planner.search import plan_from_shorthand
from planner.spec.cluster import Precision
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
from profiles import cluster_from_shorthand, resolve_cluster
from runtime.example import LanguageModel, SelfAttention, language_model
from runtime.exchange import num_ranks, rank
from runtime.gradients import average_gradients
from runtime.launch import launch

REPETITIONS = 3
WARM_UP, STEPS = 2, 16
AIM = 0.2


class Case(NamedTuple):
    name: str
    model: Model
    ranks: int
    plan: str
    samples: int
    """Of each rank."""
    sequence_length: int


class DenseBlock(nn.Module):
    """Norm, attention, norm, gated feed-forward; two residual additions."""

    def __init__(self, hidden_size: int, block: Block) -> None:
        super().__init__()
        width = block.feed_forward.width
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, block.attention)
        self.up = nn.Linear(hidden_size, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))
        gate, value = self.up(self.feed_forward_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * value)


class DenseModel(nn.Module):
    """Token and position embeddings, dense blocks, norm, head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        embedding, hidden = model.layers[0], model.hidden_size
        self.tokens, self.positions = (
            nn.Embedding(embedding.vocab_size, hidden),
            nn.Embedding(embedding.num_positions, hidden),
        )
        self.blocks = nn.Sequential(*(DenseBlock(hidden, layer) for layer in model.layers if isinstance(layer, Block)))
        self.norm, self.head = nn.RMSNorm(hidden), nn.Linear(hidden, embedding.vocab_size, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        given, wanted = text[:, :-1], text[:, 1:]
        hidden = self.blocks(self.tokens(given) + self.positions.weight[: given.shape[1]])
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), wanted.flatten())


def dense(hidden_size: int, blocks: int, sequence_length: int, vocab_size: int) -> Model:
    attention = GroupedQueryAttention(num_heads=hidden_size // 64, num_kv_heads=hidden_size // 64, head_dim=64)
    block = Block(attention=attention, feed_forward=DenseFeedForward(width=hidden_size * 8 // 3 // 32 * 32))
    return Model(
        name=f"dense-{blocks}x{hidden_size}",
        hidden_size=hidden_size,
        runs=(
            LayerRun(layer=Embedding(vocab_size=vocab_size, num_positions=sequence_length)),
            LayerRun(layer=block, num_layers=blocks),
            LayerRun(layer=Head(vocab_size=vocab_size)),
        ),
    )


def moe(hidden_size: int, blocks: int, sequence_length: int) -> Model:
    experts = MoeFeedForward(num_experts=8, top_k=2, expert_width=hidden_size)
    return language_model(
        hidden_size=hidden_size,
        num_blocks=blocks,
        num_heads=hidden_size // 64,
        experts=experts,
        sequence_length=sequence_length,
    )


CASES = (
    Case("dense", dense(256, 4, 256, 2048), 1, "mbs4", 4, 256),
    Case("dense, dp2", dense(384, 3, 256, 4096), 2, "dp2-mbs4", 4, 256),
    Case("MoE, dp2 ep2", moe(256, 3, 256), 2, "dp2-ep2-mbs4", 4, 256),
)


def steps_s(report, case: Case) -> list[float]:
    """Seconds of each step on one rank."""
    torch.manual_seed(rank(None))
    has_experts = bool(case.model.moe_layers)
    model = LanguageModel(case.model) if has_experts else DenseModel(case.model)
    trained = model if has_experts or num_ranks(None) == 1 else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    text = torch.randint(case.model.layers[0].vocab_size, (case.samples, case.sequence_length + 1))
    found = []
    for _ in range(WARM_UP + STEPS):
        begun = time.perf_counter()
        optimizer.zero_grad()
        trained(text).backward()
        if has_experts:
            average_gradients(model)
        optimizer.step()
        found.append(time.perf_counter() - begun)
    return found[WARM_UP:]


def predicted(case: Case, profile: Path):
    cluster = resolve_cluster(cluster_from_shorthand(f"1x{case.ranks}:{profile}"))
    training = Training(
        global_batch_size=case.samples * case.ranks, sequence_length=case.sequence_length, precision=Precision.FP32
    )
    return estimate(case.model, cluster, training, plan_from_shorthand(case.plan, case.model, cluster, training))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "measured.json"
        if len(sys.argv) == 1 and run(["profile", str(profile), "--device", "cpu", "--devices", "2"]):
            sys.exit(1)
        print(f"{'model':>14} {'ranks':>5} {'predicted':>10} {'measured':>10}  predicted/measured (repetitions)")
        for case in CASES:
            price = predicted(case, profile)
            measured = []
            for _ in range(REPETITIONS):
                by_rank = launch(steps_s, case.ranks, (case,))
                measured.append(min(map(max, zip(*by_rank, strict=True))))
            ratios = [price.step_time_s / seconds for seconds in measured]
            verdict = "within" if all(abs(ratio - 1) <= AIM for ratio in ratios) else "outside"
            print(
                f"{case.name:>14} {case.ranks:>5} {1e3 * price.step_time_s:>7.1f} ms {1e3 * min(measured):>7.1f} ms  "
                f"{'  '.join(f'{ratio:.2f}' for ratio in ratios)}  {verdict} {AIM:.0%}"
            )
            print("   ", {name: f"{1e3 * seconds:.1f} ms" for name, seconds in price.time.items()})


if __name__ == "__main__":
    main()

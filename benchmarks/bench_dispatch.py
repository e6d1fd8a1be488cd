"""The way of tokens to experts and back, on processes of this machine (gloo, CPU): whole or in pieces, straight or over
nodes, padded or not. Wall-clock time of the slowest rank, forward and backward; variants take turns in one run.

Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_dispatch.py. Needs a core for each rank to say much: gloo moves
rows by the same cores that compute, so there is nothing to hide; on GPUs the network moves them. What pieces can hide
is shown over an emulated link: rows count as arrived only when a link of some bandwidth would have brought them, one
exchange after the other, which costs no core anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from table import Row, row
from torch import nn

from runtime.dispatch import share_out, through_experts
from runtime.launch import launch
from runtime.topology import Counts, Topology

ROUNDS = 15
HIDDEN = 512


@dataclass(frozen=True)
class Link(Topology):
    """Straight, over a link of each rank that is busy with one exchange at a time."""

    bytes_per_s: float = inf
    busy_until: list[float] = field(default_factory=lambda: [0.0])

    def begin(self, rows: torch.Tensor, counts: Counts) -> tuple[torch.Tensor, Callable[[], None]]:
        received, finish = super().begin(rows, counts)
        leaving = counts[self.rank].sum() - counts[self.rank, self.rank]
        due = max(self.busy_until[0], time.perf_counter()) + leaving * rows[:1].nbytes / self.bytes_per_s
        self.busy_until[0] = due

        def arrive() -> None:
            finish()
            time.sleep(max(0.0, due - time.perf_counter()))

        return received, arrive


class Variant(NamedTuple):
    pieces: int = 1
    ranks_per_node: int = 1
    padded: bool = False
    link_bytes_per_s: float | None = None

    def road(self) -> Topology:
        return (
            Topology.of_nodes(None, self.ranks_per_node)
            if self.link_bytes_per_s is None
            else Link(bytes_per_s=self.link_bytes_per_s)
        )

    def __str__(self) -> str:
        road = f"nodes of {self.ranks_per_node}" if self.ranks_per_node > 1 else "straight"
        link = "" if self.link_bytes_per_s is None else f", link of {self.link_bytes_per_s / 1e6:g} MB/s"
        return f"{self.pieces} piece(s), {road}{link}{', padded to the busiest slot' if self.padded else ''}"


class Load(NamedTuple):
    """`width` of the experts sets how long is computed for each byte sent; `skew` how uneven experts are chosen."""

    ranks: int
    tokens: int
    width: int
    experts: int = 8
    top_k: int = 2
    skew: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.ranks} ranks x {self.tokens} tokens, top-{self.top_k} of {self.experts} experts"
            f" of width {self.width}, skew {self.skew:g}"
        )


def seconds(report: Any, load: Load, variants: list[Variant]) -> list[list[float]]:
    """[variant][round], on this rank, between two barriers."""
    torch.set_num_threads(1)
    rank = dist.get_rank()
    roads = [variant.road() for variant in variants]
    torch.manual_seed(rank)
    experts = [
        nn.Sequential(nn.Linear(HIDDEN, load.width), nn.GELU(), nn.Linear(load.width, HIDDEN))
        for _ in range(load.experts // load.ranks)
    ]
    liking = (1.0 / torch.arange(1, load.experts + 1) ** load.skew).expand(load.tokens, -1)
    choices = torch.multinomial(liking, load.top_k)
    hidden = torch.randn(load.tokens, HIDDEN, requires_grad=True)
    taken: list[list[float]] = [[] for _ in variants]
    for number in range(ROUNDS + 1):
        for variant, road, times in zip(variants, roads, taken, strict=True):
            dist.barrier()
            began = time.perf_counter()
            slot, counts = share_out(choices, range(load.experts), lambda counts: counts, road)
            if variant.padded:
                counts = np.full_like(counts, counts.max())
            through_experts(hidden, slot, counts, experts, road, variant.pieces).sum().backward()
            dist.barrier()
            if number:
                times.append(time.perf_counter() - began)
    return taken


def compared(load: Load, variants: list[Variant]) -> list[tuple[float, float]]:
    """Of each variant: median seconds, and the median over rounds of its time over that of the first."""
    by_rank = launch(seconds, load.ranks, (load, variants), timeout_s=900)
    slowest = [[max(times) for times in zip(*of_ranks, strict=True)] for of_ranks in zip(*by_rank, strict=True)]
    ratios = [[one / first for one, first in zip(times, slowest[0], strict=True)] for times in slowest]
    return [(median(times), median(ratio)) for times, ratio in zip(slowest, ratios, strict=True)]


PIECES = [Variant(), Variant(2), Variant(4), Variant(padded=True)]
NODES = [Variant(), Variant(ranks_per_node=2), Variant(2), Variant(2, ranks_per_node=2)]
LINK = [Variant(pieces, link_bytes_per_s=3e7) for pieces in (1, 2, 4, 8)]


def rows() -> list[Row]:
    """What four pieces hide over the emulated link."""
    load = Load(2, 1024, 256)
    ratio = compared(load, [LINK[0], LINK[2]])[1][1]
    what = f"to experts and back, {load}, link of 30 MB/s: 4 pieces over whole"
    return [row(what, ratio, 1.0)]


def main() -> None:
    for load, variants in [
        (Load(2, 1024, 256), LINK),
        (Load(2, 1024, 256), PIECES),
        (Load(2, 1024, 1024), PIECES),
        (Load(2, 1024, 1024, skew=1.0), PIECES),
        (Load(4, 512, 256), NODES),
    ]:
        print(f"\n{load}, hidden {HIDDEN}; {ROUNDS} rounds")
        for variant, (spent, ratio) in zip(variants, compared(load, variants), strict=True):
            print(f"  {variant!s:<50} {1e3 * spent:>8.1f} ms  {ratio:>6.3f} of the first")


if __name__ == "__main__":
    main()

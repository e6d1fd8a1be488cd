"""The program of one rank: what to measure in which order, and how the time is shared out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from planner.spec.cluster import Precision
from planner.spec.value import Count, Positive, Value
from profiles.measure.collectives import collectives, message_sizes, overlap, seats
from profiles.measure.kernels import (
    Bench,
    attention_shapes,
    attentions,
    elementwise,
    elementwise_shapes,
    launches,
    matmul_shapes,
    matmuls,
)
from profiles.measure.stopwatch import Backend, HostTimer, Stopwatch, StreamTimer, Team
from profiles.measurement import ElementwiseWork, Machine, Sample

LEAST_SAMPLES = len(ElementwiseWork)
"""Of each kind of work: with fewer, of the smallest shapes, there is nothing to fit."""
Report = Callable[[tuple[float, str]], None]
"""Is told the share that is done, and what comes next."""


class Wish(Value):
    """What is to be measured, and within what."""

    backend: Backend
    ranks_per_node: Count
    time_budget_s: Positive
    memory_limit_bytes: Count
    """Of each device."""


def num_devices(backend: Backend) -> int:
    """Devices of this machine: GPUs, or cores that this process may use."""
    if backend is Backend.CUDA:
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_group(backend: Backend) -> str:
    """The library that the devices talk through."""
    return "nccl" if backend is Backend.CUDA else "gloo"


def measure_under_torchrun(report: Report, wish: Wish) -> tuple[Machine, list[Sample]]:
    """`measure` in processes that torchrun started, on one node or on many."""
    if wish.backend is Backend.CUDA:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(process_group(wish.backend))
    try:
        return measure(report, wish)
    finally:
        dist.destroy_process_group()


def measure(report: Report, wish: Wish) -> tuple[Machine, list[Sample]]:
    """Measure, in the process group that this rank is in already; the same result on every rank.

    Takes about `time_budget_s`: each kind of work has its share, and what does not fit into it is left out, the
    largest shapes first. Tensors of at most `memory_limit_bytes` live at a time.
    """
    team = _team(wish)
    torch.manual_seed(team.rank)
    reserve_bytes = _held_bytes(team)
    samples: list[Sample] = []
    done_ratio = 0.0
    phases = _phases(team, wish)
    shares = sum(phase.share for phase in phases)
    for phase in phases:
        report((done_ratio, phase.name))
        samples += _within(team, phase, wish.time_budget_s * phase.share / shares)
        done_ratio += phase.share / shares
    return _machine(team, reserve_bytes), samples


class _Phase(NamedTuple):
    """Work of one kind."""

    name: str
    share: float
    """Of the time, beside the others."""
    num_samples: int
    measured: Callable[[float], Iterator[Sample | None]]
    """From the allowance for a sample in seconds to samples; None for one that does not fit."""


def _phases(team: Team, wish: Wish) -> list[_Phase]:
    kernel_watch, watch = _watches(team, wish)
    precision, *others = _precisions(team.backend)

    def bench(allowance_s: float) -> Bench:
        return Bench(kernel_watch, precision, wish.memory_limit_bytes, allowance_s)

    largest = bench(0.0).largest
    products, scores, streams = matmul_shapes(largest), attention_shapes(team.backend), elementwise_shapes(largest)
    found = [
        _Phase("launches", 1, 1, lambda allowance_s: iter([launches(bench(allowance_s))])),
        _Phase("memory-bound work", 8, len(streams), lambda allowance_s: elementwise(bench(allowance_s), streams)),
        _Phase("matrix products", 12, len(products), lambda allowance_s: matmuls(bench(allowance_s), products)),
        _Phase("attention", 6, len(scores), lambda allowance_s: attentions(bench(allowance_s), scores)),
    ]
    for other in others:
        found.append(
            _Phase(
                f"products in {other}",
                2,
                1,
                partial(_peaks, watch=kernel_watch, wish=wish, precision=other, largest=largest),
            )
        )
    if team.num_ranks == 1:
        return found
    places, sizes = seats(team), message_sizes(team.backend, wish.memory_limit_bytes)
    count = len(places) * len(sizes) * 5
    return [
        *found,
        _Phase("collectives", 12, count, lambda allowance_s: collectives(watch, places, sizes, allowance_s)),
        _Phase("overlap", 3, len(sizes[-3:]), lambda allowance_s: _overlaps(watch, sizes[-3:], allowance_s)),
    ]


def _watches(team: Team, wish: Wish) -> tuple[Stopwatch, Stopwatch]:
    """For kernels, and for collectives."""
    if team.backend is Backend.CPU:
        return Stopwatch(team, HostTimer(time.thread_time)), Stopwatch(team, HostTimer(time.perf_counter), 0.05)
    watch = Stopwatch(team, StreamTimer(wish.memory_limit_bytes))
    return watch, watch


def _overlaps(watch: Stopwatch, sizes: list[int], allowance_s: float) -> Iterator[Sample | None]:
    for size in sizes:
        yield overlap(watch, size, allowance_s)


def _peaks(
    allowance_s: float, watch: Stopwatch, wish: Wish, precision: Precision, largest: int
) -> Iterator[Sample | None]:
    """One large product."""
    side = largest // 2
    return matmuls(Bench(watch, precision, wish.memory_limit_bytes, allowance_s), [(side, side, side, 1)])


def _within(team: Team, phase: _Phase, budget_s: float) -> Iterator[Sample]:
    """Samples until the budget of the phase is used up, as the slowest rank sees it; a few in any case."""
    begun = time.perf_counter()
    number = 0
    # A part is for what is not timed: making operands, graphs, first calls.
    for sample in phase.measured(0.7 * budget_s / phase.num_samples):
        number += sample is not None
        if sample is not None:
            yield sample
        if team.longest(time.perf_counter() - begun) > budget_s and number >= LEAST_SAMPLES:
            return


def _team(wish: Wish) -> Team:
    """This rank among the others, with its device."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    if wish.backend is Backend.CPU:
        torch.set_num_threads(1)
        return Team(rank, num_ranks, wish.ranks_per_node, torch.device("cpu"))
    device = torch.device("cuda", rank % wish.ranks_per_node)
    torch.cuda.set_device(device)
    return Team(rank, num_ranks, wish.ranks_per_node, device)


def _precisions(backend: Backend) -> list[Precision]:
    """The one that most is measured in, then those of which only the best product is."""
    if backend is Backend.CPU:
        return [Precision.FP32, Precision.BF16]
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return [Precision.BF16, Precision.FP16, Precision.FP32]
    return [Precision.FP16, Precision.FP32]


def _machine(team: Team, reserve_bytes: int) -> Machine:
    if team.backend is Backend.CPU:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // team.ranks_per_node
        name, compute_units = _processor(), 1
    else:
        properties = torch.cuda.get_device_properties(team.device)
        name, memory_bytes, compute_units = properties.name, properties.total_memory, properties.multi_processor_count
    return Machine(
        device=name,
        backend=team.backend.value,
        precision=_precisions(team.backend)[0],
        memory_bytes=memory_bytes,
        compute_units=compute_units,
        reserve_bytes=reserve_bytes,
        torch_version=torch.__version__,
        num_devices=team.num_ranks,
        devices_per_node=team.ranks_per_node,
    )


def _held_bytes(team: Team) -> int:
    """What is taken before there are tensors: of a processor this process, of a GPU all that is not free."""
    if team.backend is Backend.CPU:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    dist.barrier()  # makes the communicator, which takes memory
    free, total = torch.cuda.mem_get_info(team.device)
    return total - free - torch.cuda.memory_reserved(team.device)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"

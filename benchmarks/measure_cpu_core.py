"""Measures one core of this machine, and gloo over loopback between processes, as the device `cpu-core`.

    python benchmarks/measure_cpu_core.py [--write]

Prints the preset as JSON; `--write` puts it into profiles/hardware/cpu-core.json. Each rate is the best of several
repetitions, since other work on the machine can only slow one down. Run it on a quiet machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

PROFILE = Path(__file__).parent.parent / "profiles" / "hardware" / "cpu-core.json"
MEMORY_BYTES = 2 * 2**30
DEPTHS = (16, 32, 64, 128, 256, 512, 1024)
SMALL_BYTES, LARGE_BYTES = 1024, 16 * 2**20


def best_s(work, repetitions=7, least_s=0.05):
    """Seconds of one call: the least mean over repetitions that each last at least `least_s`."""
    work()
    start = time.perf_counter()
    work()
    calls = max(1, round(least_s / max(time.perf_counter() - start, 1e-7)))
    return min(_mean_s(work, calls) for _ in range(repetitions))


def _mean_s(work, calls):
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def matmul_flops(dtype, size=1024, depth=1024):
    a, b = torch.randn(size, depth).to(dtype), torch.randn(depth, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    return 2 * size * size * depth / best_s(lambda: torch.mm(a, b, out=out))


def matmul_half_depth(size=512):
    """Time grows as start + slope x depth, so the rate is half of its limit at depth start / slope (least squares)."""
    times = [2 * size * size * depth / matmul_flops(torch.float32, size, depth) for depth in DEPTHS]
    slope, start = statistics.linear_regression(DEPTHS, times)
    return max(0.0, start / slope)


def attention_flops(batch=2, heads=8, tokens=512, head_dim=64):
    """Forward and backward rates of fused attention without a mask: two products forward, five backward."""
    q, k, v = (torch.randn(batch, heads, tokens, head_dim, requires_grad=True) for _ in range(3))
    work = 4 * batch * heads * tokens**2 * head_dim
    with torch.no_grad():
        forward_s = best_s(lambda: F.scaled_dot_product_attention(q, k, v))
    both_s = best_s(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    return work / forward_s, 2.5 * work / (both_s - forward_s)


def memory_rates(num_bytes=128 * 2**20):
    """Bytes per second, reads and writes together, of a copy and of an element-wise sum of two."""
    a, b, out = (torch.ones(num_bytes // 4) for _ in range(3))
    return 2 * num_bytes / best_s(lambda: out.copy_(a)), 3 * num_bytes / best_s(lambda: torch.add(a, b, out=out))


def launch_s():
    one = torch.ones(1)
    return best_s(lambda: one.add_(1.0))


def resident_bytes():
    """What a process holds before it has tensors."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _rank(rank, size, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    resident = resident_bytes()
    found = {name: [_collective_s(run, size, n) for n in (SMALL_BYTES, LARGE_BYTES)] for name, run in _RUNS.items()}
    if rank == 0:
        queue.put({**found, "resident_bytes": resident})
    dist.barrier()
    dist.destroy_process_group()


def _collective_s(run, size, num_bytes, repetitions=7):
    """Seconds of one call: the least mean over repetitions of calls back to back, so that no rank waits to begin."""
    data, out = (torch.ones(num_bytes // 4 // size * size) for _ in range(2))
    calls = 5 if num_bytes == LARGE_BYTES else 100
    means = []
    for _ in range(repetitions):
        dist.barrier()
        means.append(_mean_s(lambda: run(data, out), calls))
    return min(means)


_RUNS = {
    "all_reduce": lambda data, _: dist.all_reduce(data),
    "all_to_all": lambda data, out: dist.all_to_all_single(out, data),
}


def collectives(size, port):
    """Seconds of small and large collectives between `size` processes."""
    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(_rank, (size, port, queue), nprocs=size, join=False)
    found = queue.get()
    while not context.join():
        pass
    return found


def link(found, size):
    """Ring all-reduce: 2 (n - 1) messages, 2 (n - 1) / n of the bytes per process. All-to-all: (n - 1) / n of them."""
    small_s, large_s = found["all_reduce"]
    return {
        "latency_s": small_s / (2 * (size - 1)),
        "all_reduce_bytes_per_s": 2 * (size - 1) / size * LARGE_BYTES / large_s,
        "all_to_all_bytes_per_s": (size - 1) / size * LARGE_BYTES / found["all_to_all"][1],
    }


def round_to(value, digits=3):
    return float(f"{value:.{digits}g}")


def preset():
    load = os.getloadavg()[0]
    if load > os.cpu_count() / 4:
        print(f"others use this machine (load average {load:.2f}): the figures will be too low", file=sys.stderr)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fp32, bf16 = matmul_flops(torch.float32), matmul_flops(torch.bfloat16)
    forward, backward = attention_flops()
    copy, add = memory_rates()
    found = {size: collectives(size, 29600 + size) for size in (2, 4)}
    links = {size: link(found[size], size) for size in found}
    shown = "; ".join(
        f"{size} processes: all-reduce {it['all_reduce_bytes_per_s']:.3g} bytes/s, all-to-all "
        f"{it['all_to_all_bytes_per_s']:.3g} bytes/s, {it['latency_s']:.2g} s per message"
        for size, it in links.items()
    )
    loopback = {
        "bandwidth_bytes_per_s": round_to(links[2]["all_reduce_bytes_per_s"]),
        "latency_s": round_to(links[2]["latency_s"]),
        "efficiency_ratio": 1.0,
    }
    bandwidth = max(copy, add)
    return {
        "aliases": ["cpu"],
        "device": {
            "name": "cpu-core",
            "memory_bytes": MEMORY_BYTES,
            "memory_bandwidth_bytes_per_s": round_to(bandwidth),
            "compute_units": 1,
            "peak_flops_per_s": {"fp32": round_to(fp32), "fp16": None, "bf16": round_to(bf16), "fp8": None},
            "efficiency": {
                "matmul_ratio": 1.0,
                "matmul_tile": [16, 64],
                "matmul_half_depth": round_to(matmul_half_depth()),
                "attention_forward_ratio": round_to(forward / fp32),
                "attention_backward_ratio": round_to(backward / fp32),
                "memory_ratio": round_to(add / bandwidth),
                "kernel_launch_s": round_to(launch_s()),
                "overlap_slowdown_ratio": 2.0,
            },
            "reserve_bytes": found[2]["resident_bytes"],
            "provenance": "measured",
            "sources": [
                f"measured {date.today()} by benchmarks/measure_cpu_core.py: {_processor()}, {os.cpu_count()} cores, "
                f"torch {torch.__version__}, one thread, load average {load:.2f} before",
                "peaks: the best matrix product of 1024 cubed, hence matmul_ratio 1; attention against the fp32 peak",
                "matmul_tile: assumption, the block that vector registers hold",
                "overlap_slowdown_ratio: assumption, gloo runs on the core that computes",
                "memory_bytes: assumption, what a local trial gives to one process; reserve_bytes: resident size of a "
                "process with torch and gloo",
                f"links: gloo over loopback, those of 2 processes; {LARGE_BYTES} bytes in {shown}",
                "inter_node: loopback too, the nodes of a local trial stand on one machine",
                "devices_per_node: assumption, cores of a server; more processes than cores share them and are slower",
            ],
        },
        "devices_per_node": 64,
        "intra_node": loopback,
        "inter_node": loopback,
    }


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help=f"write {PROFILE.relative_to(PROFILE.parent.parent.parent)}"
    )
    arguments = parser.parse_args()
    text = json.dumps(preset(), indent=2)
    print(text)
    if arguments.write:
        PROFILE.write_text(text + "\n")


if __name__ == "__main__":
    main()

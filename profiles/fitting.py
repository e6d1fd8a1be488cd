"""From a machine's samples to the constants of its device, links and stack. Pure: same samples, same constants.

The constants are those under which the formulas of `planner.cost` come closest to what was measured, in the mean square
of the logarithm of predicted over measured: twice as long is as wrong as half as long, and each sample counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import log
from typing import NamedTuple, TypeVar

from planner.cost.kernels import is_aligned, rates
from planner.spec.cluster import (
    Cluster,
    Device,
    KernelEfficiency,
    Level,
    Link,
    PeakFlops,
    Precision,
    Provenance,
)
from planner.spec.errors import InputError
from planner.spec.stack import Stack
from profiles.measurement import (
    AttentionSample,
    CollectiveSample,
    ElementwiseSample,
    ElementwiseWork,
    FitError,
    LaunchSample,
    Machine,
    MatmulSample,
    OverlapSample,
    Sample,
)
from profiles.pattern_search import Constants, fitted
from profiles.prediction import pairs

TILES = {
    "cpu": ((1, 1), (8, 16), (16, 32), (16, 64), (32, 64)),
    "cuda": ((64, 64), (64, 128), (128, 128), (128, 256)),
}
"""Largest tiles that are tried: register blocks of vector units; thread blocks of cuBLAS."""
_START_LINK = Link(bandwidth_bytes_per_s=1e10, latency_s=1e-5)
_MEMORY_BOUND = (ElementwiseWork.RESIDUAL, ElementwiseWork.ACTIVATION, ElementwiseWork.LOSS, ElementwiseWork.ROUTING)
_LEAST = {"elementwise_ratio": 1.0, "optimizer_ratio": 1.0, "overlap_slowdown_ratio": 1.0, "matmul_half_depth": 0.5}
_MOST = dict.fromkeys(
    (
        "matmul_ratio",
        "half_tile_ratio",
        "misaligned_ratio",
        "grouped_matmul_ratio",
        "attention_forward_ratio",
        "attention_backward_ratio",
        "memory_ratio",
    ),
    1.0,
)
_Kind = TypeVar("_Kind")


class Fit(NamedTuple):
    """A machine in the terms of `planner.spec`."""

    device: Device
    intra_node: Link | None
    inter_node: Link | None
    stack: Stack
    errors: tuple[FitError, ...]


def fit(name: str, machine: Machine, samples: Sequence[Sample], sources: tuple[str, ...] = ()) -> Fit:
    """Device, links and stack of a machine, and how far the formulas stay from the samples.

    Raises InputError at `samples` if a kind of work was not measured, for which no constant can be given then.
    """
    cluster = _first_guess(name, machine, samples, sources)
    usual = machine.precision
    cluster = _fit_memory_bound(cluster, samples, usual)
    cluster = _fit_products(cluster, samples, machine)
    cluster = _fit_attention(cluster, samples, usual)
    cluster = _fit_overlap(cluster, samples, usual)
    inside, between = _crossing(samples, machine, False), _crossing(samples, machine, True)
    cluster = _fit_link(cluster, inside, 0, usual)
    cluster = _fit_link(cluster, between, -1, usual)
    return Fit(
        device=cluster.device,
        intra_node=cluster.levels[0].link if inside else None,
        inter_node=cluster.levels[-1].link if between else None,
        stack=cluster.stack,
        errors=_errors(samples, cluster, usual),
    )


def _first_guess(name: str, machine: Machine, samples: Sequence[Sample], sources: tuple[str, ...]) -> Cluster:
    """What the samples say directly: the best rates are the peaks; all else is where the fit starts."""
    peaks = {precision: _best_flops_per_s(samples, precision) for precision in _precisions(samples)}
    peaks.setdefault(Precision.FP32, peaks[machine.precision])
    device = Device(
        name=name,
        memory_bytes=machine.memory_bytes,
        memory_bandwidth_bytes_per_s=_rounded(max(map(_streamed_bytes_per_s, _works(samples, ElementwiseWork.STREAM)))),
        compute_units=machine.compute_units,
        peak_flops_per_s=PeakFlops(**{precision.value: _rounded(peak) for precision, peak in peaks.items()}),
        efficiency=KernelEfficiency(
            matmul_ratio=0.8,
            matmul_half_depth=16.0,
            attention_forward_ratio=0.5,
            attention_backward_ratio=0.5,
            memory_ratio=1.0,
            kernel_launch_s=_rounded(min(sample.time_s for sample in _one_kind(samples, LaunchSample))),
        ),
        reserve_bytes=machine.reserve_bytes,
        provenance=Provenance.MEASURED,
        sources=sources,
    )
    levels = [Level(name="node", num_devices=machine.devices_per_node, link=_START_LINK)]
    if machine.num_devices > machine.devices_per_node:
        levels.append(Level(name="cluster", num_devices=machine.num_devices, link=_START_LINK))
    return Cluster(
        nodes=machine.num_devices // machine.devices_per_node,
        devices_per_node=machine.devices_per_node,
        device=device,
        levels=tuple(levels),
        stack=Stack(name="measured"),
    )


def _fit_memory_bound(cluster: Cluster, samples: Sequence[Sample], usual: Precision) -> Cluster:
    """The memory by streams, the stack's element-wise kernels and its update by theirs."""
    cluster = _least(cluster, _works(samples, ElementwiseWork.STREAM), usual, _with_efficiency, {"memory_ratio": 0.9})
    cluster = _least(cluster, _works(samples, *_MEMORY_BOUND), usual, _with_stack, {"elementwise_ratio": 1.5})
    return _least(cluster, _works(samples, ElementwiseWork.UPDATE), usual, _with_stack, {"optimizer_ratio": 1.5})


def _fit_products(cluster: Cluster, samples: Sequence[Sample], machine: Machine) -> Cluster:
    """Rate and half depth for each tile, of equally good tiles the first; then what odd and grouped shapes lose."""
    usual = machine.precision
    chosen = [sample for sample in _one_kind(samples, MatmulSample) if sample.precision is usual]
    single = [sample for sample in chosen if sample.groups == 1]
    rate = rates(cluster.device, cluster.stack, usual)
    aligned = [sample for sample in single if is_aligned(rate, sample.columns, sample.depth)]
    start = {"matmul_ratio": 0.8, "matmul_half_depth": 16.0}
    if machine.compute_units > 1:
        start["half_tile_ratio"] = 0.9
    candidates = [
        _least(_with_tile(cluster, tile), aligned, usual, _with_efficiency, start) for tile in TILES[machine.backend]
    ]
    best = min(candidates, key=lambda candidate: _loss(candidate, aligned, usual))
    odd = [sample for sample in single if not is_aligned(rate, sample.columns, sample.depth)]
    best = _least(best, odd, usual, _with_efficiency, {"misaligned_ratio": 0.9})
    return _least(best, [s for s in chosen if s.groups > 1], usual, _with_stack, {"grouped_matmul_ratio": 0.9})


def _fit_attention(cluster: Cluster, samples: Sequence[Sample], usual: Precision) -> Cluster:
    start = {"attention_forward_ratio": 0.5, "attention_backward_ratio": 0.5}
    return _least(cluster, _one_kind(samples, AttentionSample), usual, _with_efficiency, start)


def _fit_overlap(cluster: Cluster, samples: Sequence[Sample], usual: Precision) -> Cluster:
    """The slowdown; without a second device nothing overlaps, and it stays at 1."""
    chosen = [sample for sample in samples if isinstance(sample, OverlapSample)]
    return _least(cluster, chosen, usual, _with_efficiency, {"overlap_slowdown_ratio": 1.2})


def _fit_link(cluster: Cluster, crossing: Sequence[CollectiveSample], level: int, usual: Precision) -> Cluster:
    """Bandwidth and latency of all devices together, and what a pair alone reaches."""
    start = {
        "bandwidth_bytes_per_s": _START_LINK.bandwidth_bytes_per_s,
        "pair_bandwidth_bytes_per_s": _START_LINK.bandwidth_bytes_per_s,
        "latency_s": _START_LINK.latency_s,
    }
    return _least(cluster, crossing, usual, partial(_with_link, level=level), start)


def _crossing(samples: Sequence[Sample], machine: Machine, between_nodes: bool) -> list[CollectiveSample]:
    """Collectives inside nodes, or those between them."""
    chosen = [sample for sample in samples if isinstance(sample, CollectiveSample)]
    return [s for s in chosen if (s.degree * s.stride > machine.devices_per_node) is between_nodes]


def _with_efficiency(cluster: Cluster, constants: Constants) -> Cluster:
    efficiency = cluster.device.efficiency.model_copy(update=constants)
    return cluster.model_copy(update={"device": cluster.device.model_copy(update={"efficiency": efficiency})})


def _with_stack(cluster: Cluster, constants: Constants) -> Cluster:
    return cluster.model_copy(update={"stack": cluster.stack.model_copy(update=constants)})


def _with_tile(cluster: Cluster, tile: tuple[int, int]) -> Cluster:
    efficiency = cluster.device.efficiency.model_copy(update={"matmul_tile": tile})
    return cluster.model_copy(update={"device": cluster.device.model_copy(update={"efficiency": efficiency})})


def _with_link(cluster: Cluster, constants: Constants, level: int) -> Cluster:
    levels = list(cluster.levels)
    levels[level] = levels[level].model_copy(update={"link": levels[level].link.model_copy(update=constants)})
    return cluster.model_copy(update={"levels": tuple(levels)})


def _least(
    cluster: Cluster,
    samples: Sequence[Sample],
    usual: Precision,
    put: Callable[[Cluster, Constants], Cluster],
    start: Constants,
) -> Cluster:
    """The cluster with these constants fitted to these samples; as it was where there are none."""
    if not samples:
        return cluster
    found = fitted(start, lambda constants: _loss(put(cluster, constants), samples, usual), _MOST, _LEAST)
    return put(cluster, {name: _rounded(value) for name, value in found.items()})


def _loss(cluster: Cluster, samples: Iterable[Sample], usual: Precision) -> float:
    found = [log(predicted / s) ** 2 for sample in samples for predicted, s in pairs(sample, cluster, usual)]
    return sum(found) / len(found)


def _errors(samples: Sequence[Sample], cluster: Cluster, usual: Precision) -> tuple[FitError, ...]:
    """By kind of work, in the order of measuring; products in other formats than the usual had no say in the fit."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        kind = " ".join(
            str(part)
            for part in (
                getattr(sample, "work", None) or getattr(sample, "operation", sample.kind),
                getattr(sample, "precision", ""),
            )
            if part
        )
        found.setdefault(kind, []).extend(abs(predicted / s - 1) for predicted, s in pairs(sample, cluster, usual))
    return tuple(
        FitError(
            kind=kind,
            num_samples=len(errors),
            mean_error_ratio=_rounded(sum(errors) / len(errors)),
            worst_error_ratio=_rounded(max(errors)),
        )
        for kind, errors in found.items()
    )


def _one_kind(samples: Iterable[Sample], kind: type[_Kind]) -> list[_Kind]:
    """The samples of a kind; raises InputError if there are none."""
    chosen: list[_Kind] = [sample for sample in samples if isinstance(sample, kind)]
    if not chosen:
        raise InputError.at("samples", f"there is no {kind.__name__}: give more time or more memory")
    return chosen


def _works(samples: Iterable[Sample], *works: ElementwiseWork) -> list[ElementwiseSample]:
    """The samples of these works; raises InputError if there are none."""
    chosen = [sample for sample in _one_kind(samples, ElementwiseSample) if sample.work in works]
    if not chosen:
        raise InputError.at("samples", f"there is no {' or '.join(works)}: give more time or more memory")
    return chosen


def _precisions(samples: Sequence[Sample]) -> list[Precision]:
    """Number formats in the order of measuring."""
    return list(dict.fromkeys(sample.precision for sample in _one_kind(samples, MatmulSample)))


def _best_flops_per_s(samples: Sequence[Sample], precision: Precision) -> float:
    products = [s for s in _one_kind(samples, MatmulSample) if s.precision is precision]
    return max(2.0 * s.groups * s.rows * s.columns * s.depth / s.time_s for s in products)


def _streamed_bytes_per_s(stream: ElementwiseSample) -> float:
    element_bytes = 4 if stream.precision is Precision.FP32 else 2
    return 3.0 * element_bytes * stream.rows * stream.columns / stream.forward_s


def _rounded(value: float, digits: int = 4) -> float:
    """What a measurement is good for."""
    return float(f"{value:.{digits}g}")

"""From a machine's samples to the constants of its device and links. Pure: same samples, same constants.

The constants are those under which the formulas of `planner.cost` come closest to what was measured, in the mean square
of the logarithm of predicted over measured: twice as long is as wrong as half as long, and each sample counts alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from typing import NamedTuple, TypeVar

from planner.cost.kernels import Rates, rates
from planner.spec.cluster import Device, KernelEfficiency, Level, Link, PeakFlops, Precision, Provenance
from planner.spec.errors import InputError
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
    "cuda": ((64, 64), (64, 128), (128, 128), (128, 256), (256, 128)),
}
"""Tiles that are tried: register blocks of vector units; thread blocks of cuBLAS."""
_START_LINK = Link(bandwidth_bytes_per_s=1e10, latency_s=1e-5)
_Kind = TypeVar("_Kind")


class Fit(NamedTuple):
    """A machine in the terms of `planner.spec.cluster`."""

    device: Device
    intra_node: Link | None
    inter_node: Link | None
    errors: tuple[FitError, ...]


def fit(name: str, machine: Machine, samples: Sequence[Sample], sources: tuple[str, ...] = ()) -> Fit:
    """Device and links of a machine, and how far the formulas stay from the samples.

    Raises InputError at `samples` if a kind of work was not measured, for which no constant can be given then.
    """
    rate = _fit_memory(_first_rates(machine, samples), samples)
    rate = _fit_matmul(rate, samples, machine)
    rate = _fit_attention(rate, samples, machine.precision)
    rate = _fit_overlap(rate, samples)
    intra_node = _fit_link(rate, machine, samples, None)
    inter_node = _fit_link(rate, machine, samples, intra_node or _START_LINK)
    device = _device(name, machine, samples, rate, sources)
    levels = _levels(machine, intra_node or _START_LINK, inter_node)
    return Fit(device, intra_node, inter_node, _errors(samples, device, levels))


def _first_rates(machine: Machine, samples: Sequence[Sample]) -> Rates:
    """The best of what was measured, as the point from which the fit starts."""
    best = _best_flops_per_s(samples, machine.precision)
    launch = _one_kind(samples, LaunchSample)
    copies = [s for s in _one_kind(samples, ElementwiseSample) if s.work is ElementwiseWork.COPY]
    device = Device(
        name="first guess",
        memory_bytes=machine.memory_bytes,
        memory_bandwidth_bytes_per_s=max(_copied_bytes_per_s(copy) for copy in copies),
        compute_units=machine.compute_units,
        peak_flops_per_s=PeakFlops(**{"fp32": best, machine.precision.value: best}),
        efficiency=KernelEfficiency(
            matmul_ratio=1.0,
            attention_forward_ratio=0.5,
            attention_backward_ratio=0.5,
            memory_ratio=1.0,
            kernel_launch_s=min(s.time_s for s in launch),
        ),
        reserve_bytes=0,
        provenance=Provenance.MEASURED,
    )
    return rates(device, machine.precision)


def _fit_memory(rate: Rates, samples: Sequence[Sample]) -> Rates:
    launch_s = min(s.time_s for s in _one_kind(samples, LaunchSample))
    chosen = [s for s in _one_kind(samples, ElementwiseSample) if s.work is not ElementwiseWork.COPY]
    found = _least(rate._replace(launch_s=launch_s), chosen, ("bytes_per_s",))
    return found


def _fit_matmul(rate: Rates, samples: Sequence[Sample], machine: Machine) -> Rates:
    """Rate and half depth for each tile; of equally good tiles the first."""
    chosen = [s for s in _one_kind(samples, MatmulSample) if s.precision is machine.precision]
    candidates = []
    for tile_rows, tile_columns in TILES[machine.backend]:
        start = rate._replace(tile_rows=tile_rows, tile_columns=tile_columns, matmul_half_depth=16.0)
        candidates.append(_least(start, chosen, ("matmul_flops_per_s", "matmul_half_depth")))
    return min(candidates, key=lambda found: _loss(found, chosen))


def _fit_attention(rate: Rates, samples: Sequence[Sample], precision: Precision) -> Rates:
    chosen = [s for s in _one_kind(samples, AttentionSample) if s.precision is precision]
    return _least(rate, chosen, ("attention_forward_flops_per_s", "attention_backward_flops_per_s"))


def _fit_overlap(rate: Rates, samples: Sequence[Sample]) -> Rates:
    """The slowdown; without a second device nothing overlaps, and 1 is right."""
    chosen = [s for s in samples if isinstance(s, OverlapSample)]
    if not chosen:
        return rate._replace(overlap_slowdown_ratio=1.0)
    # Fitted is what the slowdown is above 1, which has no lower end but 0.
    found = fitted({"excess": 0.5}, lambda c: _loss(rate._replace(overlap_slowdown_ratio=1.0 + c["excess"]), chosen))
    return rate._replace(overlap_slowdown_ratio=1.0 + found["excess"])


def _fit_link(rate: Rates, machine: Machine, samples: Sequence[Sample], inside: Link | None) -> Link | None:
    """The link inside a node (`inside` None), or between nodes on top of it; None where nothing crossed it."""
    local = machine.devices_per_node
    crossing = [s for s in samples if isinstance(s, CollectiveSample) and (s.degree * s.stride > local) == bool(inside)]
    if not crossing:
        return None

    def link(constants: Constants) -> Link:
        return Link(bandwidth_bytes_per_s=_rounded(constants["bandwidth"]), latency_s=_rounded(constants["latency"]))

    def levels(constants: Constants) -> tuple[Level, ...]:
        found = link(constants)
        return _levels(machine, inside or found, found if inside else None)

    start = {"bandwidth": _START_LINK.bandwidth_bytes_per_s, "latency": _START_LINK.latency_s}
    return link(fitted(start, lambda constants: _loss(rate, crossing, levels(constants))))


def _levels(machine: Machine, intra_node: Link, inter_node: Link | None) -> tuple[Level, ...]:
    """The tiers of the machine that was measured."""
    node = Level(name="node", num_devices=machine.devices_per_node, link=intra_node)
    if machine.num_devices == machine.devices_per_node:
        return (node,)
    return (node, Level(name="cluster", num_devices=machine.num_devices, link=inter_node or intra_node))


def _device(name: str, machine: Machine, samples: Sequence[Sample], rate: Rates, sources: tuple[str, ...]) -> Device:
    """The fitted rates as shares of the best that was measured."""
    best = {p: _best_flops_per_s(samples, p) for p in _precisions(samples)}
    peak = max(best[machine.precision], rate.matmul_flops_per_s)
    peaks = {p.value: _rounded(peak * flops / best[machine.precision]) for p, flops in best.items()}
    copies = [s for s in _one_kind(samples, ElementwiseSample) if s.work is ElementwiseWork.COPY]
    bandwidth = max(rate.bytes_per_s, *(_copied_bytes_per_s(copy) for copy in copies))
    return Device(
        name=name,
        memory_bytes=machine.memory_bytes,
        memory_bandwidth_bytes_per_s=_rounded(bandwidth),
        compute_units=machine.compute_units,
        peak_flops_per_s=PeakFlops(**({"fp32": peaks[machine.precision.value]} | peaks)),
        efficiency=KernelEfficiency(
            matmul_ratio=_share(rate.matmul_flops_per_s, peak),
            matmul_tile=(rate.tile_rows, rate.tile_columns),
            matmul_half_depth=_rounded(rate.matmul_half_depth),
            attention_forward_ratio=_share(rate.attention_forward_flops_per_s, peak),
            attention_backward_ratio=_share(rate.attention_backward_flops_per_s, peak),
            memory_ratio=_share(rate.bytes_per_s, bandwidth),
            kernel_launch_s=_rounded(rate.launch_s),
            overlap_slowdown_ratio=_rounded(rate.overlap_slowdown_ratio),
        ),
        reserve_bytes=machine.reserve_bytes,
        provenance=Provenance.MEASURED,
        sources=sources,
    )


def _errors(samples: Sequence[Sample], device: Device, levels: tuple[Level, ...]) -> tuple[FitError, ...]:
    """By kind of work, in the order of measuring; products in other formats than the fitted one have no say."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        precision = getattr(sample, "precision", None)
        rate = rates(device, precision or _precisions(samples)[0])
        kind = f"{sample.kind} {precision}" if precision else sample.kind
        found.setdefault(kind, []).extend(abs(predicted / s - 1) for predicted, s in pairs(sample, rate, levels))
    return tuple(
        FitError(
            kind=kind,
            num_samples=len(errors),
            mean_error_ratio=_rounded(sum(errors) / len(errors)),
            worst_error_ratio=_rounded(max(errors)),
        )
        for kind, errors in found.items()
    )


def _least(start: Rates, samples: Iterable[Sample], names: tuple[str, ...]) -> Rates:
    """The rates with these fields fitted."""
    chosen = tuple(samples)
    found = fitted({name: getattr(start, name) for name in names}, lambda c: _loss(_with(start, c), chosen))
    return _with(start, found)


def _with(rate: Rates, constants: Constants) -> Rates:
    return rate._replace(**constants)  # type: ignore[arg-type]


def _loss(rate: Rates, samples: Iterable[Sample], levels: tuple[Level, ...] = ()) -> float:
    found = [log(predicted / s) ** 2 for sample in samples for predicted, s in pairs(sample, rate, levels)]
    return sum(found) / len(found)


def _one_kind(samples: Iterable[Sample], kind: type[_Kind]) -> list[_Kind]:
    """The samples of a kind; raises InputError if there are none."""
    chosen: list[_Kind] = [sample for sample in samples if isinstance(sample, kind)]
    if not chosen:
        raise InputError.at("samples", f"there is no {kind.__name__}: give more time or more memory")
    return chosen


def _precisions(samples: Sequence[Sample]) -> list[Precision]:
    """Number formats in the order of measuring."""
    return list(dict.fromkeys(sample.precision for sample in _one_kind(samples, MatmulSample)))


def _best_flops_per_s(samples: Sequence[Sample], precision: Precision) -> float:
    products = [s for s in _one_kind(samples, MatmulSample) if s.precision is precision]
    return max(2.0 * s.rows * s.columns * s.depth / s.time_s for s in products)


def _copied_bytes_per_s(copy: ElementwiseSample) -> float:
    element_bytes = 4 if copy.precision is Precision.FP32 else 2
    return 2.0 * element_bytes * copy.rows * copy.columns / copy.forward_s


def _rounded(value: float, digits: int = 4) -> float:
    """What a measurement is good for."""
    return float(f"{value:.{digits}g}")


def _share(part: float, whole: float) -> float:
    return min(1.0, _rounded(part / whole))

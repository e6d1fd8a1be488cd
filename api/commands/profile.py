"""`trimtab profile`: measures this machine, and writes a profile that `plan` and `estimate` take as a device."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from api.commands.lines import say
from api.commands.options import JsonOption, check_writable, write_text
from api.commands.terminal import progress_bar, show
from planner.spec.errors import InputError
from planner.view import Column, Table
from planner.view.quantities import percent, seconds
from profiles import parse_bytes
from profiles.devices import MeasuredProfile
from profiles.measured import measured_profile, profile_text
from profiles.measurement import Machine, Sample

LEAST_TIME_S = 5.0
LEAST_MEMORY_BYTES = 64 * 2**20
MOST_PROCESSES = 8
"""Processes by default, however many cores there are."""
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def profile(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.json", help="Where the profile is written")],
    device: Annotated[str, typer.Option(help="auto, cuda or cpu; auto: GPUs where there are some")] = "auto",
    devices: Annotated[
        int | None, typer.Option(min=1, help="GPUs, or processes of one thread; all GPUs, or up to 8 cores")
    ] = None,
    time_budget: Annotated[float, typer.Option(metavar="SECONDS", help="About how long it may take")] = 120.0,
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="What tensors may take of each device, as 1GB or 1GiB")
    ] = "1GiB",
    name: Annotated[str | None, typer.Option(help="Name of the device; its product name")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine with torch: the profile serves as device of a cluster, as in 1x4:OUTPUT.json.

    Measured are matrix products, attention, memory-bound work, kernel launches, collectives by size and group, and how
    much compute and communication slow each other down. Under torchrun (a process for each GPU) it measures all nodes.
    """
    if output.suffix != ".json" or output.is_dir():
        raise InputError.at("OUTPUT", f"must be a file whose name ends in .json, got {output}")
    check_writable(output, "OUTPUT")
    _check_bounds(time_budget, limit := parse_bytes(memory_limit, "--memory-limit"))
    if find_spec("torch") is None:
        raise InputError.at("profile", "measuring needs torch, which is not installed: pip install 'trimtab[runtime]'")
    begun = time.monotonic()
    measured = _measured(device, devices, time_budget, limit)
    if measured is None:
        return
    found = measured_profile(name, *measured, datetime.now(timezone.utc).date().isoformat(), time.monotonic() - begun)
    write_text(output, text := profile_text(found))
    if as_json:
        say(text.rstrip())
    else:
        show(_constants(found), _errors(found))


def _check_bounds(time_budget: float, limit: int) -> None:
    if not LEAST_TIME_S <= time_budget <= 86400:
        raise InputError.at("--time-budget", f"must be from {LEAST_TIME_S:g} seconds to a day, got {time_budget:g}")
    if limit < LEAST_MEMORY_BYTES:
        raise InputError.at("--memory-limit", f"must be at least {LEAST_MEMORY_BYTES >> 20} MiB, got {limit} bytes")


def _measured(device: str, devices: int | None, time_budget: float, limit: int) -> tuple[Machine, list[Sample]] | None:
    """Machine and samples; None in a process of torchrun that is not the first."""
    # torch takes seconds to import, and is not there on every machine.
    from profiles.measure import (  # noqa: PLC0415
        Backend,
        Wish,
        measure,
        measure_under_torchrun,
        num_devices,
        process_group,
    )
    from runtime.launch import launch  # noqa: PLC0415

    known = {"auto": Backend.CUDA if num_devices(Backend.CUDA) else Backend.CPU, **{b.value: b for b in Backend}}
    if device not in known:
        raise InputError.at("--device", f"must be {', '.join(known)}, got {device!r}")
    backend = known[device]
    there = num_devices(backend)
    if not there:
        raise InputError.at("--device", f"must be auto or cpu: there is no {backend.name} device here")
    if there < (devices or 1):
        raise InputError.at("--devices", f"must be at most what this machine has of {backend}, {there}")
    wish = Wish(
        backend=backend,
        ranks_per_node=devices or (there if backend is Backend.CUDA else min(there, MOST_PROCESSES)),
        time_budget_s=time_budget,
        memory_limit_bytes=limit,
    )
    with progress_bar("Measuring") as report:
        if set(_TORCHRUN) <= os.environ.keys():
            wish = wish.model_copy(update={"ranks_per_node": int(os.environ["LOCAL_WORLD_SIZE"])})
            first = os.environ["RANK"] == "0"
            measured = measure_under_torchrun(lambda done: report(*done) if first else None, wish)
            return measured if first else None
        machine, samples = launch(
            measure,
            wish.ranks_per_node,
            (wish,),
            on_report=lambda rank, done: report(*done) if rank == 0 else None,
            timeout_s=60 + 3 * time_budget,
            backend=process_group(backend),
        )[0]
        return machine, samples


def _constants(found: MeasuredProfile) -> Table:
    device = found.device
    efficiency, peaks = device.efficiency, device.peak_flops_per_s.model_dump(exclude_none=True)
    rows = [
        ("device", device.name),
        *((f"peak {precision}", f"{flops / 1e12:.4g} TFLOP/s") for precision, flops in peaks.items()),
        (
            "matrix products",
            f"{percent(efficiency.matmul_ratio)} of peak, half of it at depth {efficiency.matmul_half_depth:.3g}",
        ),
        (
            "attention forward, backward",
            f"{percent(efficiency.attention_forward_ratio)}, {percent(efficiency.attention_backward_ratio)} of peak",
        ),
        (
            "memory-bound work",
            f"{percent(efficiency.memory_ratio)} of {device.memory_bandwidth_bytes_per_s / 1e9:.4g} GB/s",
        ),
        ("kernel launch", seconds(efficiency.kernel_launch_s)),
        ("overlap slowdown", f"{efficiency.overlap_slowdown_ratio:.2f}"),
    ]
    for tier, link in (("link in the node", found.intra_node), ("link between nodes", found.inter_node)):
        if link is not None:
            rows.append((tier, f"{link.bandwidth_bytes_per_s / 1e9:.4g} GB/s, {seconds(link.latency_s)} per message"))
    return Table("Measured", (Column("constant"), Column("value")), tuple(rows))


def _errors(found: MeasuredProfile) -> Table:
    """How well the formulas with these constants give back what was measured."""
    assert found.measurement is not None
    columns = (Column("work"), Column("samples", True), Column("mean error", True), Column("worst", True))
    rows = tuple(
        (error.kind, str(error.num_samples), percent(error.mean_error_ratio), percent(error.worst_error_ratio))
        for error in found.measurement.errors
    )
    return Table("Formulas against samples", columns, rows)

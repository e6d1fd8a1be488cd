"""`trimtab replay`: the online policy on recorded loads, beside standing still and hindsight."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from api.commands.options import JsonOption
from api.commands.terminal import progress_bar, say, show
from api.resolution import cluster_of, model_of
from planner.online import replay as replay_trace
from planner.online import replay_context
from planner.online.replay import Outcome
from planner.spec.errors import InputError, MalformedError
from planner.view import Column, Table
from planner.view.quantities import seconds
from profiles import cluster_request_from_file, model_request_from_file

_PARTS = ("tokens", "steps", "top_k")


def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE.npz", help="tokens[sample][layer][expert], steps, top_k")],
    cluster: Annotated[str, typer.Option(metavar="CLUSTER", help="Devices that train")] = "1x8:a100-sxm-80g",
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model of the trace; without, a GPT-MoE of its shape")
    ] = None,
    ranks: Annotated[int, typer.Option(help="Devices that the experts of a layer are spread over")] = 8,
    extra_slots: Annotated[int, typer.Option(min=0, help="Slots of each rank for replicas")] = 0,
    policy: Annotated[str | None, typer.Option(metavar="A,B,…", help="Of trimtab static hindsight; all")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the recorded expert loads of TRACE.npz."""
    tokens, steps, top_k = _read(trace)
    known = None if model is None else model_of(model_request_from_file(model))
    devices = cluster_of(cluster_request_from_file(cluster))
    context = replay_context(tokens, top_k, devices, ranks, extra_slots, known)
    with progress_bar("Replaying") as report:
        outcomes = replay_trace(tokens, steps, context, report=report)["policies"]
    chosen = {name: outcomes[name] for name in _chosen(policy, tuple(outcomes))}
    if as_json:
        say(json.dumps({"policies": chosen}, indent=2))
    else:
        show(_table(chosen))


def _chosen(policy: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = known if policy is None else tuple(name.strip() for name in policy.split(","))
    for name in names:
        if name not in known:
            raise InputError.at("--policy", f"must be of {', '.join(known)}, got {name!r}")
    return names


def _read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Counts [samples, layers, experts], steps [samples] and top_k; raises InputError at `trace`."""
    try:
        with np.load(path, allow_pickle=False) as data:
            parts = {name: data[name] for name in _PARTS if name in data}
    except OSError as error:
        raise MalformedError.at("trace", f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise MalformedError.at("trace", f"{path} is no .npz file: {error}") from None
    missing = [name for name in _PARTS if name not in parts]
    if missing:
        raise InputError.at("trace", f"{path} must hold {', '.join(_PARTS)}; it lacks {', '.join(missing)}")
    for name, number in zip(_PARTS, (3, 1, 0), strict=True):
        if parts[name].ndim != number or parts[name].dtype.kind not in "iu" or not parts[name].size:
            raise InputError.at(
                f"trace.{name}", f"must be whole numbers in {number} dimensions, got {parts[name].shape}"
            )
    return parts["tokens"].astype(np.int64), parts["steps"].astype(np.int64), int(parts["top_k"])


def _table(outcomes: dict[str, Outcome]) -> Table:
    """One row per policy."""
    columns = (
        Column("policy"),
        Column("imbalance", True),
        Column("moved experts", True),
        Column("decisions", True),
        Column("mean step", True),
        Column("total", True),
    )
    rows = tuple(
        (
            name,
            f"{outcome['imbalance_mean']:.3f}",
            f"{outcome['moved_experts']:,}",
            f"{outcome['decisions']:,}",
            seconds(outcome["step_time_s_mean"]),
            seconds(outcome["total_time_s"]),
        )
        for name, outcome in outcomes.items()
    )
    return Table("Replay", columns, rows)

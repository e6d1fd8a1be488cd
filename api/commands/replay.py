"""`trimtab replay`: the online policy on recorded loads, beside others' rules, standing still and hindsight."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from api.commands.lines import say
from api.commands.options import JsonOption, check_writable, parts_of, write_text
from api.commands.replay_picture import OURS, Heard
from api.commands.replay_table import replay_summary, replay_table, replay_title
from api.commands.terminal import progress_bar, show
from api.resolution import cluster_of, model_of
from planner.online import Trace, replay_context, trace_of
from planner.online import replay as replay_trace
from planner.online.recorded.course import DELAY
from planner.online.recorded.replay import POLICIES
from planner.online.recorded.trace import ARRAYS
from planner.spec.cluster import Cluster
from planner.spec.errors import InputError, MalformedError, Problem
from planner.spec.mixed_cluster import MixedCluster
from planner.spec.model import Model
from planner.spec.placement import TokenSplit
from planner.spec.run import RunContext
from planner.view import run_picture
from profiles import cluster_request_from_file, model_request_from_file

_OPTIONS = {
    "cluster": "--cluster",
    "num_ranks": "--ranks",
    "extra_slots_per_rank": "--slots-extra",
    "shadow_slots_per_rank": "--shadow-slots",
    "policy": "--policy",
    "window": "--window",
    "delay": "--delay",
    "global_batch_size": "--global-batch-size",
    "model": "--model",
}
"""Fields of the planner, and the options that set them."""


def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE.npz", help="Recorded loads, as Agent(record=…) writes them")],
    cluster: Annotated[str, typer.Option(metavar="CLUSTER", help="Devices that train, as plan takes them")] = (
        "1x8:a100-sxm-80g"
    ),
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model of the trace; without, a GPT-MoE of its shape")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(help="Devices that the experts of a layer are spread over; as many as devices and experts allow"),
    ] = None,
    slots_extra: Annotated[int, typer.Option(min=0, help="Slots of each rank for replicas")] = 0,
    shadow_slots: Annotated[int, typer.Option(min=0, help="Slots of each rank for shadow experts, besides")] = 0,
    token_split: Annotated[
        str, typer.Option(metavar="SPLIT", help="How replicas share tokens: even, by window, or anew in every step")
    ] = TokenSplit.WINDOW.value,
    window: Annotated[int, typer.Option(min=1, metavar="N", help="Samples of the trace per window")] = 1,
    global_batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples per step; as many as the trace's tokens make")
    ] = None,
    delay: Annotated[
        float, typer.Option(metavar="PART", help="Of a window, before what is decided is carried out; 0 to 1")
    ] = DELAY,
    policy: Annotated[
        str | None, typer.Option(metavar="A,B,…", help=f"Of {' '.join(POLICIES)}; without, all of them")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw what the policy trimtab did, and the loads, into this SVG file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded expert loads under the online policy, others' rules and yardsticks: balance, time, moves.

    Example: trimtab replay trace.npz --cluster 1x8:a100-sxm-80g --slots-extra 1 --policy trimtab,eplb,static
    """
    check_writable(picture, "--picture")
    recorded, chosen = _read(trace), parts_of(policy)
    if picture is not None and chosen is not None and OURS not in chosen:
        raise InputError.at("--picture", f"draws what {OURS} decides, so --policy must name it too")
    heard = Heard(-(-len(recorded.tokens) // window))
    try:
        if window > recorded.num_samples:
            raise InputError.at("window", f"must be at most the trace's {recorded.num_samples} samples, got {window}")
        context = _context(recorded, cluster, model, ranks, slots_extra, shadow_slots, token_split, global_batch_size)
        with progress_bar("Replaying") as report:
            found = replay_trace(recorded, context, chosen, window, report=report, delay=delay, heard=heard)
    except InputError as error:
        problems = (Problem(_OPTIONS.get(p.field, p.field), p.message) for p in error.problems)
        raise InputError(*problems, num_more=error.num_more) from None
    if picture is not None:
        write_text(picture, run_picture(heard.life(trace.stem, context)), "--picture")
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        say(replay_title(recorded, context, window, delay))
        show(replay_table(found["policies"]))
        say("\n".join(replay_summary(found)))


def _context(
    trace: Trace,
    cluster: str,
    model: str | None,
    ranks: int | None,
    slots_extra: int,
    shadow_slots: int,
    token_split: str,
    global_batch_size: int | None,
) -> RunContext:
    """The run that the options describe; raises InputError."""
    if token_split not in [split.value for split in TokenSplit]:
        raise InputError.at("--token-split", f"must be of {', '.join(TokenSplit)}, got {token_split!r}")
    planned = None if model is None else model_of(model_request_from_file(model))
    devices = cluster_of(cluster_request_from_file(cluster))
    if isinstance(devices, MixedCluster):
        raise InputError.at(
            "--cluster", "must be of one kind of device: a trace is replayed as one data-parallel stage"
        )
    top_k = _top_k(trace, planned)
    num_ranks = _most_ranks(trace, devices) if ranks is None else ranks
    _check_slots(trace.tokens.shape[2], num_ranks, slots_extra, shadow_slots)
    return replay_context(
        trace.step_tokens,
        top_k,
        devices,
        num_ranks,
        slots_extra,
        planned,
        shadow_slots=shadow_slots,
        token_split=TokenSplit(token_split),
        global_batch_size=global_batch_size,
    )


def _top_k(trace: Trace, planned: Model | None) -> int:
    """Of the trace or the model, which must not contradict each other."""
    if planned is None or not planned.moe_layers:
        if trace.top_k is None:
            raise InputError.at("trace.top_k", "is not recorded: --model must say which model this is")
        return trace.top_k
    top_k = planned.moe(planned.moe_layers[0]).top_k
    if trace.top_k not in (None, top_k):
        raise InputError.at("--model", f"must pick {trace.top_k} experts for each token as the trace says, not {top_k}")
    return top_k


def _most_ranks(trace: Trace, cluster: Cluster) -> int:
    devices, experts = cluster.num_devices, trace.tokens.shape[2]
    most = gcd(devices, experts)
    if most == 1 < devices:
        raise InputError.at(
            "--cluster",
            f"must have a number of devices that has a divisor in common with the {experts} experts, for equally many "
            f"on each rank, got {devices}; --ranks 1 replays them unspread",
        )
    return most


def _check_slots(experts: int, ranks: int, extra: int, shadows: int) -> None:
    """A rank wants no expert twice; what else ranks and experts must be, `replay_context` says."""
    most = experts - experts // max(1, ranks)
    for option, slots, free in (("--slots-extra", extra, most), ("--shadow-slots", shadows, most - extra)):
        if slots > free:
            raise InputError.at(
                option,
                f"must be at most {free}: with {experts} experts on {ranks} ranks each lacks no more, got {slots}",
            )


def _read(path: Path) -> Trace:
    """The trace in a file; raises InputError at `trace`."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if not isinstance(data, Mapping):
                raise ValueError("it holds one array without a name")
            arrays = {name: data[name] for name in ARRAYS if name in data}
    except OSError as error:
        raise MalformedError.at("trace", f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise MalformedError.at("trace", f"{path} is no .npz file of arrays of numbers with names") from None
    return trace_of(arrays)

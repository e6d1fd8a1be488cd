"""A plan written short, as people name plans: tp4-pp8-dp2-ep1-vpp4-mbs1-zero1-sp-recompute:selective.

One strategy for all blocks, on even stages. dp may be left out: it is what the other degrees leave of the devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

from planner.search.assemble import assemble
from planner.search.families import Family
from planner.spec.errors import InputError, Problem
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import AnyLayer, Block, Model
from planner.spec.parse import parse
from planner.spec.plan import Plan, Schedule, ScheduleKind
from planner.spec.strategy import AxisKind, Recompute, Sharding, Strategy
from planner.spec.stretches import Stretches, equal_pieces, even_stretches
from planner.spec.training import Training

_DEGREES = ("tp", "pp", "dp", "cp", "ulysses", "ep", "etp", "vpp", "mbs")
_WORD = re.compile(rf"(?P<name>{'|'.join(_DEGREES)})(?P<degree>[1-9]\d{{0,8}})")
_SHARDING = {f"zero{level}": sharding for level, sharding in enumerate(Sharding)}
_RECOMPUTE = {f"recompute:{recompute.value}": recompute for recompute in Recompute}
_SCHEDULES = {"gpipe": ScheduleKind.GPIPE, "zb": ScheduleKind.ZERO_BUBBLE}
_FLAGS = ("sp", "offload", *_SCHEDULES)
_HELP = (
    f"a plan is words joined by '-': {' '.join(f'{name}N' for name in _DEGREES)}, {' '.join(_SHARDING)}, "
    f"{', '.join(_FLAGS)}, {' '.join(_RECOMPUTE)}"
)


def plan_from_shorthand(text: str, model: Model, cluster: AnyCluster, training: Training) -> Plan:
    """The plan that `text` names; raises InputError at field `plan` that says what would be right.

    Degrees left out are 1, but dp is what remains of the devices and etp equals tp, as Megatron-Core has it.
    """
    degrees, sharding, recompute, flags = _words(text)
    if training.global_batch_size == "max":
        raise InputError.at("training.global_batch_size", 'must be a number to price a plan, not "max"')
    given = {name: degrees.get(name, 1) for name in _DEGREES}
    given["dp"] = degrees.get("dp", _rest(cluster, given))
    if given["dp"] * _others(given) != cluster.num_devices:
        raise InputError.at(
            "plan", f"tp x pp x dp x cp x ulysses must be the cluster's {cluster.num_devices} devices: {text!r}"
        )
    samples = given["mbs"] * given["dp"]
    if training.global_batch_size % samples:
        raise InputError.at("plan", f"mbs x dp ({samples}) must divide the batch of {training.global_batch_size}")
    family = Family(
        training.global_batch_size, given["pp"], training.global_batch_size // samples, _schedule(given, flags)
    )
    given["etp"] = degrees.get("etp", given["tp"])
    common = {"sharding": sharding, "sequence_parallel": "sp" in flags, "offload": "offload" in flags}
    strategies = _strategies(given, common, recompute, bool(model.moe_layers))
    stages = _stages(model, family)
    chosen = [
        [strategies[_kind(model.layers[layer])] for first, end in each for layer in range(first, end)]
        for each in stages
    ]
    return assemble(cluster, training, family, stages, chosen)


def _words(text: str) -> tuple[dict[str, int], Sharding, Recompute, set[str]]:
    degrees: dict[str, int] = {}
    found: dict[str, object] = {}
    flags: set[str] = set()
    problems = []
    for word in text.split("-"):
        match = _WORD.fullmatch(word)
        kind = match["name"] if match else "zero" if word in _SHARDING else word.partition(":")[0]
        if match and kind not in degrees:
            degrees[kind] = int(match["degree"])
        elif word in _SHARDING | _RECOMPUTE and kind not in found:
            found[kind] = (_SHARDING | _RECOMPUTE)[word]
        elif word in _FLAGS and word not in flags:
            flags.add(word)
        else:
            problems.append(Problem("plan", f"{word!r} is unknown or stands twice; {_HELP}"))
    if problems:
        raise InputError(*problems[:1])
    sharding, recompute = found.get("zero", Sharding.NONE), found.get("recompute", Recompute.NONE)
    assert isinstance(sharding, Sharding)
    assert isinstance(recompute, Recompute)
    return degrees, sharding, recompute, flags


def _rest(cluster: AnyCluster, given: Mapping[str, int]) -> int:
    used = _others(given)
    if cluster.num_devices % used:
        raise InputError.at(
            "plan", f"tp x pp x cp x ulysses ({used}) must divide the cluster's {cluster.num_devices} devices"
        )
    return cluster.num_devices // used


def _others(given: Mapping[str, int]) -> int:
    """Devices that dp repeats."""
    return prod(given[name] for name in ("tp", "pp", "cp", "ulysses"))


def _schedule(given: Mapping[str, int], flags: set[str]) -> Schedule:
    named = [word for word in _SCHEDULES if word in flags]
    if len(named) > 1:
        raise InputError.at("plan", f"{' and '.join(named)} are two schedules; leave one out")
    if named and given["vpp"] > 1:
        raise InputError.at("plan", f"{named[0]} has no virtual stages; leave out vpp or {named[0]}")
    if given["vpp"] > 1:
        return Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=given["vpp"])
    return Schedule(kind=_SCHEDULES[named[0]] if named else ScheduleKind.ONE_F_ONE_B)


def _strategies(
    given: Mapping[str, int], common: Mapping[str, object], recompute: Recompute, moe: bool
) -> dict[str, Strategy]:
    """By kind of layer: blocks recompute, MoE blocks have experts."""
    outside_in = (AxisKind.DP, AxisKind.CP, AxisKind.ULYSSES, AxisKind.TP)
    axes = [[kind.value, given[kind.value]] for kind in outside_in if given[kind.value] > 1]
    devices = prod(given[kind.value] for kind in outside_in)
    common = {**common, "axes": axes}
    found = {
        "edge": parse(Strategy, common, "plan"),
        "dense": parse(Strategy, common | {"recompute": recompute}, "plan"),
    }
    if moe:
        experts = {
            "expert_parallel_size": given["ep"],
            "expert_tensor_parallel_size": given["etp"],
            "expert_data_parallel_size": max(1, devices // (given["ep"] * given["etp"])),
        }
        found["moe"] = parse(Strategy, common | {"recompute": recompute, "experts": experts}, "plan")
    elif given["ep"] > 1:
        raise InputError.at("plan", "ep needs a model with experts")
    return found


def _kind(layer: AnyLayer) -> str:
    if not isinstance(layer, Block):
        return "edge"
    return "dense" if layer.moe is None else "moe"


def _stages(model: Model, family: Family) -> tuple[Stretches, ...]:
    virtual = family.schedule.virtual_stages
    if virtual > 1 and family.num_stages == 1:
        raise InputError.at("plan", "vpp needs pp of at least 2")
    if virtual > 1 and family.num_micro_batches % family.num_stages:
        raise InputError.at("plan", f"vpp needs micro-batches in a multiple of pp, not {family.num_micro_batches}")
    pieces = (
        equal_pieces(model, family.num_stages, virtual) if virtual > 1 else even_stretches(model, family.num_stages)
    )
    if pieces is None:
        blocks = sum(isinstance(layer, Block) for layer in model.layers)
        raise InputError.at("plan", f"{blocks} blocks cannot fill pp {family.num_stages} x vpp {virtual}")
    return pieces

"""What Galvatron's search answered, and what the answer took: records of benchmarks of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from planner.spec.errors import InputError
from planner.spec.parse import parse, read_json
from planner.spec.value import Count, NonNegative, Positive, Value
from profiles.files import read_json_file
from profiles.galvatron.plan_file import PlanFile, plan_file

USUAL_DP_TYPE = "zero2"
"""`default_dp_type` where a record of v2.1 does not say it; as in the plans that Galvatron ships."""


class SearchResult(Value):
    """One answer of its search: the plan, its own prediction, and the processor time."""

    name: str
    model: str | None
    """Name of the model's profile; None: not said."""
    num_devices: Count
    memory_limit_bytes: Count
    """Its gigabytes are GiB."""
    predicted_samples_per_s: Positive
    predicted_step_time_s: Positive
    predicted_memory_bytes: tuple[Count, ...]
    """By stage, with what it holds back."""
    search_cpu_s: NonNegative
    since_2_4: bool
    """Whether the version writes what plans have had since: a cut of embedding and head."""
    plan: PlanFile

    @property
    def held_back_bytes(self) -> int:
        """Above 20 GiB it leaves a fifth of the limit to PyTorch's cache, and counts it as used."""
        return self.memory_limit_bytes // 5 if self.memory_limit_bytes > 20 * 2**30 else 0


class _Record(NamedTuple):
    """The parts of a record that its two forms write differently."""

    plan: PlanFile
    num_devices: int


def is_search_result(data: Mapping[str, Any]) -> bool:
    """Whether a file's content is such a record."""
    return {"cpu_s", "throughput_samples_s"} <= data.keys()


def read_search_results(folder: Path) -> tuple[SearchResult, ...]:
    """All records of a folder, by name; raises InputError that names file and field."""
    files = sorted(folder.glob("*.json"))
    return tuple(search_result(read_json_file(file, file.name), file.stem) for file in files)


def search_result(data: Mapping[str, Any], name: str) -> SearchResult:
    """One record; raises InputError that names the field under `name`."""
    if missing := {"args", "iter_time_s", "mem_used_MB"} - data.keys():
        raise InputError.at(f"{name}.{min(missing)}", "is required")
    arguments = parse(dict[str, str], data["args"], f"{name}.args")
    record = _new(data, name) if "plan" in data else _old(data, name)
    used = data["mem_used_MB"]
    field = f"{name}.mem_used_MB"
    stages = parse(tuple[Positive, ...], read_json(used, field) if isinstance(used, str) else used, field)
    content = {
        "name": name,
        "model": arguments.get("name"),
        "num_devices": record.num_devices,
        "memory_limit_bytes": parse(int, arguments.get("mem"), f"{name}.args.mem") * 2**30,
        "predicted_samples_per_s": data["throughput_samples_s"],
        "predicted_step_time_s": data["iter_time_s"],
        "predicted_memory_bytes": tuple(int(mebibytes) * 2**20 for mebibytes in stages),
        "search_cpu_s": data["cpu_s"],
        "since_2_4": "plan" in data,
        "plan": record.plan,
    }
    return parse(SearchResult, content, name)


def _new(data: Mapping[str, Any], name: str) -> _Record:
    """Since 3.0: with the plan file inside."""
    plan = plan_file(data["plan"], f"{name}.plan")
    if plan.world_size is None:
        raise InputError.at(f"{name}.plan.world_size", "is required")
    return _Record(plan, plan.world_size)


_COLUMNS = ("tp_sizes_enc", "tp_consecutive_flags", "dp_types_enc", "checkpoint")


def _old(data: Mapping[str, Any], name: str) -> _Record:
    """v2.1: runs of blocks with `[pp, tp, dp, {"tp": consecutive, "fsdp": ZeRO-3, "cpt": recomputed}]`."""
    try:
        runs = [(json.loads(text), int(count)) for text, count in data["plan_rle"]]
        blocks = [(*degrees, flags) for (*degrees, flags), count in runs for _ in range(count)]
        sizes = {pp * tp * dp for pp, tp, dp, _ in blocks}
        tensor = [(tp, flags.get("tp", 1), flags.get("fsdp", 0), flags.get("cpt", 0)) for _, tp, _, flags in blocks]
        division = data["pp_division"][str(data["pp_deg"])]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError.at(f"{name}.plan_rle", f"cannot be read: {error!r:.80}") from None
    if len(sizes) != 1:
        raise InputError.at(f"{name}.plan_rle", f"all blocks must use as many devices, they use {sorted(sizes)}")
    content = {
        "pp_deg": data["pp_deg"],
        **{key: ",".join(map(str, column)) for key, column in zip(_COLUMNS, zip(*tensor, strict=True), strict=True)},
        "global_bsz": data["global_bsz"],
        "chunks": data["chunks"],
        "pp_division": ",".join(map(str, division)),
        "pipeline_type": "pipedream_flush",
        "default_dp_type": USUAL_DP_TYPE,
    }
    return _Record(plan_file(content, name), sizes.pop())

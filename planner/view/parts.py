"""Named parts of an estimate: which of them there are to show, and what they are called in prose."""

from __future__ import annotations

from planner.spec.estimate import Estimate

_PARALLEL = ("tensor", "context", "data", "expert")


def time_parts(estimate: Estimate) -> dict[str, float]:
    """Parts of the step that take time, in seconds, in the order of the estimate."""
    return {key: part_s for key, part_s in estimate.time.items() if part_s > 0}


def memory_parts(estimate: Estimate) -> tuple[str, ...]:
    """Keys of the parts of memory that any stage has, in order of appearance."""
    keys = dict.fromkeys(key for stage in estimate.stages for key in stage.memory)
    return tuple(key for key in keys if any(stage.memory.get(key, 0) for stage in estimate.stages))


def part_name(key: str) -> str:
    """A key as prose: `data_parallel_communication` → `data-parallel communication`."""
    words = key.split("_")
    if words[0] in _PARALLEL and words[1:2] == ["parallel"]:
        words[:2] = ["-".join(words[:2])]
    return " ".join(words).replace("all to all", "all-to-all")

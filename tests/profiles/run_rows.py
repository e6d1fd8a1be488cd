"""Made-up rows in the RUNS format."""

import copy
import json
from typing import Any

from profiles.runs import Case, RunRecord, Skipped, case_of
from profiles.runs.reading import records

ROW: dict[str, Any] = {
    "id": "made-up-1",
    "source": "Somebody's measurements 2024",
    "model": {
        "name": "Tiny",
        "family": "llama-dense",
        "layers": 16,
        "hidden": 2048,
        "ffn_hidden": 5632,
        "heads": 16,
        "kv_heads": 4,
        "vocab": 32000,
        "seq": 4096,
    },
    "hardware": {"gpu": "A100-SXM4-80GB", "gpus": 16, "gpus_per_node": 8, "intra": None, "inter": None},
    "parallel": {"tp": 2, "pp": 2, "dp": 4, "cp": 1, "zero": 1, "sp": True, "recompute": "none"},
    "batch": {"global": 64, "micro": 2, "seq": 4096},
    "precision": "bf16",
    "measured": {"step_time_s": 1.5},
    "usable_for_accuracy": True,
}
EXPERTS = {"family": "mixtral-moe", "experts": 8, "top_k": 2, "moe_layer_freq": "all"}


def row(**changes: Any) -> dict[str, Any]:
    """A row with some fields changed; parts (`model`, `parallel`, …) are changed field by field."""
    made = copy.deepcopy(ROW)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(made.get(name), dict):
            made[name].update(value)
        else:
            made[name] = value
    return made


def record(**changes: Any) -> RunRecord:
    """The record of `row(…)`."""
    return records([row(**changes)])[0]


def case(**changes: Any) -> Case:
    """The case of `row(…)`, which must not be skipped; without a measure of its own, so that sizes are free."""
    changes.setdefault("measured", {"step_time_s": None})
    found = case_of(record(**changes))
    assert isinstance(found, Case), found
    return found


def reason(**changes: Any) -> str:
    """Why `row(…)` is skipped."""
    found = case_of(record(**changes))
    assert isinstance(found, Skipped), found
    return found.reason


def text(*rows: dict[str, Any]) -> bytes:
    """A RUNS file of these rows."""
    return json.dumps(list(rows)).encode()

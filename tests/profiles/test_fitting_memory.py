"""The fit of what allocator and libraries hold: it finds constants that rows were made with."""

import pytest

from planner.cost.estimate import estimate
from planner.spec.errors import InputError
from profiles.fit.memory import fit_memory
from profiles.runs import Case, case_of
from profiles.runs.reading import records
from profiles.runs.record import RunRecord

RATIO, TAKEN = 0.35, 2_400_000_000


def row(micro: int, dp: int) -> dict[str, object]:
    return {
        "id": f"made-{micro}-{dp}",
        "source": "BigScience",
        "model": {
            "name": "GPT-7B",
            "family": "gpt",
            "layers": 32,
            "hidden": 4096,
            "ffn_hidden": 16384,
            "heads": 32,
            "vocab": 50304,
        },
        "hardware": {"gpu": "A100-SXM4-80GB", "gpus": 8 * dp, "gpus_per_node": 8},
        "parallel": {"tp": 4, "pp": 2, "dp": dp, "zero": 1, "recompute": "full"},
        "batch": {"global": 64, "micro": micro, "seq": 2048},
        "precision": "bf16",
        "measured": {},
    }


def with_peak(content: dict[str, object]) -> RunRecord:
    (bare,) = records([content])
    case = case_of(bare)
    assert isinstance(case, Case)
    stack = case.cluster.stack.model_copy(update={"fragmentation_ratio": RATIO, "library_bytes": TAKEN})
    cluster = case.cluster.model_copy(update={"stack": stack})
    price = estimate(case.model, cluster, case.training, case.plan)
    peak = max(stage.peak_memory_bytes for stage in price.stages)
    return records([content | {"measured": {"peak_mem_gb": peak / 1e9}}])[0]


def test_the_fit_finds_the_constants_that_rows_were_made_with():
    made = [with_peak(row(micro, dp)) for micro in (1, 4, 16) for dp in (1, 2, 4)]
    found = fit_memory("megatron-deepspeed", made)
    assert (found.fragmentation_ratio, found.library_bytes, found.rows) == (RATIO, TAKEN, 9)
    assert found.mean_error == pytest.approx(0.0, abs=1e-6)


def test_a_stack_without_rows_cannot_be_fitted():
    with pytest.raises(InputError, match="megatron-deepspeed"):
        fit_memory("megatron-deepspeed", [])

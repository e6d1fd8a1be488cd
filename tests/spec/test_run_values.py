import math

import pytest
from pydantic import TypeAdapter, ValidationError
from spec_samples import TWO_STAGES

from planner.spec.cluster import Cluster, Device, KernelEfficiency, Level, Link, PeakFlops, Provenance
from planner.spec.errors import InputError
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, LayerRun, Model
from planner.spec.parse import parse
from planner.spec.plan import Plan, ScheduleKind
from planner.spec.request import SearchRequest
from planner.spec.run import RunContext
from planner.spec.strategy import Sharding
from planner.spec.training import Training
from planner.spec.value import content_id

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-6)
DEVICE = Device(
    name="toy",
    memory_bytes=2**30,
    memory_bandwidth_bytes_per_s=1e10,
    compute_units=1,
    peak_flops_per_s=PeakFlops(fp32=1e12),
    efficiency=KernelEfficiency(
        matmul_ratio=1, attention_forward_ratio=1, attention_backward_ratio=1, memory_ratio=1, kernel_launch_s=0
    ),
    reserve_bytes=0,
    provenance=Provenance.DATASHEET,
)
BLOCK = Block(
    attention=GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=8), feed_forward=DenseFeedForward(width=64)
)
PLAN = parse(Plan, TWO_STAGES)
CONTEXT = {
    "model": Model(name="toy", hidden_size=32, runs=(LayerRun(layer=BLOCK, num_layers=6),)),
    "cluster": Cluster(
        nodes=1, devices_per_node=8, device=DEVICE, levels=(Level(name="node", num_devices=8, link=LINK),)
    ),
    "training": Training(global_batch_size=16, sequence_length=128),
}


def test_a_run_finds_its_plans_by_id():
    context = RunContext(**CONTEXT, plans=(PLAN,))
    assert context.plan(PLAN.id) is PLAN
    with pytest.raises(KeyError):
        context.plan("0000000000000000")


@pytest.mark.parametrize("plans", [(), (PLAN, PLAN)], ids=["none", "the same twice"])
def test_a_run_needs_plans_that_differ(plans):
    with pytest.raises(ValidationError, match="plans"):
        RunContext(**CONTEXT, plans=plans)


def test_all_that_a_decision_depends_on_survives_json():
    context = RunContext(**CONTEXT, plans=(PLAN,), extra_slots_per_rank=2)
    assert RunContext.model_validate_json(context.model_dump_json()) == context


def test_enumerations_print_as_their_values():
    assert (str(Sharding.OPTIMIZER), f"{ScheduleKind.ONE_F_ONE_B}") == ("optimizer", "1f1b")


def test_an_identity_depends_on_content_and_not_on_the_order_of_keys():
    assert content_id({"a": 1, "b": [2.5, None]}) == content_id({"b": [2.5, None], "a": 1})
    assert content_id({"a": 1}) != content_id({"a": True}) != content_id({"a": "1"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_id({"a": math.nan})


def test_several_ways_to_be_wrong_at_one_field_are_one_problem():
    with pytest.raises(InputError) as caught:
        parse(Training, {"global_batch_size": 0, "sequence_length": 128})
    (problem,) = caught.value.problems
    assert problem.field == "global_batch_size"


def test_a_search_request_has_a_schema_with_the_descriptions_of_its_fields():
    """Swagger UI shows these; a schema that cannot be made would take the documentation down."""
    schema = TypeAdapter(SearchRequest).json_schema()
    assert set(schema["properties"]) == {"model", "cluster", "training", "options"}
    assert schema["$defs"]["Training"]["properties"]["capacity_factor"]["description"]

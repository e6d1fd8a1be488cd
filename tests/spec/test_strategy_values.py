from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from spec_samples import strategies

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.strategy import AxisKind, Strategy


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ({"axes": [["dp", 2], ["dp", 4]]}, "axes", "each kind may stand once"),
        ({"axes": [["sdp", 2]], "sharding": "full"}, "axes", "sdp without dp"),
        ({"axes": [["dp", 2], ["sdp", 2]]}, "sharding", 'must be "full"'),
        ({"axes": [["tp", 2]], "sharding": "optimizer"}, "sharding", 'must be "none"'),
        ({"axes": [["dp", 2]], "sequence_parallel": True}, "sequence_parallel", "needs tp"),
        ({"axes": [["dp", 4]], "experts": {"expert_parallel_size": 2}}, "experts", "multiply to the 4 devices"),
        ({"axes": [["pp", 2]]}, "axes.0.0", "dp"),
        ({"axes": [["dp", 1]]}, "axes.0.1", "greater than or equal to 2"),
        ({"axes": [["dp", 2.0]]}, "axes.0.1", "whole number"),
        ({"axes": [["dp", True]]}, "axes.0.1", "whole number"),
        ({"sharding": "zero1"}, "sharding", "none"),
        ({"pipeline": 2}, "pipeline", "not a known field"),
    ],
)
def test_an_impossible_strategy_is_refused_at_its_field(data, field, message):
    with pytest.raises(InputError) as caught:
        parse(Strategy, data, "strategy")
    (problem,) = caught.value.problems
    assert problem.field == f"strategy.{field}"
    assert message in problem.message


def test_sharding_over_expert_data_parallel_ranks_alone_is_possible():
    experts = {"expert_parallel_size": 1, "expert_data_parallel_size": 2}
    strategy = parse(Strategy, {"axes": [["tp", 2]], "sharding": "optimizer", "experts": experts})
    assert strategy.data_parallel_size == 1


def test_a_strategy_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Strategy().sharding = "full"


@given(st.sampled_from([1, 2, 4, 8, 16]).flatmap(lambda n: st.tuples(st.just(n), strategies(n))))
def test_degrees_multiply_to_the_devices_and_strides_nest(case):
    num_devices, strategy = case
    assert prod(strategy.degree(kind) for kind in AxisKind) == strategy.num_devices == num_devices
    assert strategy.data_parallel_size * strategy.tp * strategy.sequence_parts == num_devices
    inside = 1
    for axis in reversed(strategy.axes):
        assert strategy.stride(axis.kind) == inside
        inside *= axis.degree


@given(strategies(8))
def test_a_strategy_survives_json(strategy):
    assert parse(Strategy, strategy.model_dump(mode="json")) == strategy
    assert Strategy.model_validate_json(strategy.model_dump_json()) == strategy

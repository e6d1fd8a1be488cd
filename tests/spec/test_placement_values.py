import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.placement import Placement


@st.composite
def placements(draw):
    num_ranks, extra = draw(st.integers(1, 8)), draw(st.integers(0, 2))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        experts = num_ranks * draw(st.integers(1, 3))
        replicas = draw(st.lists(st.integers(0, experts - 1), min_size=extra * num_ranks, max_size=extra * num_ranks))
        rows.append(tuple(draw(st.permutations([*range(experts), *replicas]))))
    return Placement(layers=tuple(rows), num_ranks=num_ranks)


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ({"layers": [], "num_ranks": 2}, "layers", "at least 1"),
        ({"layers": [[0, 1, 2]], "num_ranks": 2}, "layers[0]", "3 slots cannot be shared evenly by 2 ranks"),
        ({"layers": [[0, 1], []], "num_ranks": 2}, "layers[1]", "0 slots"),
        ({"layers": [[0, 0, 2, 3]], "num_ranks": 2}, "layers[0]", "expert 1 stands in no slot"),
        ({"layers": [[0, -1]], "num_ranks": 2}, "layers.0.1", "greater than or equal to 0"),
        ({"layers": [[0, True]], "num_ranks": 2}, "layers.0.1", "whole number"),
        ({"layers": [[0, 1]], "num_ranks": 0}, "num_ranks", "greater than or equal to 1"),
        ({"layers": [[0, 1]]}, "num_ranks", "is required"),
        (
            {"layers": [[0, 1, 2, 1]], "num_ranks": 2, "shadow_slots_per_rank": 1},
            "layers[0]",
            "expert 1 stands in shadow",
        ),
        ({"layers": [[0, 1]], "num_ranks": 2, "split": [[1.0]]}, "split", "one part for each slot"),
        ({"layers": [[0, 0]], "num_ranks": 2, "split": [[0.5, 0.4]]}, "split[0]", "expert 0 must sum to 1, not 0.9"),
    ],
)
def test_an_impossible_placement_is_refused_at_its_field(data, field, message):
    with pytest.raises(InputError) as caught:
        parse(Placement, data, "placement")
    (problem,) = caught.value.problems
    assert problem.field == f"placement.{field}"
    assert message in problem.message


def test_an_absurd_expert_number_is_refused_without_counting_up_to_it():
    with pytest.raises(InputError, match=r"layers\[0\]"):
        parse(Placement, {"layers": [[0, 2**52]], "num_ranks": 2})


def test_contiguous_placement_gives_each_rank_an_equal_stretch_of_experts():
    placement = Placement.contiguous([8, 4], 4)
    assert placement.layers == ((0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3))
    assert [placement.slots_per_rank(layer) for layer in (0, 1)] == [2, 1]


@given(placements())
def test_a_placement_survives_json(placement):
    assert Placement.model_validate_json(placement.model_dump_json()) == placement


@given(placements())
def test_slots_are_shared_evenly_and_hold_every_expert(placement):
    for number, slots in enumerate(placement.layers):
        assert placement.slots_per_rank(number) * placement.num_ranks == len(slots)
        assert set(slots) == set(range(placement.num_experts(number)))

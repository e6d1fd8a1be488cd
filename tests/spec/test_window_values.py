import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.window import Window
from planner.spec.workload import BALANCED, Workload

SOUND = {"index": 3, "first_step": 150, "num_steps": 50, "tokens": [[4, 0, 6], [1, 2, 7]]}


def field(kind, data):
    with pytest.raises(InputError) as caught:
        parse(kind, data)
    (problem,) = caught.value.problems
    return problem.field


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"tokens": []}, "tokens"),
        ({"tokens": [[1, 2], []]}, "tokens.1"),
        ({"tokens": [[1, 2], [0, 0]]}, "tokens[1]"),
        ({"tokens": [[1, -2]]}, "tokens.0.1"),
        ({"tokens": [[1, 2.5]]}, "tokens.0.1"),
        ({"tokens": [[1, math.nan]]}, "tokens.0.1"),
        ({"tokens": [[1, 2**53]]}, "tokens.0.1"),
        ({"tokens": 7}, "tokens"),
        ({"index": -1}, "index"),
        ({"first_step": True}, "first_step"),
        ({"num_steps": 0}, "num_steps"),
        ({"step_time_s": 0}, "step_time_s"),
        ({"step_time_s": math.inf}, "step_time_s"),
        ({"step_time_s": math.nan}, "step_time_s"),
        ({"loss": 1.0}, "loss"),
    ],
)
def test_an_impossible_window_is_refused_at_its_field(change, wrong):
    assert field(Window, SOUND | change) == wrong


@pytest.mark.parametrize("key", SOUND)
def test_every_part_of_a_window_is_required(key):
    assert field(Window, {name: value for name, value in SOUND.items() if name != key}) == key


tables = st.integers(1, 6).flatmap(
    lambda experts: st.lists(
        st.lists(st.integers(0, 2**53 - 1), min_size=experts, max_size=experts).filter(any), min_size=1, max_size=4
    )
)


@given(tables, st.none() | st.floats(1e-6, 1e6))
def test_a_window_survives_json(tokens, step_time_s):
    window = parse(Window, SOUND | {"tokens": tokens, "step_time_s": step_time_s})
    assert Window.model_validate_json(window.model_dump_json()) == window


def test_shares_that_do_not_sum_to_one_are_refused():
    assert field(Workload, {"name": "skewed", "expert_shares": [[0.5, 0.5], [0.5, 0.6]]}) == "expert_shares[1]"


@pytest.mark.parametrize("share", [math.nan, math.inf, -0.5])
def test_a_share_that_is_no_finite_number_is_refused(share):
    assert field(Workload, {"expert_shares": [[1.0, share]]}) == "expert_shares.0.1"


def test_one_row_of_shares_holds_for_all_layers_and_none_means_balanced():
    one = Workload(name="one", expert_shares=((0.75, 0.25),))
    two = Workload(name="two", expert_shares=((0.75, 0.25), (0.5, 0.5)))
    assert (one.shares(1, 2), two.shares(1, 2)) == ((0.75, 0.25), (0.5, 0.5))
    assert np.allclose(BALANCED.shares(0, 8), 1 / 8)

"""What ranks say they hold, and the whole model or the error that this makes."""

from __future__ import annotations

import pytest

from planner.spec.errors import InputError
from runtime.shares import whole_model

OWN = {
    "slots": [0, 1, 2, 3],
    "split": None,
    "num_ranks": 2,
    "shadow_slots_per_rank": 0,
    "extra_slots_per_rank": 0,
    "token_split": "window",
}


def layer(number, experts=4, own=None):
    return {"number": number, "name": f"layers.{number}.router", "num_experts": experts, "own": own}


def share(*layers, all_layers=False, migrates=False):
    return {"layers": list(layers), "all_layers": all_layers, "migrates": migrates}


def test_layers_are_put_in_the_order_of_the_model_whoever_holds_them():
    nothing = share(migrates=None)
    shares = [nothing, share(layer(3), layer(0)), share(layer(1, experts=8), layer(2)), share(layer(3), layer(0))]
    layers, migrates = whole_model(shares)
    assert [(each.number, each.num_experts) for each in layers] == [(0, 4), (1, 8), (2, 4), (3, 4)]
    assert migrates is False


def test_ranks_without_a_layer_leave_it_to_the_others_whether_experts_move():
    assert whole_model([share(migrates=None), share(layer(0, own=OWN), migrates=True)])[1] is True
    with pytest.raises(InputError, match="apply: must be the same on all ranks; rank 0 has false, rank 1 has true"):
        whole_model([share(migrates=False), share(layer(0, own=OWN), migrates=True)])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([share(migrates=None)] * 2, "moe_layers: no rank holds a MoE layer"),
        ([share(layer(0)), share(layer(2))], "moe_layers: no rank holds MoE layer 1, but rank 1 holds 2"),
        ([share(layer(0)), share(layer(0), layer(1), all_layers=True)], None),
        ([share(layer(0), all_layers=True), share(layer(1))], "moe_layers: rank 0 has 1 of the model's 2 MoE layers"),
        ([share(layer(0)), share(layer(0, experts=8))], "rank 0 has 4 experts, rank 1 has 8"),
        (
            [share(layer(0, own=OWN)), share(layer(0, own=OWN | {"slots": [1, 0, 2, 3]}))],
            "MoE layer 0 must be the same on all ranks that hold it; rank 0 has other slots",
        ),
        ([share(layer(0, own=OWN)), share(layer(1))], "model: has MoE layers over .* or of Trimtab and others mixed"),
        ([share(layer(0, own=OWN)), share(layer(1, own=OWN | {"num_ranks": 4}))], "over different numbers of ranks"),
    ],
)
def test_shares_that_make_no_model_are_an_error_that_says_which_rank_and_layer(shares, message):
    if message is None:
        assert len(whole_model(shares)[0]) == 2
        return
    with pytest.raises(InputError, match=message):
        whole_model(shares)

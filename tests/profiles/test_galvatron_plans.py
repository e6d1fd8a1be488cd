"""Galvatron's plan files: every key, both spellings, and what a broken file is told."""

import pytest
from galvatron_samples import LLAMA_PLAN, listed

from planner.spec.errors import InputError
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import Recompute, Sharding
from profiles.galvatron import Recipe, plan_file, plan_of

RECIPE = Recipe(num_devices=8, sequence_length=2048, sequence_parallel=True)
SMALL = {
    "pp_deg": 2,
    "tp_sizes_enc": "1,2,2,4",
    "tp_consecutive_flags": "1,1,0,1",
    "dp_types_enc": "0,0,1,0",
    "checkpoint": "0,1,0,0",
    "global_bsz": 16,
    "chunks": 2,
    "pp_division": "1,3",
    "pipeline_type": "gpipe",
    "default_dp_type": "ddp",
    "vtp": 2,
    "vsp": 0,
    "embed_sdp": 1,
}


def _plan(content, recipe=RECIPE):
    return plan_of(plan_file(content, "file"), recipe, "file")


def _strategies(plan):
    return [strategy for stage in plan.stages for _, strategy in stage.strategies()]


def _axes(strategy):
    return [(axis.kind.value, axis.degree) for axis in strategy.axes]


def test_each_block_gets_its_own_strategy():
    embedding, *blocks, head = _strategies(_plan(SMALL))
    assert [_axes(block) for block in blocks] == [
        [("dp", 4)],
        [("dp", 2), ("tp", 2)],
        [("tp", 2), ("dp", 2)],
        [("tp", 4)],
    ]
    assert [block.sharding for block in blocks] == [Sharding.NONE, Sharding.NONE, Sharding.FULL, Sharding.NONE]
    assert [block.recompute for block in blocks] == [Recompute.NONE, Recompute.FULL, Recompute.NONE, Recompute.NONE]
    assert [block.sequence_parallel for block in blocks] == [False, True, True, True]
    assert embedding == head
    assert (_axes(head), head.sharding) == ([("dp", 2), ("tp", 2)], Sharding.FULL)


def test_stages_hold_the_blocks_of_the_division_and_the_edges_of_the_model():
    plan = _plan(SMALL)
    assert [(stage.first_device, stage.num_devices) for stage in plan.stages] == [(0, 4), (4, 4)]
    assert [[layer for layer, _ in stage.strategies()] for stage in plan.stages] == [[0, 1], [2, 3, 4, 5]]
    assert (plan.schedule.kind, plan.num_micro_batches, plan.samples_per_micro_batch) == (ScheduleKind.GPIPE, 2, 8)
    assert _plan(SMALL | {"pipeline_type": "pipedream_flush"}).schedule.kind is ScheduleKind.ONE_F_ONE_B


def test_the_key_of_the_search_and_that_of_the_runtime_mean_the_same():
    renamed = {("vocab_sdp" if key == "embed_sdp" else key): value for key, value in SMALL.items()}
    assert _plan(renamed) == _plan(SMALL) == _plan(renamed | {"embed_sdp": 1})


def test_files_of_version_2_1_leave_out_what_it_does_not_know():
    short = {key: value for key, value in SMALL.items() if key not in ("vtp", "vsp", "embed_sdp", "checkpoint")}
    strategies = _strategies(_plan(short))
    assert _axes(strategies[0]) == [("dp", 4)]
    assert {strategy.recompute for strategy in strategies} == {Recompute.NONE}


def test_without_a_cut_embedding_and_head_are_cut_until_their_ranks_have_equally_many_samples():
    # gpt-2.7b's 3-D example: 320 samples in 16 parts, on two stages of eight devices.
    blocks = {"tp_sizes_enc": listed((2, 32)), "dp_types_enc": listed((0, 32)), "pp_division": "16,16"}
    content = {"pp_deg": 2, **blocks, "global_bsz": 320, "chunks": 16, "default_dp_type": "zero2"}
    plan = _plan(content | {"pipeline_type": "pipedream_flush"}, RECIPE._replace(num_devices=16))
    assert _axes(_strategies(plan)[0]) == [("dp", 4), ("tp", 2)]


def test_a_vocabulary_under_sequence_parallelism_keeps_whole_weights_on_each_rank():
    embedding, *blocks, head = _strategies(_plan(LLAMA_PLAN))
    assert embedding == head
    assert (_axes(head), head.sharding) == ([("dp", 4), ("ulysses", 2)], Sharding.FULL)
    assert [block.recompute for block in blocks] == [Recompute.FULL] * 20 + [Recompute.NONE] * 12


def test_zero_2_that_reduces_gradients_once_is_zero_1():
    content = SMALL | {"default_dp_type": "zero2"}
    assert _strategies(_plan(content))[1].sharding is Sharding.OPTIMIZER
    assert _strategies(_plan(content, RECIPE._replace(reduces_once=False)))[1].sharding is Sharding.GRADIENTS
    assert _strategies(_plan(content | {"chunks": 1}))[1].sharding is Sharding.GRADIENTS


def test_context_parallelism_stands_between_data_and_tensor_parallelism():
    content = SMALL | {"tp_sizes_enc": "1,2,2,1", "cp_sizes_enc": "2,2,1,4"}
    assert [_axes(s) for s in _strategies(_plan(content))[1:3]] == [[("dp", 2), ("cp", 2)], [("cp", 2), ("tp", 2)]]


def test_ulysses_takes_the_degree_of_tensor_parallelism():
    blocks = _strategies(_plan(SMALL | {"use_sp": "1,0,1,0"}))[1:-1]
    plain = _strategies(_plan(SMALL))[1:-1]
    assert _axes(plain[2]) == [("tp", 2), ("dp", 2)]
    assert _axes(blocks[2]) == [("ulysses", 2), ("dp", 2)]
    assert [blocks[n] for n in (0, 1, 3)] == [plain[n] for n in (0, 1, 3)]


def test_plans_with_experts_are_refused():
    with pytest.raises(InputError, match=r"file\.ep_sizes_enc\[1\]"):
        _plan(SMALL | {"ep_sizes_enc": "1,4,1,1"})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pp_deg": 3}, "pp_division"),
        ({"pp_division": "2,3"}, "pp_division"),
        ({"checkpoint": "0,1"}, "checkpoint"),
        ({"checkpoint": "0,1,0,2"}, "checkpoint"),
        ({"tp_sizes_enc": "1,2,two,4"}, "tp_sizes_enc"),
        ({"tp_sizes_enc": "1,2,3,4"}, "tp_sizes_enc[2]"),
        ({"tp_sizes_enc": [1, 2, 2, 4.5]}, "tp_sizes_enc.3"),
        ({"tp_sizes_enc": None}, "tp_sizes_enc"),
        ({"global_bsz": 15}, "chunks"),
        ({"global_bsz": 12}, "tp_sizes_enc[0]"),
        ({"vtp": 8}, "vtp"),
        ({"world_size": 16}, "world_size"),
        ({"pipeline_type": "interleaved"}, "pipeline_type"),
        ({"default_dp_type": "zero1"}, "default_dp_type"),
        ({"vocab_sdp": 0}, "vocab_sdp"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_broken_rule_is_named_by_its_key(change, field):
    with pytest.raises(InputError) as caught:
        _plan(SMALL | change)
    assert f"file.{field}" in [problem.field for problem in caught.value.problems]


def test_a_number_of_stages_must_divide_the_devices():
    with pytest.raises(InputError, match=r"file\.pp_deg"):
        _plan(SMALL, RECIPE._replace(num_devices=9))

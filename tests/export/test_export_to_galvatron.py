"""Galvatron: its file, read back as Galvatron's are, is the plan."""

import json
from itertools import pairwise
from math import prod

import pytest
from export_samples import bash_words, exported, job_of, named, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from target_plans import a_model, axes

from planner.export.galvatron import old_arguments, runtime_settings
from planner.spec.export import ExportTarget
from planner.spec.plan import Plan, ScheduleKind
from planner.spec.strategy import Recompute, Sharding, Strategy
from planner.spec.training import Training
from profiles.galvatron import Recipe, plan_file, plan_of
from profiles.galvatron.plan_file import PlanFile

JSON, OLD, NEW = "galvatron-plan.json", "galvatron-2.4-arguments.sh", "galvatron-3.0-runtime.yaml"
RUNTIME = {
    "parallel": {"galvatron_config_path", "mixed_precision", "async_grad_reduce", "reduce_in_fp32"},
    "model": {"dropout_prob"},
    "train": {"global_batch_size", "chunks", "seq_length", "sequence_parallel"},
}
"""Source: PKU-DAIR/Hetu-Galvatron 3.0, core/runtime/args_schema.py."""
OPTIONS = {
    "--galvatron_config_path",
    "--mixed_precision",
    "--seq-length",
    "--dropout_prob",
    "--sequence-parallel",
    "--no_async_grad_reduce",
    "--reduce_in_fp32",
}
"""Source: PKU-DAIR/Hetu-Galvatron 2.4, core/runtime/arguments.py; `--seq-length` and `--sequence-parallel` are
Megatron's, which it takes over."""


@st.composite
def plans_by_layer(draw):
    """(model, training, plan): every block with a strategy of its own, embedding and head with one for both."""
    devices, stages = draw(st.sampled_from([(1, 1), (4, 1), (4, 2), (8, 2), (8, 1)]))
    blocks = draw(st.integers(stages, 6))
    model = a_model(blocks=blocks)
    default = draw(st.sampled_from([Sharding.NONE, Sharding.OPTIMIZER, Sharding.GRADIENTS]))
    micro_batches = draw(st.integers(2 if default is Sharding.OPTIMIZER else 1, 3))
    sequence_parallel = draw(st.booleans())

    def strategy(block):
        inner = draw(st.sampled_from([kinds for kinds in _INNER if devices % _size(kinds) == 0]))
        degrees = {"dp": devices // _size(inner), **inner}
        cut = axes(**{kind: degrees.get(kind, 1) for kind in ("dp", "cp", "ulysses", "tp")})
        shards = devices // degrees.get("tp", 1) > 1
        sharding = draw(st.sampled_from([default, Sharding.FULL])) if shards else Sharding.NONE
        recompute = draw(st.sampled_from([Recompute.NONE, Recompute.FULL])) if block else Recompute.NONE
        tensor = sequence_parallel and degrees.get("tp", 1) > 1
        return Strategy(axes=cut, sharding=sharding, sequence_parallel=tensor, recompute=recompute)

    edge = strategy(block=False)
    strategies = [edge, *(strategy(block=True) for _ in range(blocks)), edge]
    cut = draw(st.integers(2, blocks)) if stages == 2 else None
    starts = (0,) if cut is None else (0, cut)
    kind = draw(st.sampled_from([ScheduleKind.ONE_F_ONE_B, ScheduleKind.GPIPE]))
    plan = _plan(strategies, starts, devices, micro_batches, kind)
    return model, Training(global_batch_size=plan.global_batch_size, sequence_length=256), plan


_INNER = [{}, {"tp": 2}, {"tp": 4}, {"ulysses": 2}, {"cp": 2}, {"cp": 2, "tp": 2}, {"cp": 2, "ulysses": 2}, {"tp": 8}]


def _size(kinds):
    return prod(kinds.values())


def _plan(strategies, starts, devices, micro_batches, kind):
    stages = []
    for number, (first, end) in enumerate(pairwise((*starts, len(strategies)))):
        runs = []
        for layer in range(first, end):
            if runs and runs[-1]["strategy"] == strategies[layer]:
                runs[-1]["num_layers"] += 1
            else:
                runs.append({"first_layer": layer, "num_layers": 1, "strategy": strategies[layer]})
        stages.append({"first_device": number * devices, "num_devices": devices, "runs": runs})
    return Plan.model_validate(
        {
            "global_batch_size": 8 * micro_batches,
            "sequence_length": 256,
            "micro_batch_size": 8 // strategies[0].data_parallel_size,
            "num_micro_batches": micro_batches,
            "schedule": {"kind": kind},
            "stages": stages,
        }
    )


@given(plans_by_layer())
@settings(max_examples=150, deadline=None)
def test_what_is_written_reads_back_as_the_plan(given_parts):
    job = job_of(*given_parts)
    content = json.loads(text_of(exported(ExportTarget.GALVATRON, job), JSON))
    settings_of = runtime_settings(job)
    recipe = Recipe(
        num_devices=job.plan.num_devices,
        sequence_length=256,
        sequence_parallel=settings_of["train"]["sequence_parallel"],
        reduces_once=settings_of["parallel"]["async_grad_reduce"],
    )
    assert plan_of(plan_file(content, "plan"), recipe, "plan") == job.plan
    check_arithmetic(content, job.plan.num_devices)


def check_arithmetic(content, world_size):
    """What Galvatron's runtime asserts of a file."""
    lists = {key: [int(value) for value in text.split(",")] for key, text in content.items() if "," in str(text)}
    blocks = len(str(content["tp_sizes_enc"]).split(","))
    per_stage = world_size // content["pp_deg"]
    assert world_size == content["world_size"] and world_size % content["pp_deg"] == 0
    sizes = lists.get("tp_sizes_enc", [int(content["tp_sizes_enc"])] if blocks == 1 else [])
    cuts = lists.get("cp_sizes_enc", [int(content["cp_sizes_enc"])] if blocks == 1 else [])
    assert all(per_stage % size == 0 for size in sizes)
    widest = per_stage // min(sizes) // min(cuts)
    assert content["global_bsz"] % widest == 0
    assert sum(int(each) for each in content["pp_division"].split(",")) == blocks


def test_both_keys_of_embedding_and_head_are_written():
    job = named("llama-2-7b", "dp8-mbs1-zero3")
    content = json.loads(text_of(exported(ExportTarget.GALVATRON, job), JSON))
    assert (content["embed_sdp"], content["vocab_sdp"]) == (1, 1)
    assert set(content) == set(PlanFile.model_fields) - {"ep_sizes_enc", "tp_of_ep_sizes_enc"} | {"vocab_sdp"}
    assert set(content.values()) >= {",".join(["1"] * 32)}


@pytest.mark.parametrize("shorthand", ["dp8-mbs1-zero2", "tp2-dp4-mbs1-sp-zero1", "pp2-tp2-dp2-mbs2-recompute:full"])
def test_what_stands_beside_the_file_has_names_of_galvatron_s_own(shorthand):
    job = named("llama-2-7b", shorthand)
    assert {each.option for each in old_arguments(job)} <= OPTIONS
    assert {section: set(keys) for section, keys in runtime_settings(job).items()} == RUNTIME
    export = exported(ExportTarget.GALVATRON, job)
    words = [word for each in old_arguments(job) for word in each.words()]
    assert bash_words(text_of(export, OLD), "GALVATRON_ARGS") == words
    assert ("--no_async_grad_reduce" in words) == ("zero2" in shorthand)
    for name in (OLD, NEW):
        assert f"# Plan {export.plan_id}: " in text_of(export, name)


def test_gradients_are_reduced_as_the_recipe_says():
    for gradients, wanted in (("fp32", True), ("bf16", False)):
        training = Training(global_batch_size=64, sequence_length=4096, gradient_precision=gradients)
        job = named("llama-2-7b", "dp8-mbs1-zero3", 8, training)
        assert runtime_settings(job)["parallel"]["reduce_in_fp32"] is wanted

"""Galvatron's profiles: how near prices come to what was measured, what is chosen, and what bad files are told."""

import pytest
from galvatron_samples import (
    BANDWIDTH,
    GPT,
    GPT_NAME,
    GPT_RESULT,
    GPT_RESULT_NAME,
    GPT_SIZES,
    HARDWARE,
    LLAMA,
    LLAMA_PLAN,
    LLAMA_PLAN_NAME,
    TIMES,
    TWO_NODES,
    write,
)

from planner.cost import estimate
from planner.spec.cluster import Provenance
from planner.spec.errors import InputError
from planner.spec.model import Block, Head
from planner.spec.training import Training
from profiles import model_preset, resolve_cluster
from profiles.devices import device_preset
from profiles.galvatron import Wishes, import_files, read_search_results
from profiles.galvatron.folder import read_files
from profiles.galvatron.network import levels_of


def _errors(imported, kind):
    return {each.case: abs(each.error_ratio) for each in imported.comparisons if each.kind == kind}


@pytest.fixture
def gpt(tmp_path):
    return write(tmp_path / "gpt", HARDWARE, GPT, GPT_SIZES)


@pytest.fixture
def llama(tmp_path):
    return write(tmp_path / "llama", HARDWARE, LLAMA, TIMES)


def test_a_block_takes_the_seconds_that_were_measured(gpt):
    imported = import_files([gpt], Wishes())
    assert _errors(imported, "seconds of a block, forward") == {"4 x 1024 tokens": pytest.approx(0, abs=0.001)}
    assert _errors(imported, "seconds of embedding and head, forward")["4 x 1024 tokens"] < 0.001
    [measured] = [each for each in imported.comparisons if each.kind == "seconds of a block, forward"]
    assert measured.measured == pytest.approx(4 * 0.5981169303258261e-3)


def test_several_batch_sizes_share_one_efficiency(llama):
    errors = _errors(import_files([llama], Wishes()), "seconds of a block, forward")
    assert set(errors) == {"1 x 2048 tokens", "8 x 2048 tokens"}
    assert max(errors.values()) < 0.04


@pytest.mark.parametrize(("name", "bound"), [("gpt", 0.03), ("llama", 0.05)])
def test_activations_are_near_what_was_measured_at_every_tensor_parallel_degree(name, bound, request):
    errors = _errors(import_files([request.getfixturevalue(name)], Wishes()), "bytes of a block's activations")
    assert len(errors) == 4
    assert max(errors.values()) < bound


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_weights_gradients_and_optimizer_state_are_as_measured(name, request):
    imported = import_files([request.getfixturevalue(name)], Wishes())
    [error] = _errors(imported, "bytes of a block's weights, gradients and optimizer state").values()
    assert error < 0.02
    assert imported.cluster.stack.casts_shards


def test_links_have_the_bandwidth_that_all_reduces_reached(gpt):
    [node] = import_files([gpt], Wishes()).cluster.levels
    assert min(BANDWIDTH.values()) * 1e9 < node.link.bytes_per_s < max(BANDWIDTH.values()) * 1e9
    assert 109.45e9 < node.link.pair_bytes_per_s < 163.671e9
    assert node.link.latency_s == device_preset("a100-sxm-80g").intra_node.latency_s


def test_small_all_reduces_say_the_latency(llama):
    [node] = import_files([llama], Wishes()).cluster.levels
    errors = _errors(import_files([llama], Wishes()), "seconds of an all-reduce in a node")
    assert 5e-6 < node.link.latency_s < 5e-5
    assert len(errors) == 4


def test_between_nodes_a_device_has_its_share_of_what_all_of_a_node_reach(tmp_path):
    two = {"allreduce_bandwidth_2nodes_8gpus_per_node": TWO_NODES}
    pairs = {"p2p_bandwidth_2nodes_8gpus_per_node": {"pp_size_2": 7.96595, "pp_size_16": 8.81364}}
    files = read_files([write(tmp_path, two, pairs)])
    (node, cluster), compared, said = levels_of(files, (2, 8), device_preset("a100-sxm-80g"))
    assert (node.num_devices, cluster.num_devices) == (8, 16)
    assert node.link.bytes_per_s == pytest.approx(152e9, rel=0.01)
    # Eight devices of a node drive 45.7 GB/s together, one alone 9.3.
    assert 45.6885e9 / 8 < cluster.link.bytes_per_s < 9.28218e9
    assert 7.9e9 < cluster.link.pair_bytes_per_s < 8.9e9
    assert "latency between nodes: that of a100-sxm-80g, for Galvatron measures none" in said
    assert len(compared) == 7


def test_the_machine_says_that_it_was_measured_and_where_the_rest_is_from(llama):
    imported = import_files([llama], Wishes(device="a100-sxm-40g", reserve_bytes=0))
    device = imported.cluster.device
    assert (device.provenance, device.reserve_bytes) == (Provenance.MEASURED, 0)
    assert device.name == "a100-sxm-40g-by-galvatron"
    assert device.memory_bytes == device_preset("a100-sxm-40g").device.memory_bytes
    assert device.efficiency.overlap_slowdown_ratio == 1.145979403115153
    assert device.sources[-1] == "all else: preset a100-sxm-40g"
    assert resolve_cluster(imported.cluster).provenance is Provenance.MEASURED


def test_sizes_come_from_a_file_beside_the_profile_or_from_its_name_or_from_the_user(gpt, llama):
    model = import_files([gpt], Wishes()).model
    assert (model.name, model.hidden_size, len(model.layers)) == ("gpt-1.5b", 1600, 50)
    assert import_files([llama], Wishes()).model == model_preset("llama-2-7b")
    (gpt / "gpt-1.5b.json").unlink()
    assert import_files([gpt], Wishes(model=model)).model == model
    with pytest.raises(InputError, match="--model: is required: hidden1600"):
        import_files([gpt], Wishes())


def test_memory_tells_whether_embedding_and_head_share_a_matrix(gpt):
    assert _head(import_files([gpt], Wishes())).tied is False
    shared = GPT[f"memory_profiling_bf16_{GPT_NAME}"] | {
        "other_memory_pp_off": {"model_states": 1310.0, "activation": 374.7}
    }
    write(gpt, {f"memory_profiling_bf16_{GPT_NAME}": shared})
    assert _head(import_files([gpt], Wishes())).tied is True


def _head(imported):
    head = imported.model.layers[-1]
    assert isinstance(head, Head)
    return head


def test_a_model_of_other_sizes_than_the_profile_is_refused(llama):
    with pytest.raises(InputError, match="two models"):
        import_files([llama], Wishes(model=model_preset("llama-2-13b")))


def test_a_plan_is_priced_under_what_was_imported(llama):
    imported = import_files([write(llama, {LLAMA_PLAN_NAME: LLAMA_PLAN})], Wishes())
    plan = imported.plans[LLAMA_PLAN_NAME]
    training = Training(global_batch_size=16, sequence_length=2048, gradient_precision="bf16")
    priced = estimate(imported.model, resolve_cluster(imported.cluster), training, plan)
    # Of 36 GB a fifth was held back; 14.7 samples/s is what the search that found it predicts.
    assert 11 < 16 / priced.step_time_s < 19
    assert 20 < priced.stages[0].peak_memory_bytes / 2**30 < 36


def test_records_of_searches_become_plans_with_their_cost(gpt):
    write(gpt / "results", {GPT_RESULT_NAME: GPT_RESULT})
    [result] = read_search_results(gpt / "results")
    assert (result.num_devices, result.search_cpu_s, result.predicted_samples_per_s) == (8, 1.825, 88.71425288385298)
    assert (result.memory_limit_bytes, result.held_back_bytes) == (24 * 2**30, 24 * 2**30 // 5)
    imported = import_files([gpt], Wishes())
    assert imported.results == (result,)
    runs = imported.plans[GPT_RESULT_NAME].stages[0].runs
    assert [run.num_layers for run in runs] == [1, 19, 29, 1]
    assert [axis.kind.value for axis in runs[1].strategy.axes] == ["tp", "dp"]


def test_what_belongs_elsewhere_is_left_out_and_said(gpt):
    other = {"galvatron_config_gpt-0.3b_1nodes_8gpus_per_node_8GB_bf16": LLAMA_PLAN}
    sixteen = {"galvatron_config_gpt-1.5b_2nodes_8gpus_per_node_40GB_bf16": LLAMA_PLAN}
    unnamed = GPT_RESULT | {"args": {"mem": "8"}, "plan": LLAMA_PLAN | {"world_size": 8}}
    write(gpt, other, sixteen, {"unnamed": unnamed, "notes": {}})
    imported = import_files([gpt], Wishes())
    assert not imported.plans
    assert [choice for choice in imported.choices if choice.startswith("left out")] == [
        "left out: galvatron_config_gpt-0.3b_1nodes_8gpus_per_node_8GB_bf16 is for gpt-0.3b",
        "left out: galvatron_config_gpt-1.5b_2nodes_8gpus_per_node_40GB_bf16 is for 32 blocks, gpt-1.5b has 48",
        "left out: unnamed is for 32 blocks, gpt-1.5b has 48",
        "left out: notes.json is no file of Galvatron's that is read",
    ]


def test_a_record_that_does_not_name_its_model_counts_only_for_profiles_of_its_version(gpt):
    blocks = {key: f"{value},{','.join([value[-1]] * 16)}" for key, value in LLAMA_PLAN.items() if key in _LISTS}
    record = GPT_RESULT | {"args": {"mem": "8"}, "plan": LLAMA_PLAN | blocks | {"world_size": 8, "pp_division": "48"}}
    imported = import_files([write(gpt, {"unnamed": record})], Wishes())
    assert f"left out: unnamed is of another version of Galvatron than the profile {GPT_NAME}" in imported.choices


_LISTS = ("tp_sizes_enc", "tp_consecutive_flags", "dp_types_enc", "use_sp", "checkpoint")


def test_of_several_profiles_the_user_says_which(gpt, llama):
    with pytest.raises(InputError, match=f"must say which: bf16_{GPT_NAME}, bf16_llama2-7b"):
        import_files([gpt, llama], Wishes())
    assert import_files([gpt, llama], Wishes(profile="bf16_llama2-7b")).model.name == "llama-2-7b"
    with pytest.raises(InputError, match="--profile: must be one of"):
        import_files([gpt, llama], Wishes(profile="llama3"))


def test_a_profile_without_seconds_of_a_block_is_passed_over(llama):
    half = {"computation_profiling_bf16_llama2-7b_seqlen2048_all": {"layernum[2]_bsz1_seq2048": 24.49601128522087}}
    imported = import_files([write(llama, half)], Wishes())
    assert "left out: profile llama2-7b_seqlen2048 has no seconds of a block" in imported.choices


def test_the_cluster_is_the_one_that_most_plans_are_for(llama):
    write(llama, {"allreduce_bandwidth_2nodes_8gpus_per_node": TWO_NODES})
    assert import_files([llama], Wishes()).cluster.nodes == 1
    write(llama, {LLAMA_PLAN_NAME.replace("1nodes", "2nodes"): LLAMA_PLAN})
    imported = import_files([llama], Wishes())
    assert (imported.cluster.nodes, len(imported.plans)) == (2, 1)
    assert "cluster: 2x8, of 1x8, 2x8 (--cluster chooses)" in imported.choices
    assert import_files([llama], Wishes(size=(1, 8))).plans == {}


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("overlap_coefficient", {"overlap_coe": 0}, "overlap_coefficient.json.overlap_coe"),
        ("overlap_coefficient", {}, "overlap_coefficient.json.overlap_coe"),
        (
            "allreduce_bandwidth_1nodes_8gpus_per_node",
            {"allreduce_size_3_consec_1": 1.0},
            "allreduce_bandwidth_1nodes_8gpus_per_node.json.allreduce_size_3_consec_1",
        ),
        (
            "allreduce_bandwidth_1nodes_8gpus_per_node",
            {"speed": 1.0},
            "allreduce_bandwidth_1nodes_8gpus_per_node.json.speed",
        ),
        (
            "p2p_bandwidth_1nodes_8gpus_per_node",
            {"pp_size_2": "x"},
            "p2p_bandwidth_1nodes_8gpus_per_node.json.pp_size_2",
        ),
        (
            f"computation_profiling_bf16_{GPT_NAME}",
            {"layernum[12]_bsz4": 41.0, "layernum[24]_bsz4": 40.0},
            f"computation_profiling_bf16_{GPT_NAME}.json.layernum[24]_bsz4",
        ),
        (
            f"computation_profiling_bf16_{GPT_NAME}",
            {"layertype_1": 41.0},
            f"computation_profiling_bf16_{GPT_NAME}.json.layertype_1",
        ),
        (
            f"memory_profiling_bf16_{GPT_NAME}",
            {"layertype_0": {"parameter_size": 1.0}},
            f"memory_profiling_bf16_{GPT_NAME}.json.other_memory_pp_off",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_key(file, content, field, gpt):
    with pytest.raises(InputError) as caught:
        import_files([write(gpt, {file: content})], Wishes())
    assert [problem.field for problem in caught.value.problems] == [field]


def test_links_that_nobody_measured_are_asked_for(tmp_path):
    with pytest.raises(InputError, match="links are unknown"):
        import_files([write(tmp_path, LLAMA)], Wishes())
    with pytest.raises(InputError, match="--cluster: must be one of what was measured: 1x8"):
        import_files([write(tmp_path, HARDWARE)], Wishes(size=(4, 8)))


def test_one_file_twice_is_fine_and_two_that_differ_are_not(gpt, tmp_path):
    write(gpt, {GPT_RESULT_NAME: GPT_RESULT})
    again = write(tmp_path / "again", HARDWARE, GPT_SIZES, {GPT_RESULT_NAME: GPT_RESULT})
    assert len(import_files([gpt, again], Wishes()).results) == 1
    with pytest.raises(InputError, match="two files overlap_coefficient"):
        import_files([gpt, write(tmp_path / "other", {"overlap_coefficient": {"overlap_coe": 1.3}})], Wishes())
    with pytest.raises(InputError, match=f"two files {GPT_RESULT_NAME}"):
        import_files([gpt, write(tmp_path / "third", {GPT_RESULT_NAME: GPT_RESULT | {"cpu_s": 2.0}})], Wishes())


def test_without_a_memory_profile_only_seconds_are_measured(gpt):
    (gpt / f"memory_profiling_bf16_{GPT_NAME}.json").unlink()
    imported = import_files([gpt], Wishes())
    assert imported.cluster.stack.fragmentation_ratio == 0
    assert "memory of the stack: as fused kernels need it, for there is no memory profile" in imported.choices
    assert sum(isinstance(layer, Block) for layer in imported.model.layers) == 48

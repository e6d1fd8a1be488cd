import pytest
from run_rows import EXPERTS, case, reason, record

from planner.cost import estimate
from planner.spec.cluster import Precision
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, LatentAttention, Norm
from planner.spec.strategy import AxisKind, Recompute, Sharding
from planner.spec.training import AttentionKernel, Optimizer
from profiles import device_preset
from profiles.runs.stack import stack_of

NO_PIPELINE = {"pp": 1, "dp": 8}


def blocks(found):
    return [layer for layer in found.model.layers if isinstance(layer, Block)]


def test_a_plain_row_becomes_a_question_that_has_a_price():
    found = case()
    assert found.plan.summary == "pp2 · tp2 dp4 sp zero1 · mbs2 x8"
    assert (found.stack, found.cluster.device.name) == ("megatron-core-2025", "a100-sxm-80g")
    assert estimate(found.model, found.cluster, found.training, found.plan).step_time_s > 0


# Stacks


@pytest.mark.parametrize(
    ("source", "changes", "stack"),
    [
        ("LiBai v0.2 benchmarks (Megatron-LM) - Data Parallel", {}, "megatron-2021"),
        ("LiBai v0.2 benchmarks (LiBai) - Data Parallel", {}, "oneflow"),
        ("Narayanan et al. SC21 (arXiv 2104.04473) Table 1", {}, "megatron-2021"),
        ("Megatron-LM README 2020 (images/tables.tex)", {}, "megatron-2021"),
        ("Megatron-LM README 2025", {"hardware": {"gpu": "H100-SXM5-80GB"}}, "megatron-core-2025"),
        ("MosaicML llm-foundry training benchmarks: H100", {}, "pytorch-fsdp"),
        ("vTrain measured data (multi-node), Megatron-DeepSpeed", {}, "megatron-deepspeed"),
        ("NVIDIA dgxc-benchmarking (LLMB) recipe README v25.04", {}, "megatron-core-2024"),
        ("NVIDIA dgxc-benchmarking (LLMB) recipe README v25.05.04", {}, "megatron-core-2025"),
        ("NVIDIA Megatron-Bridge", {"notes": "NeMo container 26.08; Pre-Training"}, "megatron-core-2026"),
        ("MoE Parallel Folding (arXiv 2504.14960) Table 3", {}, "megatron-core-2024"),
        ("Alpa OSDI22 artifact", {}, "alpa"),
        ("Alpa OSDI22 artifact", {"notes": "Megatron-LM best config"}, "megatron-2021"),
        ("SmartMoE ATC23 artifact logs", {"notes": "system alpa-plan"}, "megatron-2021"),
        ("Unheard of", {}, "megatron-core-2025"),
        ("Unheard of", {"precision": "fp16"}, "megatron-2021"),
        ("Unheard of", {"parallel": {"zero": 3}}, "pytorch-fsdp"),
        ("Unheard of", {"parallel": {"fsdp": "FULL_SHARD/PURE"}}, "pytorch-fsdp"),
    ],
)
def test_the_stack_follows_from_the_source_or_else_from_how_it_trained(source, changes, stack):
    assert stack_of(record(source=source, **changes)) == stack


# Models


def test_llama_has_rms_norms_gates_and_groups_of_heads():
    block = blocks(case())[0]
    assert block.norm is Norm.RMS
    assert block.feed_forward == DenseFeedForward(width=5632)
    assert block.attention == GroupedQueryAttention(num_heads=16, num_kv_heads=4, head_dim=128)


@pytest.mark.parametrize(("family", "causal"), [("gpt-dense", True), ("bert-dense", False)])
def test_gpt_and_bert_have_biases_positions_and_a_tied_head(family, causal):
    found = case(model={"family": family})
    block = blocks(found)[0]
    assert (block.norm, block.attention.causal, block.feed_forward.gated) == (Norm.LAYER, causal, False)
    assert found.model.layers[0].num_positions == 4096
    assert found.model.layers[-1].tied


def test_the_part_of_the_family_in_parentheses_counts_for_bloom():
    assert case(model={"family": "gpt-dense(bloom-like)"}).model.layers[0].num_positions == 0


def test_every_other_block_of_gpt_oss_slides():
    found = blocks(case(model={**EXPERTS, "family": "gpt-oss-moe"}, parallel={"ep": 8}))
    assert [block.attention.window for block in found[:4]] == [128, None, 128, None]
    noted = blocks(case(model={"note": "sliding-window(256)"}))
    assert {block.attention.window for block in noted} == {256}


@pytest.mark.parametrize(
    ("frequency", "sparse"),
    [
        ("all", "1111"),
        (None, "1111"),
        ("all (fmoefy)", "1111"),
        ("every layer", "1111"),
        ("every 2nd layer", "0101"),
        ("every other layer", "0101"),
        (2, "0101"),
        ("1 dense then 3 MoE", "0111"),
        ([0, 0, 1, 1], "0011"),
    ],
)
def test_the_frequency_of_experts_says_which_blocks_have_them(frequency, sparse):
    found = case(model={**EXPERTS, "layers": 4, "moe_layer_freq": frequency}, parallel={"ep": 2})
    assert "".join(str(int(block.moe is not None)) for block in blocks(found)) == sparse


def test_experts_have_their_own_width_and_shared_ones_beside_them():
    changes = {**EXPERTS, "moe_ffn_hidden": 1024, "shared_experts": 2}
    moe = blocks(case(model=changes, parallel={"ep": 2}))[0].moe
    assert (moe.num_experts, moe.expert_width, moe.shared_width) == (8, 1024, 2048)
    moe = blocks(case(model={**changes, "shared_expert_hidden": 768}, parallel={"ep": 2}))[0].moe
    assert moe.shared_width == 768


def test_one_expert_is_none():
    assert not case(model={"experts": 1, "top_k": 1}).model.moe_layers


def test_latent_attention_is_taken_from_its_sizes_and_mtp_is_a_block_more():
    mla = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope": 128, "qk_rope": 64, "v": 128}
    found = case(model={"family": "deepseek-moe-mla", "mla": mla, "mtp_layers": 1, **{"layers": 15}})
    assert len(blocks(found)) == 16
    assert isinstance(blocks(found)[0].attention, LatentAttention)


def test_sizes_that_lack_come_from_a_preset_of_the_name():
    found = case(model={"name": "Llama-2 7B", "layers": None, "hidden": None})
    assert (found.model.name, found.model.hidden_size) == ("llama-2-7b", 4096)


def test_an_unknown_family_is_read_as_what_its_size_says():
    gated = case(model={"family": "unheard", "params_b": 0.85})
    plain = case(model={"family": "unheard", "params_b": 0.67})
    assert [blocks(found)[0].feed_forward.gated for found in (gated, plain)] == [True, False]
    assert "model.family: 'unheard' is not known" in reason(model={"family": "unheard"})


@pytest.mark.parametrize("family", ["nemotron-h-moe(hybrid mamba)", "t5-dense", "vit-dense", "rwkv"])
def test_families_that_are_not_modelled_are_named(family):
    assert "not modelled" in reason(model={"family": family})


# Clusters


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("A100-SXM4-40GB", "a100-sxm-40g"),
        ("NVIDIA A100 80GB", "a100-sxm-80g"),
        ("A100-PCIe-80GB", "a100-pcie-80g"),
        ("V100", "v100-sxm2-32g"),
        ("V100-SXM2-16GB", "v100-sxm2-16g"),
        ("V100-SXM3-32GB", "v100-sxm3-32g"),
        ("V100-SXM2-32GB (not stated; verify)", "v100-sxm2-32g"),
        ("H100-96GB-HBM2e-500W (Grand Teton)", "h100-sxm-96g-hbm2e"),
        ("H100", "h100-sxm-80g"),
        ("H800", "h800-sxm-80g"),
        ("B200", "b200-180g"),
        ("GB200 NVL72", "gb200-186g"),
        ("MI355X-288GB", "mi355x-288g"),
    ],
)
def test_a_device_is_found_by_chip_memory_and_form(gpu, name):
    assert case(hardware={"gpu": gpu}, precision="fp16").cluster.device.name == name


@pytest.mark.parametrize("gpu", ["TPUv4", "A100-SXM4-120GB", "V100-PCIe-32GB", "something"])
def test_an_unknown_device_is_named(gpu):
    assert reason(hardware={"gpu": gpu}) == f"hardware.gpu: no device preset for {gpu!r}"


@pytest.mark.parametrize(
    ("inter", "bytes_per_s"),
    [
        (None, 25e9),
        ("8x200Gb/s HDR IB per node (Selene, DGX A100)", 25e9),
        ("4x200Gb/s HDR IB per node (800 Gb/s per node)", 12.5e9),
        ("1600 Gbps/node RoCE", 25e9),
        ("InfiniBand 400 Gb/s per GPU", 50e9),
        ("25 Gb/s per node (AWS p3.16xlarge)", 25e9 / 64),
        ("0.8 Tb/s per node", 12.5e9),
        ("a network", 25e9),
    ],
)
def test_the_network_has_the_rate_that_the_row_states(inter, bytes_per_s):
    link = case(hardware={"inter": inter}).cluster.levels[-1].link
    assert link.bandwidth_bytes_per_s == pytest.approx(bytes_per_s)
    assert link.efficiency_ratio == device_preset("a100-sxm-80g").inter_node.efficiency_ratio


def test_a_number_of_nvlinks_is_a_rate_too():
    link = case(hardware={"intra": "NVLink3 600 GB/s bidir (4 NVLink inter-gpu connects)"}).cluster.levels[0].link
    assert link.bandwidth_bytes_per_s == 100e9


def test_the_rate_inside_a_node_is_half_of_both_directions():
    link = case(hardware={"intra": "NVLink 400 GB/s bidir"}).cluster.levels[0].link
    assert link.bandwidth_bytes_per_s == 200e9


@pytest.mark.parametrize(("gpus", "tiers"), [(4, [4]), (64, [4, 64]), (72, [4, 72]), (256, [4, 64, 256])])
def test_a_rack_is_a_tier_between_node_and_network(gpus, tiers):
    found = case(
        hardware={"gpu": "GB200", "gpus": gpus, "gpus_per_node": 4},
        parallel={"dp": gpus // 4},
        batch={"global": 2 * gpus // 4},
    )
    assert [level.num_devices for level in found.cluster.levels] == tiers


def test_fewer_devices_than_a_node_has_stand_in_one_node():
    found = case(hardware={"gpus": 4}, parallel={"dp": 1}).cluster
    assert (found.nodes, found.devices_per_node) == (1, 4)
    assert "do not fill nodes of 8" in reason(hardware={"gpus": 12}, parallel={"dp": 3}, batch={"global": 6})


# Plans


def layers_of_pieces(found):
    stages = [stage.pieces for stage in found.plan.stages]
    return [sum(run.num_layers for run in stages[s][p]) for p in range(len(stages[0])) for s in range(len(stages))]


def test_blocks_that_do_not_divide_leave_least_to_the_ends():
    found = case(model={"layers": 14}, parallel={"pp": 4, "dp": 2})
    assert layers_of_pieces(found) == [3 + 1, 4, 4, 3 + 1]


def test_interleaving_takes_embedding_and_head_for_a_layer_where_blocks_do_not_divide():
    found = case(model={"layers": 14}, parallel={"pp": 4, "dp": 2, "vpp": 2})
    assert layers_of_pieces(found) == [1 + 1, 2, 2, 2, 2, 2, 2, 1 + 1]
    found = case(model={"layers": 6}, parallel={"pp": 4, "dp": 2, "vpp": 2})
    assert layers_of_pieces(found) == [1] * 8


def test_more_pieces_than_layers_are_skipped():
    assert "cannot fill 4 x 4 pieces" in reason(model={"layers": 6}, parallel={"pp": 4, "dp": 2, "vpp": 4})


@pytest.mark.parametrize(
    ("changes", "micro"),
    [({"batch": {"micro": None}, "grad_accum": 8}, 2), ({"batch": {"micro": None, "global": 4}}, 1)],
)
def test_a_micro_batch_that_is_forced_is_taken(changes, micro):
    assert case(**changes).plan.micro_batch_size == micro


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"batch": {"micro": None}}, "batch.micro: not known"),
        ({"batch": {"global": 60}}, "batch.global: 60 samples are no multiple of micro 2 x dp 4"),
        ({"batch": {"global": None}}, "batch.global: not known"),
        ({"parallel": {"dp": None}}, "parallel.dp: not known"),
        ({"parallel": {"offload": "optimizer"}}, "parallel.offload: offloading is not modelled"),
        ({"notes": "4 nodes; v-half"}, "notes: the v-half schedule is not modelled"),
        ({"kind": "LoRA"}, "kind: LoRA (frozen weights with small adapters) is not modelled"),
        ({"optimizer": "muon"}, "optimizer: 'muon' is not modelled"),
        ({"precision": "int4"}, "precision: 'int4' is not a number format that is known"),
        ({"precision": "fp8"}, "training.precision: a100-sxm-80g has no fp8; it has fp32, fp16, bf16"),
        ({"model": {**EXPERTS}, "parallel": {"ep": 3}}, "parallel.ep: ep 3 x etp 1 must divide the 8 devices"),
        ({"model": {"family": "unheard", "params_b": 0.8, "kv_heads": 5}}, "model: "),
        ({"parallel": {"recompute": "blockwise-banana"}}, "parallel.recompute: 'blockwise-banana' is not known"),
        ({"parallel": {"fsdp": "banana"}}, "parallel.fsdp: 'banana' is not known"),
        ({"parallel": {"fsdp": "FULL_SHARD/banana"}}, "parallel.fsdp: 'FULL_SHARD/banana' is not known"),
        ({"parallel": {"fsdp": "HYBRID_SHARD"}}, "parallel.fsdp: 'HYBRID_SHARD' is not known"),
        ({"model": {**EXPERTS, "moe_layer_freq": "banana"}}, "model.moe_layer_freq: 'banana' is not known"),
        ({"model": {**EXPERTS, "moe_layer_freq": "all but 3"}}, "model.moe_layer_freq: 'all but 3' is not known"),
        ({"model": {**EXPERTS, "moe_layer_freq": "9" * 5000}}, "is not known"),
        ({"model": {**EXPERTS, "moe_layer_freq": "0"}}, "model.moe_layer_freq: '0' is not known"),
        ({"model": {**EXPERTS, "moe_layer_freq": [0, 1]}}, "model.moe_layer_freq: has 2 entries for 16 layers"),
        ({"model": {"heads": 15, "kv_heads": 15}}, "tp 2 must divide the 15 attention heads"),
    ],
)
def test_a_row_is_skipped_for_a_fact_or_a_feature_that_is_named(changes, why):
    assert why in reason(**changes)


@pytest.mark.parametrize(
    ("changes", "sharding"),
    [
        ({"parallel": {"zero": 2}}, Sharding.GRADIENTS),
        ({"parallel": {"zero": None}}, Sharding.OPTIMIZER),
        ({"parallel": {"zero": None}, "precision": "fp16"}, Sharding.NONE),
        ({"parallel": {"zero": None, "fsdp": "SHARD_GRAD_OP/DEFAULT"}}, Sharding.GRADIENTS),
        ({"parallel": {"zero": None, "fsdp": "FULL_SHARD/PURE"}}, Sharding.FULL),
        ({"parallel": {"zero": None, "fsdp": "on"}}, Sharding.FULL),
        ({"parallel": {"zero": None, "fsdp": True}}, Sharding.FULL),
        ({"parallel": {"zero": None, "fsdp": "off"}}, Sharding.OPTIMIZER),
        ({"parallel": {"zero": None, "fsdp": 1}, "source": "torchtitan"}, Sharding.NONE),
        ({"parallel": {"zero": None}, "source": "torchtitan"}, Sharding.FULL),
        ({"hardware": {"gpus": 4}, "parallel": {"dp": 1}}, Sharding.NONE),
    ],
)
def test_sharding_is_what_the_row_says_or_the_stack_does(changes, sharding):
    assert case(**changes).plan.main_strategy.sharding is sharding


def test_fsdp_within_fewer_ranks_replicates_over_the_rest():
    axes = case(parallel={**NO_PIPELINE, "zero": 3, "fsdp": 4}).plan.main_strategy.axes
    assert axes == ((AxisKind.DP, 2), (AxisKind.SDP, 4), (AxisKind.TP, 2))


def test_sequence_parallelism_that_is_not_told_follows_the_stack():
    assert case(parallel={"sp": None}).plan.main_strategy.sequence_parallel
    assert not case(parallel={"sp": None}, precision="fp16").plan.main_strategy.sequence_parallel
    assert not case(parallel={"sp": False}).plan.main_strategy.sequence_parallel
    moe = case(parallel={"sp": False, "ep": 2}, model=EXPERTS)
    assert moe.plan.main_strategy.sequence_parallel


def test_experts_fold_over_the_devices_of_a_stage():
    experts = case(parallel={"ep": 4}, model=EXPERTS).plan.main_strategy.experts
    assert (experts.expert_parallel_size, experts.expert_tensor_parallel_size) == (4, 1)
    assert experts.expert_data_parallel_size == 2
    old = case(parallel={"ep": 4}, model=EXPERTS, precision="fp16").plan.main_strategy.experts
    assert old.expert_tensor_parallel_size == 2


@pytest.mark.parametrize(
    ("stated", "recompute"),
    [
        ("full", Recompute.FULL),
        ("full (uniform, 1)", Recompute.FULL),
        ("selective", Recompute.SELECTIVE),
        ("core_attn", Recompute.SELECTIVE),
        ("none", Recompute.NONE),
    ],
)
def test_stated_recomputation_is_taken(stated, recompute):
    found = case(parallel={"recompute": stated})
    assert found.recompute_known
    assert found.plan.main_strategy.recompute is recompute


@pytest.mark.parametrize(("source", "considered"), [("NeMo", {0, 1}), ("vTrain", {0, 1, 2})])
def test_unknown_recomputation_is_the_lightest_that_had_room(source, considered):
    """Of whole layers only outside Megatron-Core, whose recipes say so where they recompute whole layers."""
    order = list(Recompute)
    unknown = {"recompute": None, **NO_PIPELINE}
    found = [case(model={"layers": n}, parallel=unknown, batch={"micro": 8}, source=source) for n in range(16, 160, 4)]
    chosen = [order.index(each.plan.main_strategy.recompute) for each in found]
    assert not any(each.recompute_known for each in found)
    assert chosen == sorted(chosen)
    assert set(chosen) == considered


# Recipes


@pytest.mark.parametrize(
    ("precision", "gpu", "expected"),
    [
        ("amp_bf16", "A100-SXM4-80GB", Precision.BF16),
        ("FP8-CS", "H100", Precision.FP8),
        ("FP8-CS", "GB200", Precision.FP8),
        ("FP8-MX", "GB200", Precision.MXFP8),
        ("mxfp8", "B300", Precision.MXFP8),
        ("FP8 (MX on Blackwell / DSv3-style block on Hopper)", "B200", Precision.MXFP8),
        ("FP8 (MX on Blackwell / DSv3-style block on Hopper)", "H100", Precision.FP8),
        ("NVFP4", "GB300", Precision.NVFP4),
        ("fp32", "V100", Precision.FP32),
    ],
)
def test_number_formats_are_read_as_sources_write_them(precision, gpu, expected):
    assert case(precision=precision, hardware={"gpu": gpu}).training.precision is expected


def test_old_stacks_have_no_flash_attention_drop_out_and_sum_gradients_in_16_bits():
    old = case(model={"family": "gpt-dense"}, precision="fp16", source="SC21").training
    assert (old.attention_kernel, old.dropout) == (AttentionKernel.UNFUSED, True)
    assert old.gradient_precision is Precision.FP16
    new = case(model={"family": "gpt-dense"}).training
    assert (new.attention_kernel, new.dropout) == (AttentionKernel.FLASH, False)
    assert new.gradient_precision is Precision.FP32
    bloom = case(model={"family": "gpt-dense(bloom-like)"}, precision="fp16", source="BLOOM").training
    assert not bloom.dropout


def test_pure_fsdp_sums_in_the_number_format_of_the_products():
    assert case(parallel={"fsdp": "FULL_SHARD/PURE", "zero": 3}).training.gradient_precision is Precision.BF16


def test_a_capacity_factor_in_the_notes_counts_for_experts():
    notes = "token-dropping with capacity factor 1.25 (load balanced)"
    assert case(model=EXPERTS, parallel={"ep": 2}, notes=notes).training.capacity_factor == 1.25
    assert case(notes=notes).training.capacity_factor is None


def test_token_drop_without_a_number_means_a_capacity_of_one():
    assert case(model=EXPERTS, parallel={"ep": 2}, notes="token-drop").training.capacity_factor == 1.0


def test_optimizers_are_read_by_name():
    assert case(optimizer="AdamW (8-bit)").training.optimizer is Optimizer.ADAM
    assert case(optimizer="Lion").training.optimizer is Optimizer.SGD

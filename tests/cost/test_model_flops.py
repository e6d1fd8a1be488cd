"""Model FLOPs against the formulas of the papers that report MFU."""

import pytest
from cost_samples import cluster, even_plan, gpt, moe_model

from planner.cost import estimate
from planner.cost.flops import attention_flops_per_token, model_flops_per_token
from planner.cost.parameters import active_parameters, total_parameters
from planner.spec.cluster import Precision
from planner.spec.model import GroupedQueryAttention, LatentAttention
from planner.spec.training import Training
from profiles import model_preset


@pytest.mark.parametrize(("layers", "hidden", "heads"), [(96, 12288, 96), (105, 20480, 128), (4, 256, 8)])
def test_flops_of_gpt_are_those_of_megatron(layers, hidden, heads):
    """Korthikanti et al. 2022 (arXiv 2205.05198), appendix A: 72 B l s h^2 (1 + s/6h + V/12lh), matrices alone.

    Ours also count 2 FLOPs for each of the 13 h biases and norms of a block, three times.
    """
    sequence, vocabulary = 2048, 51200
    matrices = 72 * layers * hidden**2 * (1 + sequence / (6 * hidden) + vocabulary / (12 * layers * hidden))
    vectors = 3 * 2 * layers * 13 * hidden
    found = model_flops_per_token(gpt(layers, hidden, heads, vocabulary), sequence)
    assert found == pytest.approx(matrices + vectors, rel=1e-12)


def test_only_the_experts_that_a_token_passes_count():
    model = moe_model(layers=4, hidden=256, experts=8, top_k=2, shared_width=512)
    idle = 4 * 6 * 3 * 256 * 512
    assert total_parameters(model) - active_parameters(model) == idle
    attention = 4 * 4 * 8 * 32 * 128
    vectors = 256  # the norm of the head
    matrices = active_parameters(model, embedding=False) - vectors
    assert model_flops_per_token(model, 128) == 3 * (2 * matrices + attention)


@pytest.mark.parametrize(
    ("preset", "billions"), [("mixtral-8x7b", 12.9), ("mixtral-8x22b", 39.2), ("llama-3.1-8b", 8.03)]
)
def test_flops_of_short_sequences_are_six_for_each_active_parameter(preset, billions):
    """Kaplan et al. 2020 (arXiv 2001.08361): 6 N, N without the embedding that is only looked up."""
    model = model_preset(preset)
    assert active_parameters(model) / 1e9 == pytest.approx(billions, rel=0.005)
    assert model_flops_per_token(model, 1) == pytest.approx(6 * active_parameters(model, embedding=False), rel=1e-3)


def test_a_window_bounds_what_a_token_looks_back_on():
    wide = GroupedQueryAttention(num_heads=8, num_kv_heads=2, head_dim=64)
    narrow = wide.model_copy(update={"window": 128})
    assert attention_flops_per_token(wide, 1024) == 4 * 8 * 64 * 1024
    assert attention_flops_per_token(narrow, 1024) == 4 * 8 * 64 * 128
    assert attention_flops_per_token(narrow, 100) == 4 * 8 * 64 * 100


def test_latent_attention_counts_its_wider_queries():
    latent = LatentAttention(
        num_heads=16, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    assert attention_flops_per_token(latent, 1024) == 2 * 16 * (192 + 128) * 1024


@pytest.mark.parametrize(
    ("precision", "peak"), [(Precision.BF16, 3e14), (Precision.FP16, 3e14), (Precision.FP32, 2e13)]
)
def test_mfu_is_model_flops_over_the_peak_of_the_number_format(precision, peak):
    model, where = gpt(4, 1024, 8), cluster()
    training = Training(global_batch_size=16, sequence_length=1024, precision=precision)
    found = estimate(model, where, training, even_plan("tp2-dp4-mbs1", model, where, training))
    flops = model_flops_per_token(model, 1024) * 16 * 1024
    assert found.tflops_per_device * 1e12 == pytest.approx(flops / found.step_time_s / 8)
    assert found.mfu == pytest.approx(flops / found.step_time_s / 8 / peak)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_is_no_model_flops(recompute):
    model, where = gpt(4, 1024, 8), cluster()
    training = Training(global_batch_size=16, sequence_length=1024)
    plain, again = (
        estimate(model, where, training, even_plan(f"dp8-mbs1-recompute:{kind}", model, where, training))
        for kind in ("none", recompute)
    )
    assert again.step_time_s > plain.step_time_s
    assert again.mfu * again.step_time_s == pytest.approx(plain.mfu * plain.step_time_s)

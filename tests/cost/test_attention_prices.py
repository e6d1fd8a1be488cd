"""Seconds and bytes of attention, with everything but one kind of work made free."""

import pytest
from cost_samples import DEVICE, NODE_LINK, cluster

from planner.cost.attention import attention
from planner.cost.kernels import overlapped_s
from planner.cost.part import Conditions, Part, conditions, share
from planner.spec.model import GroupedQueryAttention, LatentAttention
from planner.spec.strategy import Axis, AxisKind, Strategy
from planner.spec.training import AttentionKernel, Training

HIDDEN, SEQUENCE, SAMPLES, HEADS, WIDTH = 2048, 1024, 2, 16, 128
TRAINING = Training(global_batch_size=8, sequence_length=SEQUENCE)
ALONE = Strategy()
FORWARD_RATE, BACKWARD_RATE = 0.5 * 3e14, 0.4 * 3e14


def gqa(kv_heads: int = HEADS, causal: bool = True, window: int | None = None) -> GroupedQueryAttention:
    return GroupedQueryAttention(num_heads=HEADS, num_kv_heads=kv_heads, head_dim=WIDTH, causal=causal, window=window)


def only_scores(**links: float) -> Conditions:
    """A device on which everything but fused attention is free."""
    where = cluster(device=DEVICE, node_link=NODE_LINK.model_copy(update=links))
    price = conditions(HIDDEN, where, TRAINING)
    free = {"matmul_flops_per_s": 1e40, "bytes_per_s": 1e40, "elementwise_bytes_per_s": 1e40, "launch_s": 0.0}
    return price._replace(rate=price.rate._replace(**free))


def priced(kind: GroupedQueryAttention | LatentAttention, strategy: Strategy = ALONE, **links: float) -> Part:
    return attention(only_scores(**links), kind, strategy, share(strategy, SAMPLES, SEQUENCE))


def along(kind: AxisKind, degree: int) -> Strategy:
    return Strategy(axes=(Axis(kind, degree),))


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        (gqa(causal=False), lambda token: SEQUENCE),
        (gqa(), lambda token: token + 1),
        (gqa(window=256), lambda token: min(token + 1, 256)),
        (gqa(window=4096), lambda token: token + 1),
    ],
)
def test_only_pairs_inside_mask_and_window_are_computed(kind, seen):
    pairs = SAMPLES * sum(seen(token) for token in range(SEQUENCE))
    found = priced(kind)
    assert found.forward_s == pytest.approx(4 * HEADS * WIDTH * pairs / FORWARD_RATE, rel=2e-3)
    assert found.backward_s == pytest.approx(10 * HEADS * WIDTH * pairs / BACKWARD_RATE, rel=2e-3)
    assert found.core_forward_s == pytest.approx(found.forward_s, rel=1e-6)


@pytest.mark.parametrize("kind", [AxisKind.TP, AxisKind.CP, AxisKind.DP])
def test_every_axis_divides_the_scores(kind):
    assert priced(gqa(), along(kind, 2)).forward_s == pytest.approx(priced(gqa()).forward_s / 2)


@pytest.mark.parametrize("bandwidth", [1e9, 1e11, 1e13])
@pytest.mark.parametrize("kv_heads", [2, 16])
def test_the_ring_of_context_parallelism_runs_under_the_compute(bandwidth, kv_heads):
    link = {"bandwidth_bytes_per_s": bandwidth, "latency_s": 1e-5, "efficiency_ratio": 1.0}
    found = priced(gqa(kv_heads), along(AxisKind.CP, 4), **link)
    keys_and_values = 2 * SAMPLES * SEQUENCE // 4 * 2 * kv_heads * WIDTH
    ring = 3 * (keys_and_values / bandwidth + 1e-5)
    rate = only_scores().rate
    assert found.context_forward_s == pytest.approx(overlapped_s(rate, found.forward_s, ring) - found.forward_s)
    assert found.context_backward_s == pytest.approx(overlapped_s(rate, found.backward_s, 2 * ring) - found.backward_s)


def test_without_context_parallelism_there_is_no_ring():
    found = priced(gqa())
    assert (found.context_forward_s, found.context_backward_s) == (0.0, 0.0)


@pytest.mark.parametrize(("kv_heads", "tp", "local"), [(16, 4, 4), (4, 4, 1), (2, 8, 1), (1, 8, 1)])
def test_each_rank_keeps_whole_groups_of_keys_and_values(kv_heads, tp, local):
    tokens = SAMPLES * SEQUENCE
    queries_and_output = 2 * 2 * tokens * HEADS * WIDTH // tp
    row_numbers = 4 * tokens * HEADS // tp
    found = priced(gqa(kv_heads), along(AxisKind.TP, tp))
    assert found.stored_bytes == queries_and_output + 2 * 2 * tokens * local * WIDTH + row_numbers


LATENT = LatentAttention(
    num_heads=16, q_lora_rank=768, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=96
)


def test_latent_attention_computes_on_whole_heads():
    pairs = SAMPLES * SEQUENCE * SEQUENCE / 2
    assert priced(LATENT).forward_s == pytest.approx(2 * 16 * (192 + 96) * pairs / FORWARD_RATE)


def test_latent_attention_keeps_latents_before_and_after_their_norms():
    """Queries, keys, values and output head by head; both latents twice (a norm's input and output); the rotary key."""
    tokens = SAMPLES * SEQUENCE
    channels = 16 * (192 + 192 + 96) + 16 * 96 + 2 * (768 + 512) + 64
    assert priced(LATENT).stored_bytes == 2 * tokens * channels + 4 * tokens * 16


def test_scores_that_are_written_to_memory_cost_more_than_fused_ones():
    unfused = TRAINING.model_copy(update={"attention_kernel": AttentionKernel.UNFUSED})
    strategy = Strategy()
    fused_s, unfused_s = (
        attention(conditions(HIDDEN, cluster(), training), gqa(), strategy, share(strategy, 1, SEQUENCE)).core_forward_s
        for training in (TRAINING, unfused)
    )
    assert unfused_s > fused_s

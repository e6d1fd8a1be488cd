"""Weights, gradients, optimizer state and peaks that torch's memory trackers count, against the planner's bytes."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from block_prices import gpt_block, llama_block, price, strategy, training
from kept_blocks import Again, Block, GptBlock, Head, Sizes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch_bytes import counter_bytes, peak_bytes, state_bytes

from planner.spec.cluster import Precision
from planner.spec.model import Head as PlannedHead
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Recompute
from planner.spec.training import Optimizer

LLAMA = Sizes(hidden=1024, heads=16, kv_heads=4, width=2816)
MIXTRAL = Sizes(hidden=1024, heads=16, kv_heads=4, width=1792, experts=8, top_k=2)
QWEN_MOE = Sizes(hidden=1024, heads=16, kv_heads=4, width=512, experts=16, top_k=4, shared=1024)
SIZES = {"llama": LLAMA, "mixtral": MIXTRAL, "qwen-moe": QWEN_MOE}
DEVICES, BLOCKS = 8, 4


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_parameters_gradients_and_optimizer_state_of_a_block_are_exact(name, optimizer):
    sizes = SIZES[name]
    update = {
        Optimizer.ADAM: lambda weights: torch.optim.AdamW(weights, foreach=False),
        Optimizer.SGD: lambda weights: torch.optim.SGD(weights, momentum=0.9, foreach=False),
    }[optimizer]
    counted = state_bytes(lambda: Block(sizes), update, lambda: torch.empty(1, 64, sizes.hidden))
    recipe = training(64).model_copy(update={"precision": Precision.FP32, "optimizer": optimizer})
    spread = strategy(Recompute.NONE, moe=sizes.experts > 0)
    cost = price(sizes.hidden, llama_block(sizes), spread, recipe, 1)
    assert (cost.weights_bytes, cost.gradients_bytes, cost.optimizer_bytes) == counted


def test_state_of_a_gpt_block_with_biases_is_exact():
    sizes = Sizes(hidden=1024, heads=16, width=4096)
    counted = state_bytes(
        lambda: GptBlock(sizes),
        lambda weights: torch.optim.AdamW(weights, foreach=False),
        lambda: torch.empty(1, 64, sizes.hidden),
    )
    recipe = training(64, unfused=True).model_copy(update={"precision": Precision.FP32})
    cost = price(sizes.hidden, gpt_block(sizes), strategy(Recompute.NONE), recipe, 1)
    assert (cost.weights_bytes, cost.gradients_bytes, cost.optimizer_bytes) == counted


@pytest.mark.parametrize("vocab", [8192, 32768])
@pytest.mark.parametrize(("samples", "tokens"), [(1, 1024), (2, 2048)])
def test_a_loss_of_operations_of_its_own_takes_three_copies_of_the_scores(vocab, samples, tokens):
    sizes = Sizes(hidden=1024, vocab=vocab)

    def inputs() -> tuple[torch.Tensor, ...]:
        x = torch.empty(samples, tokens, sizes.hidden, dtype=torch.bfloat16, requires_grad=True)
        return x, torch.zeros(samples, tokens, dtype=torch.int64)

    cost = price(
        sizes.hidden,
        PlannedHead(vocab_size=vocab),
        strategy(Recompute.NONE),
        training(tokens),
        samples,
        Stack(eager_loss=True),
    )
    predicted = cost.activation_bytes + cost.logits_bytes
    assert predicted == pytest.approx(peak_bytes(lambda: Head(sizes), inputs), rel=0.05)


@pytest.fixture
def eight_ranks() -> Iterator[None]:
    """A process group whose other ranks do not exist."""
    dist.init_process_group("fake", rank=0, world_size=DEVICES, store=FakeStore())
    yield
    dist.destroy_process_group()


def tracked_by_fsdp(sizes: Sizes, recompute: Recompute, samples: int, tokens: int) -> tuple[dict[str, int], int]:
    """(state after a step, peak) of FSDP2 over some blocks with weights in fp32 that are cast to bf16 when gathered."""
    mesh = init_device_mesh("cpu", (DEVICES,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with FakeTensorMode():
        single = [Block(sizes, again=recompute is Recompute.SELECTIVE) for _ in range(BLOCKS)]
        model = nn.Sequential(*(Again(one) if recompute is Recompute.FULL else one for one in single))
        for one in model:
            fully_shard(one, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        x = torch.empty(samples, tokens, sizes.hidden, dtype=torch.bfloat16, requires_grad=True)
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((x,))
        with tracker:
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model(x).sum().backward()
        (now,) = tracker.get_tracker_snapshot("current").values()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        named = {getattr(kind, "value", str(kind)): size for kind, size in now.items()}
        named["OptState"] -= counter_bytes(optimizer)
        return named, peak["Total"]


@pytest.mark.usefixtures("eight_ranks")
@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize(("samples", "tokens"), [(1, 1024), (2, 4096)])
def test_fsdp_holds_shards_exactly_and_peaks_within_a_tenth(name, recompute, samples, tokens):
    sizes = SIZES[name]
    found, peak = tracked_by_fsdp(sizes, recompute, samples, tokens)
    spread = strategy(recompute, DEVICES, moe=sizes.experts > 0)
    cost = price(sizes.hidden, llama_block(sizes), spread, training(tokens), samples, Stack(casts_shards=True))
    assert BLOCKS * cost.weights_bytes == found["Sharded Param"]
    assert BLOCKS * cost.gradients_bytes == found["Sharded Grad"]
    assert BLOCKS * cost.optimizer_bytes == found["OptState"]
    predicted = BLOCKS * (cost.fixed_bytes + cost.activation_bytes) + cost.workspace_bytes
    assert predicted == pytest.approx(peak, rel=0.1)


@pytest.mark.usefixtures("eight_ranks")
@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize(("samples", "tokens"), [(1, 1024), (2, 4096)])
def test_under_ulysses_fsdp_holds_shards_exactly_and_peaks_within_a_tenth(recompute, samples, tokens):
    """Eight parts of each sequence, four groups of keys and values."""
    sizes = replace(LLAMA, ulysses=DEVICES)
    found, peak = tracked_by_fsdp(sizes, recompute, samples, tokens)
    axes = (Axis(AxisKind.ULYSSES, DEVICES),)
    spread = strategy(recompute, DEVICES).model_copy(update={"axes": axes})
    recipe = training(tokens * DEVICES)
    cost = price(sizes.hidden, llama_block(sizes), spread, recipe, samples, Stack(casts_shards=True))
    assert BLOCKS * cost.weights_bytes == found["Sharded Param"]
    assert BLOCKS * cost.gradients_bytes == found["Sharded Grad"]
    assert BLOCKS * cost.optimizer_bytes == found["OptState"]
    predicted = BLOCKS * (cost.fixed_bytes + cost.activation_bytes) + cost.workspace_bytes
    assert predicted == pytest.approx(peak, rel=0.1)

"""The device-dependent lines, on a GPU: streams, events, pinned memory, NCCL, and that the host waits for nothing."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from training_samples import EXPERT_SHAPE, MODEL, TOKENS, my_batches

from planner.spec.placement import Placement
from runtime.boundary import Boundary, Stretch
from runtime.capacity import Capacity
from runtime.example import LanguageModel
from runtime.exchange import broadcast_bytes, gather_json, rank
from runtime.gradients import average_gradients, clip_gradients
from runtime.hooks import attach
from runtime.launch import launch
from runtime.migration import migrate
from runtime.moe import ExpertParallelMoe, moe_layers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices on this machine")


@pytest.fixture
def no_waiting():
    """Whatever makes the host wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_with_equal_tokens_and_padding_no_pass_waits_for_the_device(no_waiting):
    capacity = Capacity(1.0, padded=True, equal_tokens=True)
    layer = ExpertParallelMoe(32, EXPERT_SHAPE, capacity=capacity, pieces=2).cuda()
    tokens = torch.randn(64, 32, device="cuda", requires_grad=True)
    layer(tokens).sum().backward()  # what is allocated once may wait
    no_waiting()
    layer(tokens).sum().backward()


def test_counts_are_taken_and_summed_without_waiting(no_waiting):
    device = torch.device("cuda", torch.cuda.current_device())
    layer = ExpertParallelMoe(32, EXPERT_SHAPE).to(device)
    counters = dict(enumerate(attach(layer)))
    hidden = torch.randn(TOKENS, 32, device=device)
    for turn in range(2):
        if turn == 1:
            no_waiting()
        stretch = Stretch(device)
        routing = layer.router(hidden)
        stretch.steps += 1
        boundary = Boundary(counters, [EXPERT_SHAPE.num_experts], 7, None, device, stretch)
    torch.cuda.set_sync_debug_mode("default")
    assert boundary.done_within(10.0)
    rows, number = boundary.shared()
    assert number == 7 and boundary.step_time_s() > 0
    assert rows == [routing.experts.flatten().bincount(minlength=EXPERT_SHAPE.num_experts).tolist()]


def train(device, steps=6, **layer_options):
    """Losses and norms, with a migration in the middle."""
    torch.manual_seed(0)  # on the CPU, before it goes to the device
    model = LanguageModel(MODEL, **layer_options).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    data, losses = my_batches(union=2), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(next(data).to(device))
        loss.backward()
        average_gradients(model)
        losses.append((loss.item(), clip_gradients(model, 0.5).item()))
        optimizer.step()
        if step == steps // 2:
            layers = moe_layers(model)
            turned = tuple((*layer.slots[1:], layer.slots[0]) for layer in layers)
            assert migrate(layers, Placement(layers=turned, num_ranks=layers[0].num_ranks), optimizer).pause_s > 0
    return losses


def test_a_gpu_trains_like_a_cpu():
    found, wanted = (train(torch.device(device)) for device in ("cuda", "cpu"))
    assert torch.tensor(found) == pytest.approx(torch.tensor(wanted), abs=1e-3)


def train_on_each(report, kind, pieces):
    device = torch.device(kind, dist.get_rank())
    if kind == "cuda":
        torch.cuda.set_device(device)
    words = gather_json({"rank": rank(None)}, None, device)
    said = broadcast_bytes(b"of rank 0" if rank(None) == 0 else b"", 9, None, device)
    return train(device, pieces=pieces), words, said


@two_gpus
@pytest.mark.parametrize("pieces", [1, 3])
def test_two_gpus_train_like_one_process(pieces):
    results = launch(train_on_each, 2, ("cuda", pieces), timeout_s=120, backend="nccl")
    assert all(words == [{"rank": 0}, {"rank": 1}] and said == b"of rank 0" for _, words, said in results)
    mean = torch.tensor([[loss for loss, _ in losses] for losses, _, _ in results]).mean(dim=0)
    assert mean.tolist() == pytest.approx([loss for loss, _ in train(torch.device("cpu"))], abs=1e-3)

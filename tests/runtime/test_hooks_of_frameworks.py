"""What counting promises, for every framework: each training pass of each real token once, and nothing else."""

from __future__ import annotations

import pytest
import torch
from router_samples import EXPERTS, HIDDEN, SAMPLES, TOP_K
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.hooks import TokenMask, attach

CPU = torch.device("cpu")
TOKENS = 12


@pytest.fixture(params=SAMPLES)
def layer(request, monkeypatch):
    if request.param == "megatron":
        run_megatron_on_cpu(monkeypatch)
    torch.manual_seed(0)
    return SAMPLES[request.param]().train()


def run_megatron_on_cpu(monkeypatch):
    """megatron-core asks CUDA for its device, and 0.16.1 lacks one name if Transformer Engine is away."""
    SAMPLES["megatron"]()  # imports it
    monkeypatch.setattr(torch.cuda, "current_device", lambda: CPU)
    monkeypatch.setattr("megatron.core.transformer.moe.moe_utils.te_general_gemm", None, raising=False)


def hidden_states(seed):
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def counts_of(layer, *batches):
    """One plain training pass on each."""
    [counter] = attach(layer)
    for hidden in batches:
        layer(hidden)
    counter.detach()
    return counter.take(CPU)


def run(layer, hidden, reentrant):
    return layer(hidden) if reentrant is None else checkpoint(layer, hidden, use_reentrant=reentrant)


def test_a_training_pass_counts_every_choice_of_every_token(layer):
    [counter] = attach(layer)
    assert counter.num_experts == EXPERTS
    layer(hidden_states(0)).sum().backward()
    counts = counter.take(CPU)
    assert counts.sum() == TOKENS * TOP_K and counts.dtype == torch.int64
    assert len(set(counts.tolist())) > 1, "a sample that tells experts apart"
    assert counter.take(CPU).tolist() == [0] * EXPERTS


def test_hooks_change_no_output_and_leave_no_trace(layer):
    hidden = hidden_states(0)
    with torch.no_grad():
        plain = layer(hidden)
    [counter] = attach(layer)
    assert torch.equal(layer(hidden), plain)
    counter.detach()
    assert not any(module._forward_hooks for module in layer.modules())


def test_neither_evaluation_nor_a_pass_without_gradients_counts(layer):
    [counter] = attach(layer)
    with torch.no_grad():
        layer(hidden_states(0))
    with torch.inference_mode():
        layer(hidden_states(0))
    layer.eval()
    layer(hidden_states(0))
    assert counter.take(CPU).sum() == 0


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_micro_batches_add_up_and_recomputation_counts_once(layer, reentrant):
    wanted = counts_of(layer, hidden_states(0), hidden_states(1))
    [counter] = attach(layer)
    for _ in range(2):
        for seed in range(2):
            run(layer, hidden_states(seed), reentrant).sum().backward()
        with torch.no_grad():
            layer(hidden_states(2))
        assert counter.take(CPU).tolist() == wanted.tolist()


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("order", ["each_after_its_forward", "first_in_first_out", "all_in_one"])
def test_padding_is_left_out_by_the_mask_of_the_forward_pass_whenever_the_backward_pass_comes(layer, reentrant, order):
    masks = [torch.rand(TOKENS, generator=torch.Generator().manual_seed(seed)) < 0.6 for seed in range(3)]
    batches = [hidden_states(seed) for seed in range(3)]
    wanted = counts_of(layer, *(batch.detach()[mask] for batch, mask in zip(batches, masks, strict=True)))
    mask = TokenMask()
    [counter] = attach(layer, mask=mask)
    losses = []
    for real, batch in zip(masks, batches, strict=True):
        mask.real = real
        losses.append(run(layer, batch, reentrant).sum())
        if order == "each_after_its_forward":
            mask.real = None
            losses.pop().backward()
    mask.real = None
    for loss in losses if order == "first_in_first_out" else [sum(losses)] if losses else []:
        loss.backward()
    assert counter.take(CPU).tolist() == wanted.tolist()


def test_the_order_of_counters_is_the_order_of_layers(layer):
    model = nn.ModuleDict({name: nn.Sequential(nn.Linear(2, 2), layer) for name in ("first",)})
    model["second"] = SAMPLES["ours"]()
    assert [counter.name.split(".")[0] for counter in attach(model)] == ["first", "second"]

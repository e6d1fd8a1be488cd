"""The layer beside what people train with: torch.compile, low precision, loss scaling, other optimizers, wrappers."""

from __future__ import annotations

import random

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from training_samples import EXPERTS, LAYERS, make_job, my_batches, random_placement

from planner.spec.errors import InputError
from planner.spec.placement import Placement
from runtime.checkpoint import load, save
from runtime.exchange import num_ranks, rank
from runtime.gradients import average_gradients, gradient_norm
from runtime.hooks import attach
from runtime.launch import launch
from runtime.migration import check_movable, migrate
from runtime.moe import expert_parameters, moe_layers

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch's own compiler reads, and hides
def test_a_compiled_model_computes_and_counts_as_before():
    model, _ = make_job()
    counters, batch = attach(model), next(my_batches())
    results = []
    for run in (model, torch.compile(model, backend="eager")):
        loss = run(batch)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append((loss, gradients, [counter.take(CPU) for counter in counters]))
        model.zero_grad()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_gradient_norm_of_any_number_format_is_made_in_float32_at_least(dtype):
    model, _ = make_job()
    model.to(dtype)
    exact = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
        exact += parameter.grad.double().square().sum().item()
    assert gradient_norm(model).item() == pytest.approx(exact**0.5, rel=1e-6)


class WithMasterWeights(torch.optim.Optimizer):
    """Keeps what it trains in float32, beside parameters in bfloat16."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state.setdefault("master", parameter.float())
            state["master"] -= self.param_groups[0]["lr"] * parameter.grad.float().sign()
            parameter.copy_(state["master"])


def lowered(seed):
    torch.manual_seed(seed)
    model = make_job(seed)[0].bfloat16()
    return model, WithMasterWeights(model.parameters())


def train(model, optimizer, batches):
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        average_gradients(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_master_weights_come_back_to_the_bit_and_move_with_their_experts(tmp_path):
    batches = [batch for _, batch in zip(range(8), my_batches(union=1), strict=False)]
    model, optimizer = lowered(seed=0)
    train(model, optimizer, batches[:4])
    path = save(tmp_path, 4, model, optimizer)
    other, resumed = lowered(seed=1)
    load(path, other, resumed)
    states = [
        {key: state["master"] for key, state in owner.state_dict()["state"].items()} for owner in (optimizer, resumed)
    ]
    assert {tensor.dtype for tensor in states[1].values()} == {torch.float32}
    torch.testing.assert_close(*states, rtol=0, atol=0)
    turned = Placement(layers=(tuple(reversed(range(EXPERTS))),) * LAYERS, num_ranks=1)
    migrate(moe_layers(other), turned, resumed)
    assert train(other, resumed, batches[4:]) == train(model, optimizer, batches[4:])


OPTIMIZERS = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "one by one": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=False),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=True, amsgrad=True),
    "a tensor as learning rate": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(1e-2), foreach=False),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_experts_move_and_come_back_from_a_checkpoint_whatever_the_optimizer(tmp_path, make):
    batches = [batch for _, batch in zip(range(9), my_batches(union=1), strict=False)]
    plain, _ = make_job()
    wanted = train(plain, make(plain.parameters()), batches)
    model, _ = make_job()
    optimizer = make(model.parameters())
    losses = train(model, optimizer, batches[:3])
    migrate(moe_layers(model), random_placement(random.Random(3), ranks=1), optimizer)
    losses += train(model, optimizer, batches[3:6])
    path = save(tmp_path, 6, model, optimizer)
    other, _ = make_job(seed=5)
    resumed = make(other.parameters())
    load(path, other, resumed)
    assert losses + train(other, resumed, batches[6:]) == pytest.approx(wanted, abs=1e-5)


def scale_losses(report):
    """An expert of rank 1 overflows in the second of three steps. Whether each step changed the router, the scale."""
    model, _ = make_job()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = ShardedGradScaler("cpu", init_scale=1024.0)
    data, router, found = my_batches(union=2), moe_layers(model)[0].router.projection.weight, []
    for step in range(3):
        before = router.detach().clone()
        optimizer.zero_grad()
        scaler.scale(model(next(data))).backward()
        average_gradients(model)
        if step == 1 and rank(None) == 1:
            next(expert_parameters(model)).grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        found.append((not torch.equal(before, router), scaler.get_scale()))
    return found, router.detach().tolist()


def test_all_ranks_leave_out_a_step_in_which_one_ranks_expert_overflows():
    first, second = launch(scale_losses, 2, timeout_s=60)
    assert first == second
    assert first[0] == [(True, 1024.0), (False, 512.0), (True, 512.0)]


def wrap_wrongly(report):
    model, _ = make_job()
    errors = []
    for attempt in (
        lambda: average_gradients(nn.ModuleDict({"inside": DistributedDataParallel(model)})),
        lambda: check_movable(moe_layers(cut_in_parts(model)), torch.optim.SGD(model.parameters())),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        errors.append(str(caught.value))
    return errors


def cut_in_parts(model):
    mesh = init_device_mesh("cpu", (num_ranks(None),))
    expert = moe_layers(model)[0].experts[0]
    expert.up = nn.Parameter(distribute_tensor(expert.up.detach(), mesh, [Shard(0)]))
    return model


def test_what_would_train_other_experts_than_those_of_this_layer_is_refused():
    for errors in launch(wrap_wrongly, 2, timeout_s=60):
        assert "must not be in DistributedDataParallel" in errors[0]
        assert "experts of which each rank holds a part (up): leave them out of FSDP" in errors[1]
    assert not dist.is_initialized()

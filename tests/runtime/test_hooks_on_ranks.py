"""Tokens over ranks of data, tensor and sequence parallelism: each is counted once in the sum over all of them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from doubles_routers import MoE, TokenChoiceTopKRouter
from planner_samples import SEARCH, SamplePlanner, keep
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from training_samples import RANKS, TOKENS, make_job, my_batches, train_step

from planner.spec.errors import InputError
from runtime.agent import Agent
from runtime.hooks import attach
from runtime.launch import launch

HIDDEN, EXPERTS, TOP_K = 16, 8, 2
BATCH, LENGTH = 4, 6
CPU = torch.device("cpu")


def make_layer():
    torch.manual_seed(0)
    return MoE(HIDDEN, EXPERTS, TOP_K)


def make_tokens():
    return torch.randn(BATCH, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(0))


def summed(counters):
    """Over all ranks."""
    counts = sum(counter.take(CPU) for counter in counters)
    dist.all_reduce(counts)
    return counts.tolist()


def count_in_three_ways(report):
    """Two data-parallel ranks, each of two tensor-parallel ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    mine = make_tokens().chunk(2)[mesh["dp"].get_local_rank()]
    found = {}

    layer = make_layer()
    counters = attach(layer)
    layer(mine.chunk(2, dim=1)[mesh["tp"].get_local_rank()])
    found["each its part of the sequence"] = summed(counters)

    layer = make_layer()
    counters = attach(layer)
    layer(mine)
    found["all the same, unsaid"] = summed(counters)

    layer = make_layer()
    counters = attach(layer, same_tokens=mesh["tp"].get_group())
    layer(mine)
    found["all the same, said"] = summed(counters)

    for way, placement in (("parts in a DTensor", Shard(1)), ("all the same in a DTensor", Replicate())):
        router = TokenChoiceTopKRouter(HIDDEN, EXPERTS, TOP_K)
        router.load_state_dict(make_layer().router.state_dict())
        distribute_module(router, mesh)
        counters = attach(router)
        router(distribute_tensor(make_tokens(), mesh, [Shard(0), placement]))
        found[way] = summed(counters)
    return found


def test_each_token_is_counted_once_over_data_tensor_and_sequence_parallel_ranks():
    found = launch(count_in_three_ways, RANKS, timeout_s=120)[0]
    layer = make_layer()
    [counter] = attach(layer)
    layer(make_tokens())
    wanted = counter.take(CPU).tolist()
    assert found.pop("all the same, unsaid") == [2 * number for number in wanted]
    assert found == dict.fromkeys(found, wanted)


def train_with_padding(report, url):
    """Every rank's tokens stand on its neighbour too; of the real ones, each sequence holds five."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model, optimizer = make_job()
    with pytest.raises(InputError, match="same_tokens: must be the group that this rank is in"):
        attach(model, same_tokens=pairs[1 - dist.get_rank() // 2])
    data = my_batches()
    real = (torch.arange(TOKENS) < 5).expand(2, TOKENS)
    arguments = {"service": url, "run": "my-run", "search": SEARCH, "window_steps": 2, "apply": "advise"}
    with Agent(model=model, same_tokens=pairs[dist.get_rank() // 2], **arguments) as agent:
        for _ in range(2):
            agent.mask(real)
            train_step(model, optimizer, next(data))
            agent.step()


def test_an_agent_counts_real_tokens_of_the_first_of_ranks_with_the_same_tokens():
    with SamplePlanner(decide=keep) as planner:
        launch(train_with_padding, RANKS, (planner.url,), timeout_s=60)
    [window] = planner.windows
    steps, pairs, sequences, top_k = 2, 2, 2, 2
    assert [sum(row) for row in window.tokens] == [steps * pairs * sequences * 5 * top_k] * len(window.tokens)

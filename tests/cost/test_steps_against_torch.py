"""Collectives of one layer, counted and measured in torch itself, equal the list that the model prices: whole steps.

torch runs on the CPU as rank 0 among pretended peers. Where its way differs from Megatron's, the test says so.
"""

from collections import Counter
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch_blocks import Shape, TorchBlock, TorchMoe, tensor_parallel
from torch_collectives import Sent, modelled, pretended_peers, recorded
from torch_steps import FP32, MICRO_BATCHES, SHAPES, mixed, modelled_step, sharded, spread, step, total_bytes, traffic

from planner.cost.message import Collective
from planner.spec.cluster import Precision
from planner.spec.model import Embedding, Head
from planner.spec.strategy import ExpertStrategy, Recompute, Sharding

# CommDebugMode hooks every module, which FSDP2 and inputs without gradients are warned of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed"),
]


@pytest.mark.parametrize("gradient_precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("sharding", [Sharding.OPTIMIZER, Sharding.GRADIENTS, Sharding.FULL])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_every_stage_of_zero_sends_what_fsdp_sends(degree, shape, sharding, gradient_precision):
    with pretended_peers(degree):
        policy = mixed(gradient_precision)
        blocks = [sharded(TorchBlock(shape), sharding, mp_policy=policy) for _ in range(2)]
        sent = step(fully_shard(nn.Sequential(*blocks)), sharding, shape.activation())
        said = traffic(shape, shape.block, spread(sharding, dp=degree), Precision.BF16, gradient_precision)
        assert modelled_step(said, said) == sent


@pytest.mark.parametrize(("outside", "inside"), [(2, 2), (4, 2), (2, 4)])
def test_hybrid_sharding_sends_what_fsdp_sends_over_two_axes(outside, inside):
    shape = SHAPES[0]
    with pretended_peers(outside * inside):
        mesh = init_device_mesh("cpu", (outside, inside), mesh_dim_names=("replicas", "shards"))
        block = sharded(TorchBlock(shape), Sharding.FULL, mesh=mesh, mp_policy=mixed(FP32))
        sent = step(fully_shard(nn.Sequential(block), mesh=mesh), Sharding.FULL, shape.activation())
        said = traffic(shape, shape.block, spread(Sharding.FULL, dp=outside, sdp=inside), Precision.BF16)
        assert modelled_step(said) == sent


@pytest.mark.parametrize("degree", [2, 8])
def test_full_recomputation_under_full_sharding_gathers_no_weights_a_third_time(degree):
    shape = SHAPES[0]

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = TorchBlock(shape)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.block, tokens, use_reentrant=False)

    with pretended_peers(degree):
        block = sharded(Recomputed(), Sharding.FULL, mp_policy=mixed(FP32))
        sent = step(fully_shard(nn.Sequential(block)), Sharding.FULL, shape.activation())
        strategy = spread(Sharding.FULL, dp=degree).model_copy(update={"recompute": Recompute.FULL})
        assert modelled_step(traffic(shape, shape.block, strategy, Precision.BF16)) == sent


class Vocabulary(nn.Module):
    """Embedding and head with nothing between."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.head = nn.Sequential(nn.RMSNorm(shape.hidden), nn.Linear(shape.hidden, shape.vocab, bias=False))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_embedding_and_head_are_gathered_twice_if_wrapped_and_once_if_left_to_the_root(degree):
    """What FSDP2's root holds itself it keeps after the forward pass, as a layer with sharded gradients would."""
    shape = SHAPES[0]
    layers = Embedding(vocab_size=shape.vocab), Head(vocab_size=shape.vocab)
    tokens = torch.zeros(shape.samples, shape.sequence, dtype=torch.long)

    def said(sharding: Sharding):
        return modelled_step(*(traffic(shape, each, spread(sharding, dp=degree), Precision.BF16) for each in layers))

    with pretended_peers(degree):
        wrapped = Vocabulary(shape)
        for part in (wrapped.embedding, wrapped.head):
            sharded(part, Sharding.FULL, mp_policy=mixed(FP32))
        assert step(fully_shard(wrapped), Sharding.FULL, tokens) == said(Sharding.FULL)
        root = fully_shard(Vocabulary(shape), mp_policy=mixed(FP32))
        sent = step(root, Sharding.GRADIENTS, tokens)
        assert total_bytes(sent) == total_bytes(said(Sharding.GRADIENTS))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_without_sharding_gradients_are_all_reduced_once_per_step_as_ddp_does(degree, shape):
    def all_reduced(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        # The pretended group's own future has no value, which DDP does not survive.
        dist.all_reduce(bucket.buffer())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    with pretended_peers(degree):
        model = DistributedDataParallel(TorchBlock(shape))
        model.register_comm_hook(None, all_reduced)
        # After its first pass DDP agrees with its peers on the order of gradients, once for all.
        model(shape.activation()).sum().backward()
        with model.no_sync():
            model(shape.activation()).sum().backward()
        found: Counter[Sent] = Counter()
        for micro_batch in range(MICRO_BATCHES):
            with recorded() as sent, nullcontext() if micro_batch == MICRO_BATCHES - 1 else model.no_sync():
                model(shape.activation()).sum().backward()
            found.update(sent)
        assert modelled_step(traffic(shape, shape.block, spread(dp=degree))) == found


# Both.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sharding", [Sharding.GRADIENTS, Sharding.FULL])
@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (4, 2), (2, 4), (2, 8)])
def test_tensor_parallelism_inside_fsdp_sends_what_torch_sends(data, tensor, sharding, shape):
    """The gradients of norms are summed over tensor-parallel ranks first; torch sends them one by one."""
    with pretended_peers(data * tensor):
        mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("dp", "tp"))
        block = tensor_parallel(TorchBlock(shape), mesh["tp"], sequence_parallel=True)
        sharded(block, sharding, mesh=mesh["dp"])
        model = fully_shard(nn.Sequential(block), mesh=mesh["dp"])
        sent = step(model, sharding, shape.activation(tensor))
        said = modelled_step(traffic(shape, shape.block, spread(sharding, True, dp=data, tp=tensor)))
        assert total_bytes(said) == total_bytes(sent)
        norms = {each for each in said if each.collective is Collective.ALL_REDUCE}
        assert all(count == sent[each] for each, count in said.items() if each not in norms)


# Experts.


class Experts(NamedTuple):
    """Degrees of expert-data, expert and expert-tensor parallelism."""

    edp: int
    ep: int
    etp: int

    @property
    def strategy(self) -> ExpertStrategy:
        return ExpertStrategy(
            expert_parallel_size=self.ep, expert_tensor_parallel_size=self.etp, expert_data_parallel_size=self.edp
        )


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    "degrees", [Experts(1, 2, 1), Experts(1, 8, 1), Experts(2, 4, 1), Experts(2, 2, 2), Experts(4, 1, 2)]
)
def test_experts_send_tokens_and_weights_as_in_torch(degrees, top_k):
    """Experts are sharded over the ranks that hold the same ones, all else over all ranks, as torchtitan wraps them."""
    shape = SHAPES[0]
    devices = degrees.edp * degrees.ep * degrees.etp
    with pretended_peers(devices):
        mesh = init_device_mesh("cpu", degrees, mesh_dim_names=degrees._fields)
        moe = TorchMoe(shape, 8, top_k, mesh)
        if degrees.edp > 1:
            sharded(moe.experts, Sharding.FULL, mesh=mesh["edp"])
        block = TorchBlock(shape, moe)
        alone = set() if degrees.edp > 1 else set(moe.experts.parameters())
        sharded(block, Sharding.FULL, ignored_params=alone)
        model = fully_shard(nn.Sequential(block), ignored_params=alone)
        sent = step(model, Sharding.FULL, shape.activation())
        strategy = spread(Sharding.FULL, dp=devices).model_copy(update={"experts": degrees.strategy})
        assert modelled_step(traffic(shape, shape.moe_block(8, top_k), strategy)) == sent


@pytest.mark.parametrize("degrees", [Experts(1, 8, 1), Experts(2, 4, 1), Experts(2, 2, 2)])
@pytest.mark.parametrize("tensor", [2, 4])
def test_tensor_parallel_ranks_send_the_experts_their_own_tokens(tensor, degrees):
    shape = SHAPES[0]
    with pretended_peers(8):
        mesh = init_device_mesh("cpu", degrees, mesh_dim_names=degrees._fields)
        attention = init_device_mesh("cpu", (8 // tensor, tensor), mesh_dim_names=("dp", "tp"))
        block = tensor_parallel(TorchBlock(shape, TorchMoe(shape, 8, 2, mesh)), attention["tp"], sequence_parallel=True)
        with recorded() as forward:
            out = block(shape.activation(tensor))
        with recorded() as backward:
            out.sum().backward()
        strategy = spread(sequence_parallel=True, dp=8 // tensor, tp=tensor)
        strategy = strategy.model_copy(update={"experts": degrees.strategy})
        said = traffic(shape, shape.moe_block(8, 2), strategy)
        assert modelled(said.forward) == Counter(forward)
        assert modelled(said.backward) == Counter(backward)

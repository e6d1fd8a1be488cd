"""Collectives of one layer, counted and measured in torch itself, equal those that the model lists and prices.

torch runs on the CPU as rank 0 among pretended peers. Where its way differs from Megatron's, the test says so.
"""

from collections import Counter
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from cost_samples import cluster
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch_blocks import Shape, TorchBlock, TorchMoe, tensor_parallel
from torch_collectives import Sent, modelled, pretended_peers, recorded

from planner.cost.message import Collective
from planner.cost.part import conditions
from planner.cost.traffic import LayerTraffic, layer_traffic
from planner.spec.cluster import Precision
from planner.spec.model import Block, Embedding, Head
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training

# CommDebugMode hooks every module, which FSDP2 and inputs without gradients are warned of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed"),
]

SHAPES = (Shape(), Shape(samples=3, sequence=64, hidden=128, heads=16, kv_heads=8, width=192))
FP32 = Precision.FP32
MICRO_BATCHES = 3


def traffic(
    shape: Shape,
    layer: Block | Embedding | Head,
    strategy: Strategy,
    precision: Precision = FP32,
    gradient_precision: Precision = FP32,
) -> LayerTraffic:
    """What the model says, for a micro-batch of `shape.samples` on each data-parallel rank."""
    samples = shape.samples * strategy.data_parallel_size
    sequence = shape.sequence * strategy.cp
    training = Training(
        global_batch_size=samples, sequence_length=sequence, precision=precision, gradient_precision=gradient_precision
    )
    where = conditions(shape.hidden, cluster(nodes=2), training)
    return layer_traffic(where, layer, strategy, samples, sequence)


def spread(sharding: Sharding = Sharding.NONE, sequence_parallel: bool = False, **degrees: int) -> Strategy:
    """Axes, outermost first."""
    axes = tuple(Axis(AxisKind(kind), degree) for kind, degree in degrees.items() if degree > 1)
    return Strategy(axes=axes, sharding=sharding, sequence_parallel=sequence_parallel)


def total_bytes(sent) -> dict:
    """By collective and group, where torch sends in another number of pieces."""
    found: dict = {}
    for each, count in sent.items():
        key = (each.collective, each.ranks)
        found[key] = found.get(key, 0) + each.moved_bytes * count
    return found


# Tensor and sequence parallelism.


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_a_tensor_parallel_block_sends_in_each_pass_what_torch_sends(degree, shape, sequence_parallel, precision):
    stored = torch.float32 if precision is FP32 else torch.bfloat16
    with pretended_peers(degree):
        block = tensor_parallel(TorchBlock(shape).to(stored), init_device_mesh("cpu", (degree,)), sequence_parallel)
        tokens = shape.activation(degree if sequence_parallel else 1).to(stored)
        with recorded() as forward:
            out = block(tokens)
        with recorded() as backward:
            out.sum().backward()
        said = traffic(shape, shape.block, spread(sequence_parallel=sequence_parallel, tp=degree), precision)
        assert modelled(said.forward) == Counter(forward)
        assert modelled(said.backward) == Counter(backward)


@pytest.mark.parametrize(
    ("sequence_parallel", "qk_norm", "norms"), [(True, False, 2), (False, True, 2), (True, True, 4)]
)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_gradients_of_norms_that_see_a_part_are_summed_once_per_step(degree, sequence_parallel, qk_norm, norms):
    """A part of the tokens under sequence parallelism, and of the heads where they have norms of their own.

    torch leaves gradients as parts of a sum until somebody needs them, one by one; Megatron sums all in one message.
    """
    shape = SHAPES[0]._replace(qk_norm=qk_norm)
    with pretended_peers(degree):
        block = tensor_parallel(TorchBlock(shape), init_device_mesh("cpu", (degree,)), sequence_parallel)
        for _ in range(MICRO_BATCHES):
            block(shape.activation(degree if sequence_parallel else 1)).sum().backward()
        gradients = [each.grad for each in block.parameters() if isinstance(each.grad, DTensor)]
        parts = [each for each in gradients if each.placements == (Partial(),)]
        with recorded() as sent:
            for part in parts:
                part.full_tensor()
        said = traffic(shape, shape.block, spread(sequence_parallel=sequence_parallel, tp=degree))
        assert len(parts) == norms
        assert total_bytes(modelled(said.step)) == total_bytes(Counter(sent))


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_full_recomputation_repeats_the_collectives_of_the_forward_pass(degree, sequence_parallel):
    shape = SHAPES[0]
    with pretended_peers(degree):
        block = tensor_parallel(TorchBlock(shape), init_device_mesh("cpu", (degree,)), sequence_parallel)
        tokens = shape.activation(degree if sequence_parallel else 1)
        with set_checkpoint_early_stop(False), recorded() as sent:
            checkpoint(block, tokens, use_reentrant=False).sum().backward()
        with recorded() as stopped_early:
            checkpoint(block, tokens, use_reentrant=False).sum().backward()
        strategy = spread(sequence_parallel=sequence_parallel, tp=degree)
        said = traffic(shape, shape.block, strategy.model_copy(update={"recompute": Recompute.FULL}))
        assert said.recomputation == said.forward
        assert modelled(said.forward + said.recomputation + said.backward) == Counter(sent)
        # By default torch stops once it has what the backward pass needs, and saves the last collective of all;
        # Megatron does not.
        assert Counter(sent) - Counter(stopped_early) == modelled(said.forward[-1:])


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_an_embedding_cut_along_the_vocabulary_sends_what_torch_sends(degree, shape, sequence_parallel):
    edge = Shard(1) if sequence_parallel else Replicate()
    with pretended_peers(degree):
        rows = RowwiseParallel(input_layouts=Replicate(), output_layouts=edge)
        layer = nn.Embedding(shape.vocab, shape.hidden)
        parallelize_module(layer, init_device_mesh("cpu", (degree,)), rows)
        with recorded() as forward:
            out = layer(torch.zeros(shape.samples, shape.sequence, dtype=torch.long))
        with recorded() as backward:
            out.sum().backward()
        strategy = spread(sequence_parallel=sequence_parallel, tp=degree)
        said = traffic(shape, Embedding(vocab_size=shape.vocab), strategy)
        assert modelled(said.forward) == Counter(forward)
        assert modelled(said.backward) == Counter(backward)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_a_head_with_its_loss_over_a_cut_vocabulary_sends_what_torch_sends(degree, shape, sequence_parallel):
    edge = Shard(1) if sequence_parallel else Replicate()
    with pretended_peers(degree):
        layer = nn.Sequential(nn.RMSNorm(shape.hidden), nn.Linear(shape.hidden, shape.vocab, bias=False))
        columns = ColwiseParallel(input_layouts=edge, output_layouts=Shard(-1), use_local_output=False)
        plan = {"0": SequenceParallel(), "1": columns} if sequence_parallel else {"1": columns}
        parallelize_module(layer, init_device_mesh("cpu", (degree,)), plan)
        targets = torch.zeros(shape.samples * shape.sequence, dtype=torch.long)
        with loss_parallel():
            with recorded() as forward:
                logits = layer(shape.activation(degree if sequence_parallel else 1))
                loss = functional.cross_entropy(logits.flatten(0, 1), targets)
            with recorded() as backward:
                loss.backward()
        said = traffic(shape, Head(vocab_size=shape.vocab), spread(sequence_parallel=sequence_parallel, tp=degree))
        assert modelled(said.forward) == Counter(forward)
        assert modelled(said.backward) == Counter(backward)


# Data parallelism: whole steps of several micro-batches.


def sharded(module: nn.Module, sharding: Sharding, **how) -> FSDPModule:
    """FSDP2 as it does each stage of ZeRO: stage 3 gathers weights for both passes, the others keep them."""
    return fully_shard(module, reshard_after_forward=sharding is Sharding.FULL, **how)


def step(model: FSDPModule, sharding: Sharding, tokens: torch.Tensor) -> Counter[Sent]:
    """Collectives of a step; below stage 3 weights stay until the update, at stage 1 gradients too."""
    found: Counter[Sent] = Counter()
    for micro_batch in range(MICRO_BATCHES):
        last = micro_batch == MICRO_BATCHES - 1
        model.set_reshard_after_backward(last or sharding is Sharding.FULL)
        model.set_requires_gradient_sync(last or sharding is not Sharding.OPTIMIZER)
        model.set_requires_all_reduce(last)
        with recorded() as sent:
            model(tokens).sum().backward()
        found.update(sent)
    return found


def modelled_step(*layers: LayerTraffic):
    """Of these layers together."""
    found = modelled(())
    for said in layers:
        found += modelled(said.forward + said.backward + said.recomputation, MICRO_BATCHES) + modelled(said.step)
    return found


def mixed(gradient_precision: Precision) -> MixedPrecisionPolicy:
    reduced = torch.float32 if gradient_precision is FP32 else torch.bfloat16
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduced)


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

"""Ulysses' sequence parallelism in plain torch sends what the model says, alone and with all that it goes with.

torch runs on the CPU as rank 0 among pretended peers.
"""

from collections import Counter

import pytest
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from torch_blocks import Shape, TorchBlock, TorchMoe, UlyssesAttention, tensor_parallel
from torch_collectives import modelled, pretended_peers, recorded
from torch_steps import FP32, mixed, modelled_step, sharded, spread, step, traffic

from planner.cost.message import Collective
from planner.spec.cluster import Precision
from planner.spec.strategy import ExpertStrategy, Recompute, Sharding

# CommDebugMode hooks every module, which FSDP2 and inputs without gradients are warned of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed"),
]

SHAPES = (
    Shape(heads=16, kv_heads=16),
    Shape(heads=16, kv_heads=2),
    Shape(samples=3, sequence=64, hidden=128, heads=16, kv_heads=8),
)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_a_block_exchanges_in_each_pass_what_torch_exchanges(degree, shape, tensor):
    with pretended_peers(degree * tensor):
        mesh = init_device_mesh("cpu", (degree, tensor), mesh_dim_names=("ulysses", "tp"))
        block: nn.Module = TorchBlock(shape, attention=UlyssesAttention(shape, mesh["ulysses"].get_group()))
        if tensor > 1:
            block = tensor_parallel(block, mesh["tp"], sequence_parallel=True)
        with recorded() as forward:
            out = block(shape.activation(tensor))
        with recorded() as backward:
            out.sum().backward()
    said = traffic(shape, shape.block, spread(sequence_parallel=tensor > 1, ulysses=degree, tp=tensor))
    assert Counter(each.collective for each in forward)[Collective.ALL_TO_ALL] == 4
    assert modelled(said.forward) == Counter(forward)
    assert modelled(said.backward) == Counter(backward)


@pytest.mark.parametrize("sharding", [Sharding.OPTIMIZER, Sharding.GRADIENTS, Sharding.FULL])
@pytest.mark.parametrize(("data", "degree"), [(1, 4), (2, 2)])
def test_weights_and_gradients_are_sharded_over_the_parts_of_the_sequence_too(data, degree, sharding):
    shape = SHAPES[0]
    with pretended_peers(data * degree):
        mesh = init_device_mesh("cpu", (data, degree), mesh_dim_names=("dp", "ulysses"))
        attention = UlyssesAttention(shape, mesh["ulysses"].get_group())
        block = sharded(TorchBlock(shape, attention=attention), sharding, mp_policy=mixed(FP32))
        sent = step(fully_shard(nn.Sequential(block)), sharding, shape.activation())
    said = traffic(shape, shape.block, spread(sharding, dp=data, ulysses=degree), Precision.BF16)
    assert modelled_step(said) == sent


def test_experts_get_the_tokens_of_every_part_of_the_sequence():
    shape = SHAPES[0]
    with pretended_peers(8):
        experts = init_device_mesh("cpu", (1, 8, 1), mesh_dim_names=("edp", "ep", "etp"))
        mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "ulysses"))
        attention = UlyssesAttention(shape, mesh["ulysses"].get_group())
        block = TorchBlock(shape, TorchMoe(shape, 8, 2, experts), attention)
        with recorded() as forward:
            block(shape.activation())
    strategy = spread(dp=2, ulysses=4).model_copy(update={"experts": ExpertStrategy(expert_parallel_size=8)})
    assert modelled(traffic(shape, shape.moe_block(8, 2), strategy).forward) == Counter(forward)


def test_full_recomputation_exchanges_again():
    shape = SHAPES[1]
    with pretended_peers(4):
        ranks = init_device_mesh("cpu", (4,)).get_group()
        block = TorchBlock(shape, attention=UlyssesAttention(shape, ranks))
        with recorded() as sent:
            checkpoint(block, shape.activation(), use_reentrant=False).sum().backward()
    strategy = spread(ulysses=4).model_copy(update={"recompute": Recompute.FULL})
    said = traffic(shape, shape.block, strategy)
    assert modelled(said.forward + said.recomputation + said.backward) == Counter(sent)

"""Collectives of one layer, counted and measured in torch itself, equal the list that the model prices: cut layers.

torch runs on the CPU as rank 0 among pretended peers. Where its way differs from Megatron's, the test says so.
"""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch_blocks import TorchBlock, tensor_parallel
from torch_collectives import modelled, pretended_peers, recorded
from torch_steps import FP32, MICRO_BATCHES, SHAPES, spread, total_bytes, traffic

from planner.spec.cluster import Precision
from planner.spec.model import Embedding, Head
from planner.spec.strategy import Recompute

# CommDebugMode hooks every module, which FSDP2 and inputs without gradients are warned of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed"),
]


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

"""Messages from neighbour to neighbour: torch's ring attention and torch's pipeline stages send what the model says."""

from collections import Counter

import pytest
import torch
from cost_samples import cluster
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.experimental._context_parallel import _attention as ring_attention
from torch_blocks import Shape, TorchBlock, tensor_parallel
from torch_collectives import Recorder, modelled, pretended_peers, recorded

from planner.cost.boundary import entry_messages
from planner.cost.message import Collective
from planner.cost.part import Conditions, conditions
from planner.cost.traffic import layer_traffic
from planner.spec.cluster import Precision
from planner.spec.strategy import Axis, AxisKind, Sharding, Strategy
from planner.spec.training import Training

SHAPES = (Shape(), Shape(samples=3, sequence=64, hidden=128, heads=16, kv_heads=8))
MICRO_BATCHES = 4


def price(shape: Shape, samples: int) -> Conditions:
    training = Training(global_batch_size=samples, sequence_length=shape.sequence, precision=Precision.FP32)
    return conditions(shape.hidden, cluster(nodes=2), training)


def _forward(query, key, value, *, is_causal):
    repeats = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(repeats, 1) for each in (key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, is_causal=is_causal)


def _backward(query, key, value, **_):
    return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_a_ring_passes_keys_and_values_on_as_often_as_torch_does(degree, shape, monkeypatch):
    """torch turns its ring the same way back, and so needs a round more for the gradients than Transformer Engine.

    torch has no ring for its CPU kernel: its scheme is given that kernel here, and a backward pass without one.
    torch passes on by an all-to-all in which each rank has something for one neighbour only.
    """
    monkeypatch.setattr(ring_attention._cp_options, "enable_load_balance", False)
    monkeypatch.setattr(ring_attention._cp_options, "rotate_method", ring_attention._RotateMethod.ALL_TO_ALL)
    samples, local = shape.samples, shape.sequence // degree
    query = torch.zeros(samples, shape.heads, local, shape.head_dim)
    key, value = (torch.zeros(samples, shape.kv_heads, local, shape.head_dim) for _ in range(2))
    with pretended_peers(degree):
        group = init_device_mesh("cpu", (degree,)).get_group()
        with recorded() as forward:
            out, scale, *_ = ring_attention._templated_ring_attention(group, 2, _forward, query, key, value, True)
        with recorded() as backward:
            ring_attention._templated_ring_attention_backward(
                group, 2, _backward, out, "gradient", query, key, value, out, scale, True
            )
    strategy = Strategy(axes=(Axis(AxisKind.CP, degree),))
    said = layer_traffic(price(shape, samples), shape.block, strategy, samples, shape.sequence)
    assert _passed_on(said.forward) == _as_ring(forward)
    (message,) = _as_ring(backward)
    assert _passed_on(said.backward) + Counter([message]) == _as_ring(backward)


def _passed_on(messages):
    return modelled(each for each in messages if each.collective is Collective.SEND_RECEIVE)


def _as_ring(sent):
    assert {each.collective for each in sent} == {Collective.ALL_TO_ALL}
    return Counter(each._replace(collective=Collective.SEND_RECEIVE) for each in sent)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_a_stage_of_a_pipeline_sends_its_share_of_every_micro_batch(data, tensor, shape):
    """Two stages, each of sharded, tensor-parallel blocks: the forward pass of the first one.

    Only with sequence parallelism: without it torch sends the whole activation from every tensor-parallel rank, where
    Megatron sends a part from each. CommDebugMode counts no messages between two devices.
    """
    axes = tuple(Axis(kind, size) for kind, size in ((AxisKind.DP, data), (AxisKind.TP, tensor)) if size > 1)
    sharding = Sharding.FULL if data > 1 else Sharding.NONE
    strategy = Strategy(axes=axes, sharding=sharding, sequence_parallel=tensor > 1)
    with pretended_peers(2 * data * tensor):
        mesh = init_device_mesh("cpu", (2, data, tensor), mesh_dim_names=("pp", "dp", "tp"))
        block: nn.Module = TorchBlock(shape)
        if tensor > 1:
            block = tensor_parallel(block, mesh["tp"], sequence_parallel=True)
        if data > 1:
            block = fully_shard(block, mesh=mesh["dp"], reshard_after_forward=True)
        activation = shape.activation(tensor).detach()
        stage = PipelineStage(
            block, 0, 2, activation.device, activation, output_args=activation, group=mesh["pp"].get_group()
        )
        schedule = ScheduleGPipe(stage, MICRO_BATCHES)
        batch = activation.repeat(MICRO_BATCHES, 1, 1)
        schedule.step(batch)  # the stages first tell each other their shapes
        recorder = Recorder()
        with recorder:
            schedule.step(batch)
    samples = shape.samples * data
    where = price(shape, samples)
    said = layer_traffic(where, shape.block, strategy, samples, shape.sequence)
    sent = entry_messages(where, strategy, samples, shape.sequence)[:1]
    assert modelled(said.forward + sent, MICRO_BATCHES) == Counter(recorder.sent)

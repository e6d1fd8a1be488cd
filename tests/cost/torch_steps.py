"""What the model says of a layer of plain torch, and whole steps of torch to hold it against."""

from __future__ import annotations

from collections import Counter

import torch
from cost_samples import cluster
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch_blocks import Shape
from torch_collectives import Sent, modelled, recorded

from planner.cost.part import conditions
from planner.cost.traffic import LayerTraffic, layer_traffic
from planner.spec.cluster import Precision
from planner.spec.model import Block, Embedding, Head
from planner.spec.strategy import Axis, AxisKind, Sharding, Strategy
from planner.spec.training import Training

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
    sequence = shape.sequence * strategy.sequence_parts
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

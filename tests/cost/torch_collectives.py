"""What torch really sends: collectives of one process among pretended peers, with bytes, group and order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import _redistribute as redistribute
from torch.distributed.tensor.debug import CommDebugMode, _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from planner.cost.message import Collective, Message

# Operator of torch, without its overload: what it does, and whether its message is the result, not the input.
_OPERATORS = {
    "_c10d_functional::all_reduce": (Collective.ALL_REDUCE, False),
    "_c10d_functional::all_gather_into_tensor": (Collective.ALL_GATHER, True),
    "_c10d_functional::reduce_scatter_tensor": (Collective.REDUCE_SCATTER, False),
    "_c10d_functional::all_to_all_single": (Collective.ALL_TO_ALL, False),
    "c10d::allreduce_": (Collective.ALL_REDUCE, False),
    "c10d::_allgather_base_": (Collective.ALL_GATHER, False),
    "c10d::_reduce_scatter_base_": (Collective.REDUCE_SCATTER, False),
    "c10d::send": (Collective.SEND_RECEIVE, False),
}
# FSDP's collectives take their output first: an all-gather's message is that, a reduce-scatter's the input behind it.
_INPUT = {"c10d::_reduce_scatter_base_": 1}
_SILENT = {"_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd"}


class Sent(NamedTuple):
    """One collective: its bytes by the convention of `Message`, and the ranks that take part."""

    collective: Collective
    ranks: tuple[int, ...]
    moved_bytes: int


class Recorder(TorchDispatchMode):
    """Writes down every collective; one that it does not know is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            # The operator comes again, with the tensors of this rank and the collectives that they need.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func.namespace in ("c10d", "_c10d_functional") and name not in _SILENT:
            collective, is_result = _OPERATORS[name]
            given = args[_INPUT.get(name, 0)]
            tensor = result if is_result else given[0] if isinstance(given, list) else given
            self.sent.append(Sent(collective, _ranks(args), tensor.numel() * tensor.element_size()))
        return result


def _ranks(args) -> tuple[int, ...]:
    for value in args:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return tuple(sorted(dist.get_process_group_ranks(dist.ProcessGroup.unbox(value))))
    name = next(value for value in reversed(args) if isinstance(value, str))
    return tuple(sorted(dist.get_process_group_ranks(dist.distributed_c10d._resolve_process_group(name))))


@contextmanager
def pretended_peers(size: int) -> Iterator[None]:
    """This process is rank 0 of `size`; the others take part in every collective and send nothing."""
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # What DTensor remembers of a mesh names groups that are gone; an equal mesh of the next test would find it.
        _clear_sharding_prop_cache()
        redistribute._gen_transform_infos.cache_clear()


@contextmanager
def recorded() -> Iterator[list[Sent]]:
    """Collectives as they happen; at the end torch's own CommDebugMode must have counted as many."""
    recorder = Recorder()
    with CommDebugMode() as counted, recorder:
        yield recorder.sent
    sends = sum(each.collective is Collective.SEND_RECEIVE for each in recorder.sent)
    assert counted.get_total_counts() == len(recorder.sent) - sends, "CommDebugMode counts collectives, not sends"


def modelled(messages: Iterable[Message], steps: int = 1) -> Counter[Sent]:
    """The model's messages in the group of device 0, each as often as it is sent."""
    found: Counter[Sent] = Counter()
    for each in messages:
        offsets = (range(0, degree * stride, stride) for degree, stride in each.group)
        ranks = tuple(sorted(sum(offset) for offset in product(*offsets)))
        assert each.moved_bytes == int(each.moved_bytes)
        found[Sent(each.collective, ranks, int(each.moved_bytes))] += each.times * steps
    return found

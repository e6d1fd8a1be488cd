"""Messages between devices: what collective, over which group, how many bytes, how often; and their seconds.

Parts of a layer list their messages, and price the same list; planner.cost.traffic shows it.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.collectives import (
    Group,
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    reduce_scatter_s,
    send_receive_s,
    size,
)
from planner.cost.numbers import Numbers, peak, where
from planner.spec.cluster import Level
from planner.spec.value import StrEnum


class Collective(StrEnum):
    """What a group of devices does together, by torch.distributed's names."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    SEND_RECEIVE = "send_recv"
    """Every member sends to one neighbour and receives from another."""


class Message(NamedTuple):
    """`times` equal collectives of one group of devices, one after the other."""

    collective: Collective
    group: Group
    moved_bytes: Numbers
    """Of one collective at one member, its own part included: the summed tensor of an all-reduce, the result of an
    all-gather, the input of a reduce-scatter or an all-to-all, what is sent of a send_recv."""
    times: int = 1


Messages = tuple[Message, ...]

_SECONDS = {
    Collective.ALL_REDUCE: all_reduce_s,
    Collective.ALL_GATHER: all_gather_s,
    Collective.REDUCE_SCATTER: reduce_scatter_s,
    Collective.ALL_TO_ALL: all_to_all_s,
    Collective.SEND_RECEIVE: send_receive_s,
}


def is_sent(message: Message) -> bool:
    """Whether anything moves: nobody sends nothing, or to a group of one."""
    return bool(peak(message.moved_bytes) > 0 and message.times > 0 and size(message.group) > 1)


def messages_s(levels: tuple[Level, ...], messages: Messages) -> Numbers:
    """Seconds of messages that follow one another."""
    seconds: Numbers = 0.0
    for each in messages:
        if is_sent(each):
            taken_s = each.times * _SECONDS[each.collective](levels, each.group, each.moved_bytes)
            seconds = seconds + where(each.moved_bytes > 0, taken_s, 0.0)
    return seconds

"""Counting tokens per expert inside a training job: hooks on routers, found by class name; no framework is imported.

A hook never changes an output, and adds to a counter on the router's device without waiting for the device. Each idea
has its room: `routing` (what a router says in one forward pass, and how many tokens that is per expert), `passes`
(which forward passes count), `counter` (one router's counter), `kinds` (how a router is recognised), `frameworks` (the
ones that are known) and `attaching` (a counter on every router of a model).

Known limits: routers inside a replayed CUDA graph do not run Python hooks; a router that is compiled breaks its graph
at the hook, which `torch.compile(fullgraph=True)` refuses.
"""

from runtime.hooks.attaching import attach
from runtime.hooks.counter import RouterCounter
from runtime.hooks.frameworks import ROUTERS
from runtime.hooks.kinds import RouterKind
from runtime.hooks.passes import TokenMask
from runtime.hooks.routing import Choices, Counts, RoutingMap

__all__ = ["ROUTERS", "Choices", "Counts", "RouterCounter", "RouterKind", "RoutingMap", "TokenMask", "attach"]

"""Doubles of what an agent sees of Paddle: layers with hooks of other names, tensors that are not torch's.

Made after Paddle's develop branch: `paddle.nn.Layer` (named_sublayers, register_forward_post_hook, training),
`paddle.incubate.distributed.models.moe.gate` (BaseGate.tot_expert; a gate returns values and indices [tokens, top_k],
-1 where dropped), tensors with `stop_gradient` and DLPack, `paddle.no_grad`.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

gradients = {"on": True}


@contextmanager
def no_grad():
    """As `paddle.no_grad()`."""
    gradients["on"] = False
    try:
        yield
    finally:
        gradients["on"] = True


class Tensor:
    """Numbers that torch can only take over by DLPack."""

    def __init__(self, values, stop_gradient):
        self.values, self.stop_gradient = values, stop_gradient

    def __dlpack__(self, **how):
        return self.values.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Layer:
    """As `paddle.nn.Layer`."""

    def __init__(self):
        self.training = True
        self.hooks = {}

    def named_sublayers(self, prefix="", include_self=False):
        if include_self:
            yield prefix, self
        for name, child in vars(self).items():
            if isinstance(child, Layer):
                yield from child.named_sublayers(f"{prefix}.{name}" if prefix else name, include_self=True)

    def register_forward_post_hook(self, hook):
        self.hooks[id(hook)] = hook
        return Handle(self.hooks, id(hook))

    def eval(self):
        for _, layer in self.named_sublayers(include_self=True):
            layer.training = False

    def __call__(self, *inputs):
        outputs = self.forward(*inputs)
        for hook in self.hooks.values():
            other = hook(self, inputs, outputs)
            outputs = outputs if other is None else other
        return outputs


class Handle:
    """As `HookRemoveHelper`."""

    def __init__(self, hooks, key):
        self.hooks, self.key = hooks, key

    def remove(self):
        self.hooks.pop(self.key)


class BaseGate(Layer):
    def __init__(self, num_expert, world_size):
        super().__init__()
        self.tot_expert = num_expert * world_size


class GShardGate(BaseGate):
    """Chooses what it is told to choose."""

    top_k = 2

    def forward(self, chosen):
        indices = np.asarray(chosen, dtype=np.int64)
        return Tensor(indices * 0.5, not gradients["on"]), Tensor(indices, True)


for double in (BaseGate, GShardGate):
    double.__module__ = "paddle.incubate.distributed.models.moe.gate"


class MoELayer(Layer):
    def __init__(self, num_expert, world_size):
        super().__init__()
        self.gate = GShardGate(num_expert, world_size)

    def forward(self, chosen):
        value, _ = self.gate(chosen)
        return value


class Model(Layer):
    """Two MoE layers."""

    def __init__(self, num_expert, world_size):
        super().__init__()
        self.first = MoELayer(num_expert, world_size)
        self.second = MoELayer(num_expert, world_size)

    def forward(self, first, second):
        return self.first(first), self.second(second)

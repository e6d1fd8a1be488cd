"""Which forward passes of a router count, and which tokens of them.

- Evaluation does not: nothing counts in `eval()` mode, nor without gradients.
- Recomputation of activations runs a forward pass twice. Without reentrance (`use_reentrant=False`) the first pass has
  gradients on and counts, the second runs inside the backward pass and does not. With reentrance (also Megatron's and
  DeepSpeed's own) the first pass runs without gradients, so the second, inside the backward pass, counts. Which of both
  a router is in shows from whether it was counted outside of a backward pass since the counters were last taken.
- The mask is the one of the first pass, whenever the second comes. Autograd numbers its nodes: a reentrant checkpoint
  makes its node, then runs the first pass; so the first pass that belongs to the node that recomputes is the earliest
  that began after the node was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class TokenMask:
    """Which tokens of the current micro-batch are real; one for all routers of a model."""

    real: Tensor | None = None
    """[tokens] in any shape, not 0 where a token counts, in the routers' order of tokens; None: all count."""


@dataclass(frozen=True)
class Pass:
    """A forward pass that counts, the tokens where `real` is not 0; None: all."""

    real: Tensor | None


@dataclass
class Passes:
    """The forward passes of one router."""

    mask: TokenMask
    _counted_forward: bool = False
    _without_gradients: list[tuple[int, Tensor | None]] = field(default_factory=list)
    """First passes that may be recomputed: the number of autograd's next node then, and the mask."""

    def enter(self, training: bool, recording: bool) -> Pass | None:
        """A forward pass is done, with or without gradients being recorded; None: it does not count."""
        if not training:
            return None
        if not recording:
            self._without_gradients.append((torch._C._autograd._get_sequence_nr(), self.mask.real))
            return None
        if torch._C._current_graph_task_id() == -1:
            self._counted_forward = True
            return Pass(self.mask.real)
        return None if self._counted_forward else Pass(self._mask_of_first_pass())

    def forget(self) -> None:
        """A window is over: no pass of it is recomputed any more."""
        self._counted_forward = False
        self._without_gradients.clear()

    def _mask_of_first_pass(self) -> Tensor | None:
        node = torch._C._current_autograd_node()
        after = [n for n, (number, _) in enumerate(self._without_gradients) if number > node._sequence_nr()]
        return self._without_gradients.pop(after[0])[1] if after else self.mask.real

"""The agent: counts tokens per expert inside a training job, and carries out what the planner decides.

Usage is three lines; see `Agent`. What happens, with W = `window_steps`:

    step 1 … W      hooks count on the device; `step()` only counts steps
    step W          boundary 0: ONE all-reduce begins to sum the counts of window 0; nobody waits for it
    step W + 1      it is done; rank 0 hands the window to its courier, which posts it from a background thread while
                    the local policy thinks about it in a process of its own
    then            every W / 10 steps rank 0 looks, without waiting, whether the service has decided about window 0;
                    the length of the decision, 0 if there is none, goes to all ranks by an all-reduce of one number
                    that is read a step later. If it is not 0, one broadcast brings the decision to all ranks, and all
                    carry it out there, at the same step; nobody looks any more
    step 2W         boundary 1: if nothing was heard, rank 0 looks once more, and now takes the local policy's decision
                    if the service's is not there; its length rides in the same all-reduce that sums window 1
    step 2W + 1     if that length is not 0, all carry it out here. Then window 1 is handed over, with the placement
                    that is now in force and the first step under it
    …

While something is wrong with the service the local policy's decision is taken early, too. So a decision has one
window's time to arrive, every rank applies the same one at the same step, and no rank ever waits for HTTP, nor for the
device but to read a decision. An answer that comes later than its boundary stands in the service's history only.
Windows that could not be delivered are delivered later, in order. A window without a token in some MoE layer (nothing
was trained) is left out.

Under pipeline parallelism each rank counts in the rows of its own MoE layers and moves the experts of these; a decision
is about all layers, and carried out on all stages or on none (`runtime.stages`).

The agent changes experts' places only, by `runtime.migration`; it never switches plans: that needs a restart, and is
for `on_decision`. A rank that dies takes the job with it, as it does without the agent: the others hear of it from
torch. What goes wrong otherwise, and what the job does then, is a table in docs/online.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError, TrimtabError
from planner.spec.parse import parse, read_json
from planner.spec.run import Run
from planner.spec.window import Window
from runtime.arguments import Apply, Closing, check
from runtime.beginning import begin
from runtime.boundary import Boundary, Reduction, Stretch
from runtime.exchange import Group, broadcast_bytes
from runtime.hooks import RouterKind, TokenMask
from runtime.policy import LocalPolicy, Policy

logger = logging.getLogger("trimtab.agent")

LOOKS_PER_WINDOW = 10
"""Times that ranks look for a decision before a window is over. A choice: one tiny all-reduce each."""


class Agent:
    """One job's link to the planner. Every rank makes one, calls `step()` after each training step, and `close()`.

    agent = Agent(service="http://planner:8000", run="my-run", model=model, window_steps=50)
    for batch in data:
        loss = train_step(batch)
        agent.step()
    agent.close()
    """

    def __init__(
        self,
        *,
        model: nn.Module | Sequence[nn.Module],
        run: str | None = None,
        service: str | None = None,
        window_steps: int = 50,
        search: str | None = None,
        plan: str | None = None,
        apply: Apply | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        on_decision: Callable[[Decision], bool | None] | None = None,
        token: str | None = None,
        group: Group | None = None,
        timeout_s: float = 10.0,
        policy: Callable[[Run], Policy] = LocalPolicy,
        routers: Sequence[RouterKind] = (),
        same_tokens: Group | None = None,
        record: Path | str | None = None,
        moe_layers: Sequence[int] | None = None,
    ) -> None:
        """Attach to the model's routers and to the run; a collective over `group`, over which tokens are summed.

        `group` (None: all ranks) is every rank that trains this model, those of tensor, sequence, context, expert and
        pipeline parallelism too. `same_tokens`: ranks whose routers see the same tokens (tensor parallelism without
        sequence parallelism); only the first of them counts. `routers`: kinds of routers beside those that are known.

        `run`: id or name of a run. If the service has none, one of this name begins from `search` (a search's id) with
        `plan` (an id from its shortlist; None: its first). `service` and `token` default to the environment's
        TRIMTAB_SERVICE and TRIMTAB_TOKEN; only rank 0 needs them. `apply`: `migrate` moves the experts of our own
        layers with their state in `optimizer`; `advise` never touches the model; None: `migrate` if the model has such
        layers. `on_decision` is called on every rank at the same step, after the agent's own part; it returns True if
        it carried the decision out itself. `policy` makes the policy that decides while the service is away.
        `record`: an .npz file that rank 0 writes the windows to, for `trimtab replay`; with it alone, without `run` and
        a service, the agent counts and decides nothing.

        Under pipeline parallelism, `moe_layers`: the numbers of this rank's routers, in the order of its modules, from
        0 through the MoE layers of the whole model; [] for a stage without any. None: this rank has them all. `model`:
        what this rank has of it, a list where it has several pieces (virtual stages); all stages are in `group`, and
        their ranks call `step()` together, once per step of the optimizer.

        Waits for the service once, at most `runtime.client.ATTACH_PATIENCE` times `timeout_s`; a service that is away
        is a warning. Raises InputError on all ranks if an argument, the model or the run cannot be right, or if ranks
        ask for different things.
        """
        self._group = group
        self._window_steps = window_steps
        self._on_decision = on_decision
        self._optimizer = optimizer
        self._mask = TokenMask()
        given: dict[str, object] = {"run": run, "model": model, "service": service, "window_steps": window_steps}
        given |= {"search": search, "plan": plan, "apply": apply, "optimizer": optimizer, "on_decision": on_decision}
        given |= {"token": token, "timeout_s": timeout_s, "policy": policy, "routers": routers}
        given |= {"same_tokens": same_tokens, "record": record, "moe_layers": moe_layers}
        begun = begin(given, group, self._mask)
        self._device = begun.device
        self._model = begun.model
        self._migrates = begun.migrates
        self._counters = begun.counters
        self._stage = begun.stage
        self._courier = begun.courier
        self._recorder = begun.recorder
        attachment = begun.attachment
        self._plan_id = None if attachment is None else attachment.plan_id
        self._placement = None if attachment is None else attachment.placement
        self._last_window: Window | None = None
        self._boundary: Boundary | None = None
        self._message = b""
        self._pause_s: float | None = None
        self._look: Reduction | None = None
        self._undecided = False  # on all ranks: nothing was heard about the last window yet
        self._placed_step: int | None = None
        self._advised: str | None = None
        self._steps = 0
        self._windows = 0
        self._stretch: Stretch | None = None
        self._closed = self._said_closed = False

    def step(self) -> None:
        """One training step is done. At the end of a window: begin to share the counts; then look what is decided.

        After `close` it does nothing, and says so once.
        """
        if self._closed:
            self._say_closed()
            return
        self._steps += 1
        if self._stretch is not None:
            self._stretch.steps += 1
        self._note_other_moves()
        if self._boundary is not None:
            self._pass_boundary(self._boundary)
        if self._look is not None:
            self._hear(self._look)
        if self._steps % self._window_steps == 0:
            self._begin_boundary()
            return
        if self._stretch is None:
            self._stretch = Stretch(self._device)
        if self._undecided and self._is_time_to_look():
            length = self._prepare_message(early=True)
            self._look = Reduction(torch.full((1,), length, device=self._device), self._group)

    def mask(self, real_tokens: Tensor | None) -> None:
        """From here on, count only tokens where this is not 0; None: all. To be set before each forward pass.

        `real_tokens`: one entry per token of the micro-batch, in any shape, on the model's device, in the order in
        which this rank's routers see them: [batch, length] as Hugging Face's attention_mask, [length, batch] for
        Megatron-Core; with sequence or context parallelism this rank's part. Recomputation uses the mask of its pass.
        """
        if real_tokens is not None and not isinstance(real_tokens, Tensor):
            raise InputError.at("mask", f"must be a tensor or None, got a {type(real_tokens).__name__}")
        self._mask.real = real_tokens

    def close(self, timeout_s: float = 5.0) -> None:
        """Deliver the windows that wait, for at most `timeout_s`, and leave the model as it was found."""
        check(Closing, timeout_s=timeout_s)
        self._closed = True
        self._remove_hooks()
        look, self._look = self._look, None
        if look is not None:
            look.done_within(timeout_s)
        boundary, self._boundary = self._boundary, None
        if boundary is not None and boundary.done_within(timeout_s):
            self._hand_over(boundary, boundary.shared()[0])
        courier, self._courier = self._courier, None
        if courier is not None:
            courier.close(timeout_s)
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._boundary = self._look = None  # other ranks may never come to it
        self.close()

    def _say_closed(self) -> None:
        if not self._said_closed:
            logger.warning("step() after close(): nothing is counted any more")
        self._said_closed = True

    def _begin_boundary(self) -> None:
        length = self._prepare_message(early=False) if self._undecided else 0
        self._undecided = False
        experts = [layer.num_experts for layer in self._model]
        self._boundary = Boundary(self._counters, experts, length, self._group, self._device, self._stretch)
        self._stretch = Stretch(self._device)

    def _is_time_to_look(self) -> bool:
        """Every few steps after a window was handed over; not just before a boundary, which looks anyway."""
        since = self._steps % self._window_steps - 1
        return (
            since > 0
            and since % max(1, self._window_steps // LOOKS_PER_WINDOW) == 0
            and (self._steps + 1) % self._window_steps != 0
        )

    def _prepare_message(self, early: bool) -> int:
        """Length of what rank 0 has to say about the last window; 0: nothing, as on all other ranks."""
        decision = self._pending_decision(early)
        self._message = b"" if decision is None else decision.model_dump_json().encode()
        return len(self._message)

    def _pass_boundary(self, boundary: Boundary) -> None:
        """What was begun a step ago is done: carry out what was decided, hand the window over."""
        self._boundary = None
        tokens, length = boundary.shared()
        if length:
            self._bring(length)
        self._hand_over(boundary, tokens)

    def _hear(self, look: Reduction) -> None:
        """What was looked for a step ago is known to all: carry it out if it is there."""
        self._look = None
        (length,) = look.numbers()
        if length:
            self._undecided = False
            self._bring(length)

    def _bring(self, length: int) -> None:
        """Rank 0's decision to all ranks, and carry it out."""
        began_s = time.perf_counter()
        message = broadcast_bytes(self._message, length, self._group, self._device)
        self._carry_out(parse(Decision, read_json(message, "decision")), began_s)

    def _pending_decision(self, early: bool) -> Decision | None:
        """On rank 0, what was decided about the last window by now."""
        if self._courier is None or self._last_window is None:
            return None
        answer = self._courier.answer(self._last_window, early)
        if answer is None and early:
            return None
        if answer is None:
            logger.info("window %d: nothing was decided in time", self._last_window.index)
            return None
        decision, source = answer
        logger.info("window %d (%s): %s: %s", decision.window, source, decision.action.value, decision.reason)
        return decision

    def _note_other_moves(self) -> None:
        """Experts may have been moved by hand, or by a checkpoint, before or after the training of this step."""
        if moved := self._stage.newly_placed():
            self._placed_step = self._steps - all(layer.trained_where_placed for layer in moved)
            self._stretch = None

    def _carry_out(self, decision: Decision, began_s: float) -> None:
        """`began_s`: when the ranks began to hear of it."""
        if decision.action is Action.REBALANCE and decision.placement is not None and self._migrates:
            try:
                moved = self._stage.migrate(decision.placement, self._optimizer, self._group, self._device)
            except TrimtabError as error:
                message = "window %d: not carried out, nothing was moved: %s"
                logger.warning(message, decision.window, error, exc_info=error.__cause__)
            else:
                self._pause_s = time.perf_counter() - began_s
                self._placed_step = self._steps
                logger.info("window %d: moved %d experts of this rank's layers", decision.window, moved)
        self._stretch = None  # this step was longer than others
        applied = self._on_decision(decision) if self._on_decision is not None else None
        if applied:
            self._placement = decision.placement or self._placement
            self._plan_id = decision.plan_id
            self._placed_step = self._steps
        elif decision.action is Action.SWITCH_PLAN and decision.plan_id != self._advised:
            self._advised = decision.plan_id  # told once, however often it is decided
            logger.warning(
                "window %d: another plan is better (%s): %s", decision.window, decision.plan_id, decision.reason
            )

    def _hand_over(self, boundary: Boundary, tokens: list[list[int]]) -> None:
        index, self._windows = self._windows, self._windows + 1
        pause_s, self._pause_s = self._pause_s, None
        self._last_window = None
        silent = [layer.name for layer, row in zip(self._model, tokens, strict=True) if sum(row) == 0]
        self._undecided = not silent
        if self._courier is None and self._recorder is None:
            return
        if silent:
            logger.warning("window %d is left out: no training step went through %s", index, ", ".join(silent))
            return
        first_step, placed_step = index * self._window_steps, self._placed_step
        self._last_window = Window(
            index=index,
            first_step=first_step,
            num_steps=self._window_steps,
            tokens=tuple(map(tuple, tokens)),
            step_time_s=boundary.step_time_s(),
            plan_id=self._plan_id,
            placement=self._stage.placement() or self._placement,
            pause_s=pause_s,
            placed_step=placed_step if placed_step is not None and placed_step > first_step else None,
        )
        if self._courier is not None:
            self._courier.submit(self._last_window)
        if self._recorder is not None:
            self._recorder.append(self._last_window, next((counter.top_k for counter in self._counters.values()), None))

    def _remove_hooks(self) -> None:
        for counter in self._counters.values():
            counter.detach()

"""What happens in a decider process: windows of its runs come in as they were received, decisions go out as text.

It reads and writes the store itself. Several deciders, of several services, may serve one store: whoever decided on an
old version decides again, so each decision knows all that were made before it, and an index has one decision.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections import OrderedDict
from contextlib import closing
from dataclasses import dataclass, replace
from time import monotonic
from typing import NamedTuple

from api.bodies import read_body
from api.database import NO_DATABASE, is_away, join_database, utc_now
from api.frames import Frames
from api.garbage import spare_the_collector
from api.logs import LogFormat, install_logs
from api.problems import ProblemDocument, problem_of
from api.remembered import remember
from api.run_store import RunStore, Standing
from planner.online import Pricing, decide_at
from planner.spec.decision import Action, Decision
from planner.spec.errors import InternalError, TrimtabError, UnavailableError
from planner.spec.parse import parse
from planner.spec.run import RunContext
from planner.spec.window import Window

RUNS_AT_HAND = 512
"""Runs that a decider keeps in memory, each with its last state: 0.1 MB at 32 x 64, 0.6 MB at 58 x 256."""
NICENESS = 5
"""Below the service's own process, which is quick, and above workers, which have time."""
HELLO = "ready"
"""What a process says first: it can answer."""
PRICINGS_AT_HAND = 64
"""Contexts whose prices a decider keeps: runs on the same shortlist share one."""


class Asked(NamedTuple):
    """A window as it came."""

    number: int
    run_id: str
    body: bytes


class Answered(NamedTuple):
    """The answer to a window."""

    number: int
    text: bytes
    """The decision as JSON."""
    is_repeated: bool
    """It was given before, for a window of this index."""
    action: Action
    seconds: float
    """From the reading of the window to its decision in the store."""


class Refused(NamedTuple):
    """A window that got no decision."""

    number: int
    problem: ProblemDocument
    trace: str = ""
    """Of an error of the service itself."""


class Decided(NamedTuple):
    """A decision, and whether it was given before, for a window of this index."""

    decision: Decision
    is_repeated: bool


@dataclass(frozen=True)
class _AtHand:
    """A run as this process knows it; true as long as the store has the same version."""

    standing: Standing
    pricing: Pricing

    def precedes(self, window: Window) -> bool:
        """Whether the window is newer than all that were answered, so that it cannot be one of them."""
        last = self.standing.state.last_window
        return last is None or window.index > last


class Decider:
    """The online stage over the store. Runs that were asked about last stay in memory, beside the store."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._at_hand: OrderedDict[str, _AtHand] = OrderedDict()
        self._pricings: OrderedDict[str, Pricing] = OrderedDict()

    def decide(self, run_id: str, window: Window) -> Decided:
        """The decision for a window: the one that was made before, if the index was there before.

        Deciding happens outside any transaction; whoever finds that the run has moved on meanwhile decides again.
        Raises InputError and NotFoundError.
        """
        known = self._at_hand.get(run_id)
        while True:
            if known is None or not known.precedes(window):
                version, earlier = self._store.answered(run_id, window.index)
                if earlier is not None:
                    return Decided(earlier, is_repeated=True)
                known = self._known(run_id, version)
                if known.standing.version != version:
                    continue
            standing = known.standing
            decision, state = decide_at(known.pricing, window, standing.state)
            if self._store.record(run_id, standing.version, window, decision, state):
                self._keep(run_id, _AtHand(Standing(standing.context, state, standing.version + 1), known.pricing))
                return Decided(decision, is_repeated=False)
            known = None

    def _known(self, run_id: str, version: int) -> _AtHand:
        """The run as it stood at `version`, or as it stands in the store by now; raises NotFoundError."""
        found = self._at_hand.get(run_id)
        if found is None or found.standing.version != version:
            standing = self._store.standing(run_id)
            pricing = self._pricing(standing.context) if found is None else found.pricing
            found = _AtHand(replace(standing, context=pricing.context), pricing)
        self._keep(run_id, found)
        return found

    def _keep(self, run_id: str, found: _AtHand) -> None:
        remember(self._at_hand, run_id, found, RUNS_AT_HAND)

    def _pricing(self, context: RunContext) -> Pricing:
        """The prices of a context: one for all its runs."""
        key = context.model_dump_json()
        pricing = self._pricings.get(key) or Pricing(context)
        remember(self._pricings, key, pricing, PRICINGS_AT_HAND)
        return pricing


def work(connection: socket.socket, database_url: str, log_format: LogFormat) -> None:
    """Answer windows, one after the other, until the service closes its end of the connection."""
    install_logs(log_format)
    os.nice(NICENESS)
    os.setpgid(0, 0)  # a Ctrl-C in the terminal is for the service, which ends this process when it has the answers
    with closing(join_database(database_url)) as database, connection, Frames(connection) as frames:
        decider = Decider(RunStore(database, utc_now))
        spare_the_collector()
        if not frames.send(HELLO):
            return
        while (asked := frames.receive()) is not None:
            if not frames.send(_answer(decider, Asked(*asked))):
                return


def _answer(decider: Decider, asked: Asked) -> Answered | Refused:
    began = monotonic()
    try:
        decided = decider.decide(asked.run_id, parse(Window, read_body(asked.body)))
        text = decided.decision.model_dump_json().encode()
        return Answered(asked.number, text, decided.is_repeated, decided.decision.action, monotonic() - began)
    except TrimtabError as error:
        trace = traceback.format_exc() if isinstance(error, InternalError) else ""
        return Refused(asked.number, problem_of(error), trace)
    except Exception as error:  # whatever it is, it is the service's fault, and a client waits for an answer
        fault = UnavailableError(NO_DATABASE) if is_away(error) else InternalError(str(error))
        return Refused(asked.number, problem_of(fault), traceback.format_exc())

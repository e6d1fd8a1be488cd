"""The real search on questions that are nearly right: a shortlist, or a refusal that names a field; never a fault."""

from __future__ import annotations

import time

from effort import effort
from hypothesis import given
from hypothesis import strategies as st
from invented_searches import TINY_REQUEST
from mutations import mutated, renumbered

from api.resolution import resolve
from planner.search import search
from planner.spec.errors import InputError, InternalError, TrimtabError
from planner.spec.parse import parse
from planner.spec.request import SearchRequest

PATIENCE_S = 2.0
"""Of the processor: what a search gets before its test goes on to the next; how far it came tells enough."""
OPTIONS = (
    {},
    {"shortlist_size": 2, "axes": ["dp", "tp", "pp", "ep"], "effort_limit": 10_000},
    {"schedules": ["1f1b"], "max_virtual_stages": 2, "max_micro_batch_size": 4, "explain_pruning": True},
    {"scenarios": [{"probability": 0.5}, {"probability": 0.5, "sequence_length": 256, "top_k": 1}], "uniform": True},
)
DENSE = {"preset": "gpt2"}
GROUPS = {"groups": [{"nodes": 1, "devices_per_node": 2, "device": name} for name in ("a100-sxm-80g", "v100-sxm2-32g")]}
QUESTIONS = [
    *({**TINY_REQUEST, "options": options} for options in OPTIONS),
    {**TINY_REQUEST, "model": DENSE},
    {**TINY_REQUEST, "cluster": GROUPS},
]


class EnoughError(Exception):
    """Not a fault: the search works on."""


def patience():
    """A report that ends the search when its time is over."""
    end = time.process_time() + PATIENCE_S

    def report(progress: float, message: str) -> None:
        assert 0 <= progress <= 1 and message
        if time.process_time() > end:
            raise EnoughError

    return report


def outcome(question):
    """The shortlist, or why there is none; raises whatever is a fault."""
    try:
        asked = parse(SearchRequest, question)
        model, cluster = resolve(asked.model, asked.cluster)
        return search(model, cluster, asked.training, asked.options, patience())
    except InternalError:
        raise
    except (TrimtabError, EnoughError) as error:
        return error


@effort(25)
@given(st.sampled_from(QUESTIONS).flatmap(lambda question: mutated(question) | renumbered(question)))
def test_a_question_that_is_nearly_right_is_answered_or_refused(question):
    found = outcome(question)
    if isinstance(found, InputError):
        assert all(problem.field and problem.message for problem in found.problems)
    elif not isinstance(found, Exception):
        assert found.plans and all(entry.estimate.step_time_s > 0 for entry in found.plans)

"""A search tells how far it is, can be stopped at every such word, and heeds its time limit wherever it is."""

from itertools import chain, repeat

import pytest
from small_questions import MIB, a_cluster, a_model, a_training

from planner.search import search
from planner.search.progress import Progress
from planner.spec.errors import CancelledError, NoPlanFitsError
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus

QUESTION = (a_model(blocks=6, experts=4), a_cluster(4, 48 * MIB), a_training(16))


def endless() -> float:
    return 0.0


def heard_by(listener_of):
    heard: list[tuple[float, str]] = []
    listener_of(lambda share, message: heard.append((share, message)))
    return heard


def test_parts_of_a_search_share_the_progress_by_their_weights():
    def run(report):
        first, second = Progress(report, endless).parts([3, 1])
        first(0.0, "a")
        first(1.0, "b")
        second(0.5, "c")

    assert heard_by(run) == [(0.0, "a"), (0.75, "b"), (0.875, "c")]


def test_progress_never_goes_back_and_says_its_last_message_again():
    def run(report):
        progress = Progress(report, endless)
        progress.tell(0.5, "half")
        progress.tell(0.2, "other work")
        progress.tick()

    assert heard_by(run) == [(0.5, "half"), (0.5, "other work"), (0.5, "other work")]


def test_where_time_will_end_the_search_progress_is_at_least_the_time_that_has_passed():
    shares = iter([0.1, 0.9, 5.0])

    def run(report):
        progress = Progress(report, lambda: next(shares))
        for _ in range(3):
            progress.tell(0.3, "on")

    assert [share for share, _ in heard_by(run)] == [0.3, 0.9, 0.97]


def test_progress_ends_at_one_and_comes_from_all_parts():
    heard = heard_by(lambda report: search(*QUESTION, report=report))
    shares = [share for share, _ in heard]
    assert shares == sorted(shares) and shares[-1] == 1
    assert {message.split()[0] for _, message in heard} >= {"bounding", "pricing", "solving", "choosing", "done"}


def test_a_search_stops_at_whatever_word_its_listener_stops_it():
    words = len(heard_by(lambda report: search(*QUESTION, report=report)))
    for last in range(1, words, words // 12):
        heard = 0

        def report(share: float, message: str, last: int = last) -> None:
            nonlocal heard
            heard += 1
            if heard == last:
                raise CancelledError("enough")

        with pytest.raises(CancelledError):
            search(*QUESTION, report=report)
        assert heard == last


def test_wherever_time_ends_the_search_the_bound_holds():
    exact = search(*QUESTION)
    optimum = exact.plans[0].estimate.step_time_s
    reads = 0

    def counting() -> float:
        nonlocal reads
        reads += 1
        return 0.0

    search(*QUESTION, Options(time_limit_s=1.0), clock=counting)
    statuses = set()
    for last in range(1, reads, reads // 12):
        clock = chain([0.0] * last, repeat(9.0)).__next__
        hurried = search(*QUESTION, Options(time_limit_s=1.0), clock=clock)
        statuses.add(hurried.certificate.status)
        assert hurried.certificate.lower_bound_s <= optimum * (1 + 1e-12)
        assert hurried.plans[0].estimate.step_time_s >= optimum * (1 - 1e-12)
    assert statuses == set(CertificateStatus)


def test_when_time_is_up_no_more_scenarios_are_searched():
    heard = heard_by(
        lambda report: search(*QUESTION, Options(time_limit_s=1.0), report, clock=chain([0.0], repeat(9.0)).__next__)
    )
    pricings = [message for _, message in heard if message.startswith("pricing 1 stage,")]
    assert len(set(pricings)) == 1, "one plan, and no more"


def test_without_any_plan_time_does_not_end_the_search():
    question = (a_model(blocks=6), a_cluster(2, 2 * MIB), a_training(4))
    with pytest.raises(NoPlanFitsError):
        search(*question, Options(time_limit_s=1.0), clock=chain([0.0], repeat(9.0)).__next__)

"""What both executors promise, on real processes: of this machine, and of a Dask cluster."""

import os
import signal
import time
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path

import invented_searches
import pytest
from distributed import LocalCluster

from api.executors.dask import DaskExecutor
from api.executors.local import LocalExecutor
from api.executors.port import Died, Failed, Outcome, Succeeded, settle
from api.values import SearchJob
from planner.spec.errors import UnavailableError
from planner.spec.request import SearchRequest
from profiles import resolve_cluster, resolve_model

REQUEST = SearchRequest.model_validate(invented_searches.TINY_REQUEST)
JOB = SearchJob(
    id="job",
    model=resolve_model(REQUEST.model),
    cluster=resolve_cluster(REQUEST.cluster),
    training=REQUEST.training,
    options=REQUEST.options,
)
END_S = 60.0


@pytest.fixture(scope="module")
def cluster():
    """Two workers with one thread each, in processes of their own."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as started:
        yield started


def local(request, search):
    return LocalExecutor(search, 2, 8 * 2**30)


def dask(request, search):
    address = request.getfixturevalue("cluster").scheduler_address
    return DaskExecutor(search, address.replace("tcp://", "dask://"), None)


@pytest.fixture(params=[local, dask])
def executing(request):
    """A function that opens the executor for a search."""
    opened = []

    def open_(search):
        executor = request.param(request, search)
        executor.start()
        opened.append(executor)
        until(lambda: has_places(executor))
        return executor

    yield open_
    for executor in opened:
        executor.close()


def has_places(executor, number=2):
    try:
        return executor.places() == number
    except UnavailableError:
        return False


class Ears:
    """Hears what is reported."""

    def __init__(self):
        self.heard = []

    def __call__(self, progress, message):
        self.heard.append((progress, message))


def test_a_search_succeeds_and_its_result_is_the_search_s_own(executing):
    ears = Ears()
    ended = executing(invented_searches.instant).submit(JOB, ears).result(END_S)
    assert isinstance(ended, Succeeded)
    expected = invented_searches.instant(JOB.model, JOB.cluster, JOB.training, JOB.options, lambda *_: None)
    assert ended.shortlist == expected
    until(lambda: ears.heard)
    assert ears.heard[0] == (0.0, "starting"), "told when the work begins"


def test_progress_is_told_while_the_search_runs(executing):
    ears = Ears()
    outcome = executing(invented_searches.endless).submit(JOB, ears)
    until(lambda: len(ears.heard) >= 4)
    assert not outcome.done()
    assert [progress for progress, _ in ears.heard] == sorted(progress for progress, _ in ears.heard)
    assert "step" in ears.heard[-1][1]


@pytest.mark.parametrize(
    ("search", "status"),
    [(invented_searches.misses, 422), (invented_searches.refuses, 422), (invented_searches.breaks, 500)],
)
def test_a_search_that_fails_says_why_but_tells_no_secret(executing, search, status):
    ended = executing(search).submit(JOB, Ears()).result(END_S)
    assert isinstance(ended, Failed) and ended.problem.status == status
    assert "secret" not in ended.problem.detail


def test_a_search_that_is_cancelled_stops_and_frees_its_place(executing, tmp_path):
    executor, log = executing(partial(invented_searches.until_stopped, str(tmp_path))), tmp_path
    ears = [Ears() for _ in range(2)]
    outcomes = [executor.submit(job(f"first-{number}"), ears[number]) for number in range(2)]
    until(lambda: len(list(log.glob("*.runs"))) == 2)
    begin = time.monotonic()
    assert all(outcome.cancel() for outcome in outcomes)
    with pytest.raises(CancelledError):
        outcomes[0].result(END_S)
    until(lambda: not any(runs(path) for path in log.glob("*.runs")))
    assert time.monotonic() - begin < 10, "a second where the machine is free"
    third = Ears()
    executor.submit(job("third"), third)
    until(lambda: any("step" in message for _, message in third.heard))


def test_a_search_that_waits_at_the_executor_can_be_cancelled_too(executing):
    executor = executing(invented_searches.endless)
    many = [executor.submit(job(f"job-{number}"), Ears()) for number in range(5)]
    assert all(outcome.cancel() for outcome in reversed(many))


def test_where_the_worker_dies_the_outcome_says_so_and_others_go_on(executing, tmp_path):
    executor = executing(partial(invented_searches.until_stopped, str(tmp_path)))
    ears, other = Ears(), Ears()
    outcome, survivor = executor.submit(job("victim"), ears), executor.submit(job("survivor"), other)
    until(lambda: len(list(tmp_path.glob("*.runs"))) == 2 and all(len(each.heard) > 2 for each in (ears, other)))
    [pid] = [int(message.split()[-1]) for _, message in ears.heard if "of" in message][-1:]
    os.kill(pid, signal.SIGKILL)
    ended = outcome.result(END_S)
    assert isinstance(ended, Died) and "worker" in ended.reason
    assert not survivor.done()
    until(lambda: has_places(executor))


def test_closing_ends_all_that_runs(executing, tmp_path):
    executor = executing(partial(invented_searches.until_stopped, str(tmp_path)))
    outcomes = [executor.submit(job(f"job-{number}"), Ears()) for number in range(2)]
    until(lambda: len(list(tmp_path.glob("*.runs"))) == 2)
    executor.close()
    assert all(outcome.cancelled() for outcome in outcomes)
    until(lambda: not any(runs(path) for path in tmp_path.glob("*.runs")))


def test_of_outcomes_that_come_at_the_same_time_one_holds_and_nobody_stumbles():
    begun: Future[Outcome] = Future()
    begun.set_running_or_notify_cancel()  # as far as another thread may have come
    cancelled: Future[Outcome] = Future()
    cancelled.cancel()
    for reason in ("first", "second"):
        settle(begun, Died(reason))
        settle(cancelled, Died(reason))
    assert begun.result() == Died("first") and cancelled.cancelled()


def job(name):
    return JOB.model_copy(update={"id": name})


def runs(path: Path):
    """Whether the search that keeps this file goes on: it writes every few milliseconds."""
    before = path.stat().st_mtime_ns
    time.sleep(0.3)
    return path.stat().st_mtime_ns != before


def until(holds, seconds=END_S):
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)

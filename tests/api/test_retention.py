"""Old windows go, in bites and by one service at a time; decisions stay, and answer an index that comes again."""

import time
from datetime import timedelta
from threading import Event

import pytest
from test_stores import BEGIN, Clock, begun, done, queue, record, searches, window  # noqa: F401

from api import retention
from api.decider import Decider
from api.retention import BITE, OldWindows, Retention
from api.run_pictures import life
from api.run_store import RunStore
from planner.view import run_picture

pytestmark = pytest.mark.both_databases


class SetClock(Clock):
    """Stands where a test sets it."""

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def runs(database, clock):
    return RunStore(database, clock)


@pytest.fixture
def run(searches, queue, runs, clock):  # noqa: F811
    """Four windows, a day apart."""
    run = begun(searches, queue, runs)
    for index in range(4):
        clock.now = BEGIN + timedelta(days=index)
        record(runs, run.id, index)
    return run


def old(database, clock, holder="h1", keep_days=1.5):
    return OldWindows(database, clock, holder, keep_days)


def test_windows_go_when_they_are_older_than_asked_for(database, clock, runs, run):
    windows = old(database, clock)
    assert windows.any() and windows.remove_some() == 2
    assert not windows.any() and windows.remove_some() == 0
    assert runs.windows(run.id, 10) == (window(2), window(3))
    assert runs.window_indices(run.id) == (2, 3)


def test_decisions_stay_and_answer_an_index_that_comes_again(database, clock, runs, run):
    before, standing = runs.decisions(run.id, 10), runs.standing(run.id)
    old(database, clock, keep_days=0.001).remove_some()
    assert (runs.decisions(run.id, 10), runs.standing(run.id)) == (before, standing)
    again = Decider(runs).decide(run.id, window(1))
    assert again.is_repeated and again.decision == before[1]
    assert not Decider(runs).decide(run.id, window(4)).is_repeated


def test_a_run_is_drawn_from_what_is_kept_and_says_how_many_windows_came(database, clock, runs, run):
    old(database, clock).remove_some()
    drawn = life(runs, run.id)
    assert (drawn.num_windows, [mark.window for mark in drawn.marks]) == (4, [2, 3])
    assert "<svg" in run_picture(drawn)
    clock.now += timedelta(days=10)
    old(database, clock).remove_some()
    assert (life(runs, run.id).num_windows, life(runs, run.id).marks) == (4, ())
    assert "<svg" in run_picture(life(runs, run.id))


def test_one_service_at_a_time_removes_and_another_goes_on_when_it_is_gone(database, clock, run):
    assert old(database, clock, "h1", keep_days=2.5).remove_some() == 1
    assert old(database, clock, "h2", keep_days=1.5).remove_some() == 0
    clock.now += timedelta(seconds=121)
    assert old(database, clock, "h2", keep_days=1.5).remove_some() == 1
    assert old(database, clock, "h1", keep_days=0.5).remove_some() == 0


def test_many_go_in_bites(database, clock, searches, queue, runs):  # noqa: F811
    run = begun(searches, queue, runs)
    for index in range(BITE + 3):
        record(runs, run.id, index)
    clock.now += timedelta(days=2)
    windows = old(database, clock)
    assert [windows.remove_some() for _ in range(3)] == [BITE, 3, 0]


def test_a_service_removes_what_is_old_and_counts_it(serve, database, clock, run):
    client = serve(keep_windows_days=1.0)
    end = time.monotonic() + 20
    while client.get(f"/v1/runs/{run.id}/windows").json()["items"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(client.get(f"/v1/runs/{run.id}/decisions").json()["items"]) == 4
    assert "trimtab_windows_removed_total 4.0" in client.get("/metrics").text
    assert client.get(f"/v1/runs/{run.id}/picture").status_code == 200


class Stumbling(OldWindows):
    """Fails once, in a way that nobody thought of."""

    def any(self):
        if not self.__dict__.setdefault("stumbled", False):
            self.stumbled = True
            raise OverflowError
        return super().any()


def test_windows_are_removed_after_an_error_of_any_kind(database, clock, run, monkeypatch, caplog):
    monkeypatch.setattr(retention, "PERIOD_S", 0.01)
    removed = Event()
    worker = Retention(Stumbling(database, clock, "h1", 1.5), lambda number: removed.set())
    worker.start()
    assert removed.wait(20)
    worker.close()
    assert "OverflowError" in caplog.text

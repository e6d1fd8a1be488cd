"""The rate limit by itself, with a clock that a test moves; what a service does with it is in test_request_limits."""

import pytest

from api import rate_limit
from api.rate_limit import RateLimit
from planner.spec.errors import TooManyRequestsError


class Clock:
    """Stands still until a test moves it."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def asked(limit, *who):
    """Whether one more request is let through."""
    try:
        limit.check(*who)
    except TooManyRequestsError:
        return False
    return True


def test_requests_are_counted_anew_when_the_minute_of_the_first_is_over(clock):
    limit = RateLimit(2, clock)
    assert asked(limit, "a")
    clock.now_s += 59.0
    assert [asked(limit, "a") for _ in range(2)] == [True, False]
    clock.now_s += 1.0
    assert [asked(limit, "a") for _ in range(3)] == [True, True, False]


def test_who_is_refused_is_told_how_much_of_the_minute_is_left(clock):
    limit = RateLimit(1, clock)
    limit.check("a")
    for passed_s, left_s in ((20.0, 40.0), (39.5, 1.0)):
        clock.now_s += passed_s
        with pytest.raises(TooManyRequestsError, match=f"go on in {left_s:.0f} s") as refused:
            limit.check("a")
        assert refused.value.retry_after_s == left_s


def test_each_client_has_a_count_of_its_own(clock):
    limit = RateLimit(1, clock)
    assert [asked(limit, *who) for who in (("a",), ("a", "run"), ("b",), ("a",))] == [True, True, True, False]


def test_of_too_many_clients_the_first_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr(rate_limit, "CLIENTS_AT_HAND", 2)
    limit = RateLimit(1, clock)
    assert [asked(limit, who) for who in "abba"] == [True, True, False, False]
    assert asked(limit, "c")
    assert [asked(limit, who) for who in "bca"] == [False, False, True]


def test_without_a_limit_nobody_is_refused(clock):
    limit = RateLimit(0, clock)
    assert all(asked(limit, "a") for _ in range(1000))

"""Half of the tests need a program that not every machine has: where it is missing that is told, and CI fails."""

import pytest
from missing import VARIABLE, without


def test_a_test_whose_program_is_missing_says_why_it_is_skipped(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such program"):
        without("no such program")


def test_in_ci_it_fails(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match="no such program"):
        without("no such program")


def test_ci_says_that_it_is_ci(request):
    assert f"\nexport {VARIABLE}=1\n" in (request.config.rootpath / ".ci" / "run").read_text()

"""The same question has the same answer, whatever the process, its hash seed, its threads and its neighbours."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from small_questions import MIB, a_cluster, a_model, a_training

from planner.search import search
from planner.spec.plan import ScheduleKind
from planner.spec.request import Options

QUESTIONS = {
    "dense": (a_model(blocks=5), a_cluster(4, 16 * MIB), a_training(16)),
    "moe": (a_model(blocks=4, experts=8), a_cluster(4, 30 * MIB), a_training(16)),
    "tied": (a_model(blocks=3, tied=True), a_cluster(3, 30 * MIB), a_training(12)),
}
OPTIONS = {
    "whole": Options(schedules=tuple(ScheduleKind)),
    "hurried": Options(effort_limit=1000),
    "uniform": Options(uniform=True),
}


def answer(question: str, options: str) -> str:
    """All that search() says, but for how long it took."""
    return search(*QUESTIONS[question], OPTIONS[options]).model_copy(update={"search_time_s": 0.0}).model_dump_json()


def answers() -> list[str]:
    return [answer(question, options) for question in QUESTIONS for options in OPTIONS]


@pytest.mark.parametrize(
    "surroundings",
    [
        {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "4000", "OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"},
    ],
)
def test_hash_seeds_and_threads_of_blas_change_nothing(surroundings):
    script = "import test_same_answer_everywhere as it; print('\\n'.join(it.answers()))"
    paths = [os.path.dirname(__file__), *filter(None, sys.path)]
    environment = {**os.environ, **surroundings, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == answers()


def test_any_number_of_workers_at_once_gives_the_answer_of_one():
    asked = [(question, options) for question in QUESTIONS for options in OPTIONS]
    expected = [answer(*pair) for pair in asked]
    for workers in (2, 3):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            assert list(pool.map(answer, *zip(*asked, strict=True))) == expected

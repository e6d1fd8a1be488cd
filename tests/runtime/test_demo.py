"""`make demo`, shortened: it keeps its promises, ends its processes, and fails loudly when it must."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.demo import check_promises, wait_for_service
from planner.spec.decision import Action, Decision
from planner.spec.errors import UnavailableError
from planner.spec.placement import Move, Placement
from runtime.comparison import Comparison, Trial
from runtime.example import Progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shortened_demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "api.demo", "--steps", "41"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return done, folder


def test_the_demo_keeps_its_promises(shortened_demo):
    done, _ = shortened_demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 4 and "✗" not in done.stdout
    assert "window  0: " in done.stdout and ": rebalance" in done.stdout and "step   30" in done.stdout
    assert "/picture" in done.stdout and "/docs" in done.stdout and "image/svg+xml" in done.stdout


def test_the_demo_leaves_nothing_behind(shortened_demo):
    done, folder = shortened_demo
    left = {path.name for path in folder.iterdir()}
    assert not {name for name in left if not name.startswith("torchinductor")}, "the cache of torch may stay"
    pid = int(done.stdout.split("(process ")[1].split(",")[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def comparison(*imbalance):
    trial = Trial(wall_s=1, cpu_s=(1, 1))
    return Comparison(rounds=((trial,) * 3,), imbalance=imbalance)


def rebalance(*moves):
    return Decision(
        window=0,
        action=Action.REBALANCE,
        plan_id="p",
        placement=Placement(layers=((0, 1),), num_ranks=2),
        moves=moves,
        gain_s_per_step=1.0,
        cost_s=1.0,
        payback_steps=1.0,
        horizon_steps=10.0,
        imbalance_before=1.5,
        imbalance_after=1.1,
        imbalance_bound=1.0,
        imbalance_bounds=(1.0,),
        reason="it pays",
    )


def test_each_promise_can_fail():
    learned = [Progress(10, 4.0, 0.1), Progress(20, 3.0, 0.1)]
    still, even = comparison(1.5, 1.2, 1.2), comparison(1.5, 1.2, 1.1)
    moved = rebalance(Move(layer=0, expert=3, from_rank=0, to_rank=1, to_slot=1))
    assert list(check_promises(still, learned, [rebalance()], 0.1).values()) == [True, False, False, False]
    assert list(check_promises(even, learned[:1], [moved], 1e-6).values()) == [False, True, True, True]


def test_a_rank_that_fails_ends_the_demo_with_one_line_and_code_1():
    program = (
        "import api.demo, runtime.launch\n"
        "def main() -> None:\n"
        "    runtime.launch.launch(int, 1, ('ten',))\n"
        "api.demo.main = main\n"
        "if __name__ == '__main__': api.demo.run()\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("demo: rank 0 failed: TypeError: ")


def test_a_service_that_does_not_start_is_told_with_its_log(tmp_path):
    log = tmp_path / "service.log"
    log.write_text("no such database")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(UnavailableError, match="did not start:\nno such database"):
        wait_for_service(process, log)

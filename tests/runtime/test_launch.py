"""Ranks as processes: results come back, failures are told, nobody stays behind."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from planner.spec.errors import RankFailedError, UnavailableError
from runtime.launch import launch


def sum_of_ranks(report, offset):
    total = torch.tensor([float(dist.get_rank() + offset)])
    report(("before", dist.get_rank()))
    dist.all_reduce(total)
    return total


def fail_on_rank_one(report):
    if dist.get_rank() == 1:
        raise ValueError("as asked")
    dist.barrier()


def die_on_rank_one(report):
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def never_return(report):
    report(os.getpid())
    time.sleep(600)


def test_results_come_in_the_order_of_ranks_and_reports_while_they_run():
    heard = []
    results = launch(sum_of_ranks, 2, (10,), on_report=lambda rank, message: heard.append((rank, message)))
    assert [result.tolist() for result in results] == [[21.0], [21.0]]
    assert sorted(heard) == [(0, ("before", 0)), (1, ("before", 1))]


def test_the_traceback_of_a_rank_that_raises_is_told():
    with pytest.raises(RankFailedError, match=r"rank 1 failed:(.|\n)*Traceback(.|\n)*ValueError: as asked") as caught:
        launch(fail_on_rank_one, 2, timeout_s=60)
    assert caught.value.summary == "rank 1 failed: ValueError: as asked"


def test_a_rank_that_dies_ends_the_job():
    with pytest.raises(RankFailedError, match=r"rank 1 died|Connection closed by peer|rank 0 failed"):
        launch(die_on_rank_one, 2, timeout_s=60)


def test_ranks_that_hang_are_ended_at_the_deadline():
    pids = []
    with pytest.raises(UnavailableError, match="did not finish in time"):
        launch(never_return, 2, on_report=lambda rank, pid: pids.append(pid), timeout_s=20)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

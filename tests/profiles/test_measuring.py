"""Measuring: the stopwatch with clocks of our own, shapes and groups, and a short real run on two processes."""

import time

import torch

from planner.spec.cluster import Precision
from profiles.fitting import fit
from profiles.measure import Backend, Wish, measure
from profiles.measure.collectives import group_shapes, groups_of, message_sizes
from profiles.measure.kernels import elementwise_shapes, matmul_shapes
from profiles.measure.stopwatch import (
    ALWAYS_S,
    LEAST_REPETITIONS,
    MOST_REPETITIONS,
    MOST_TRIES,
    HostTimer,
    Stopwatch,
    Team,
)
from profiles.measurement import ElementwiseWork, Operation
from runtime.launch import launch

ALONE = Team(0, 1, 1, torch.device("cpu"))


class TimerOf:
    """Work that takes these seconds, one after the other, then the last of them for ever."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)
        self.calls = 0

    def __call__(self, work, repetitions, prepare=None):
        found = []
        for _ in range(repetitions):
            self.calls += 1
            found.append(self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])
        return found


class SlowTimer:
    """Work that really takes longer than what is always measured."""

    def __init__(self):
        self.calls = []

    def __call__(self, work, repetitions, prepare=None):
        self.calls.append(repetitions)
        time.sleep(2 * ALWAYS_S)
        return [2 * ALWAYS_S] * repetitions


def test_the_host_timer_counts_the_work_and_not_its_preparation():
    now = [0.0]

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    assert HostTimer(lambda: now[0])(takes(2.0), 3, takes(5.0)) == [2.0, 2.0, 2.0]


def test_the_lower_quartile_neither_believes_a_lucky_repetition_nor_a_disturbed_one():
    timer = TimerOf(9.0, 1.0, 0.1, *[1.0] * 60, *[7.0] * 60, 1.0)
    assert Stopwatch(ALONE, timer).seconds(lambda: None, 3600.0) == 1.0


def test_repetitions_follow_the_wall_clock_within_bounds():
    timer = TimerOf(1e-9)
    Stopwatch(ALONE, timer).seconds(lambda: None, 3600.0)
    assert timer.calls == 2 + MOST_REPETITIONS
    timer = TimerOf(1e-9)
    Stopwatch(ALONE, timer).seconds(lambda: None, 0.0)
    assert timer.calls == 2 + LEAST_REPETITIONS


def test_work_that_does_not_fit_the_allowance_is_left_out_after_a_few_tries():
    timer = SlowTimer()
    assert Stopwatch(ALONE, timer).seconds(lambda: None, 0.0) is None
    assert timer.calls == [1] * (1 + MOST_TRIES)


def test_groups_cover_all_ranks_once():
    assert groups_of(8, 2, 1) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert groups_of(8, 2, 4) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_groups_are_halves_of_a_node_the_node_and_one_device_of_each_node():
    assert group_shapes(Team(0, 8, 8, torch.device("cpu"))) == [(2, 1), (4, 1), (8, 1)]
    assert group_shapes(Team(0, 6, 6, torch.device("cpu"))) == [(2, 1), (6, 1)]
    assert group_shapes(Team(0, 16, 8, torch.device("cpu"))) == [(2, 1), (4, 1), (8, 1), (2, 8)]
    assert group_shapes(Team(0, 4, 1, torch.device("cpu"))) == [(4, 1)]


def test_small_shapes_come_first_and_every_kind_of_work_is_there():
    products = [rows * columns * depth * groups for rows, columns, depth, groups in matmul_shapes(2048)]
    assert products == sorted(products)
    assert {work for work, _, _ in elementwise_shapes(2048)} == set(ElementwiseWork)


def test_messages_stay_within_the_memory():
    assert max(message_sizes(Backend.CUDA, 2**40)) == 2**28
    assert max(message_sizes(Backend.CPU, 2**40)) == 2**24
    assert max(message_sizes(Backend.CPU, 2**24)) == 2**22


def test_two_processes_measure_every_kind_of_work_in_a_short_time():
    wish = Wish(backend=Backend.CPU, ranks_per_node=2, time_budget_s=5.0, memory_limit_bytes=2**26)
    told = []
    results = launch(measure, 2, (wish,), on_report=lambda rank, done: told.append((rank, *done)), timeout_s=200)
    (machine, samples), (_, others) = results
    assert samples == others
    assert {sample.kind for sample in samples} == {
        "launch",
        "elementwise",
        "matmul",
        "attention",
        "collective",
        "overlap",
    }
    assert {sample.operation for sample in samples if sample.kind == "collective"} <= set(Operation)
    assert machine.torch_version == torch.__version__
    assert (machine.num_devices, machine.precision) == (2, Precision.FP32)
    shares = [share for rank, share, _ in told if rank == 0]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert fit("this", machine, samples).intra_node is not None

"""The process that all others of a service are forked from: it has loaded what they need, once for all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running

PRELOADED = ("api.decider", "api.executors.process", "planner.search", "pulp")
"""What deciders and workers do, and what they load only when they do it."""

ONE_THREAD = ("OMP_NUM_THREADS", "1")
"""Each process is for one core; the threads with which numpy would help itself to others take more than they give."""

KEPT_MEMORY = (("MALLOC_MMAP_THRESHOLD_", str(32 << 20)), ("MALLOC_TRIM_THRESHOLD_", str(64 << 20)))
"""What glibc's malloc comes to by itself once a process has freed an array of 32 MiB. A decider never does: what
it gives back to the system it asks for again in the next window, which takes a tenth of its time (docs/log.md)."""


def start_fork_server() -> None:
    """Start it, unless it runs; it loads beside whoever called, and the first process waits until it has.

    Begun before the service itself loads, it takes none of the time until that is ready.
    """
    for name, value in (ONE_THREAD, *KEPT_MEMORY):
        os.environ.setdefault(name, value)
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    resource_tracker.ensure_running()  # which unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it inherits that: a Ctrl-C is for the service
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

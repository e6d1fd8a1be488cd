"""Deciders that end the way a test wants: module-level functions, so that their processes find them by name."""

import logging
import os
import signal
import time
from pathlib import Path

from api import decider


def work_after(act, *arguments):
    """`decider.work`, which calls `act(run_id, window)` before it decides on a window."""
    decide = decider.Decider.decide

    def acting(self, run_id, window):
        act(run_id, window)
        return decide(self, run_id, window)

    decider.Decider.decide = acting
    decider.work(*arguments)


def is_13(window):
    """Whether its first expert got 13 tokens: the window over which something happens."""
    return window.tokens[0][0] == 13


def dies_of_13(connection, database_url, log_format):
    def die(_run_id, window):
        if is_13(window):
            os.kill(os.getpid(), signal.SIGKILL)

    work_after(die, connection, database_url, log_format)


def hangs_over_13(connection, database_url, log_format):
    def hang(_run_id, window):
        while is_13(window):
            time.sleep(0.02)

    work_after(hang, connection, database_url, log_format)


def breaks_over_13(connection, database_url, log_format):
    def break_(_run_id, window):
        if is_13(window):
            raise RuntimeError("a secret of the service")

    work_after(break_, connection, database_url, log_format)


def ends_at_once_before(marker, connection, database_url, log_format):
    """As one that cannot live; until a file is there."""
    if Path(marker).exists():
        decider.work(connection, database_url, log_format)


def waits_for(marker, connection, database_url, log_format):
    """Says hello, and answers when a file is there."""

    def wait(_run_id, _window):
        while not Path(marker).exists():
            time.sleep(0.02)

    work_after(wait, connection, database_url, log_format)


def tells_a_password(connection, database_url, log_format):
    """Logs of each window, and what must not get into a line."""

    def tell(run_id, _window):
        logging.getLogger(__name__).warning("a window of %s, for postgresql://me:hush@host/db", run_id)

    work_after(tell, connection, database_url, log_format)


def notes_what_it_is_asked(file, connection, database_url, log_format):
    """A line in the file for each window, with the id of its run."""

    def note(run_id, _window):
        with Path(file).open("a") as notes:
            notes.write(f"{run_id}\n")

    work_after(note, connection, database_url, log_format)

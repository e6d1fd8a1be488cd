"""Deciders that end the way a test wants: module-level functions, so that their processes find them by name."""

import logging
import os
import signal
import time
from pathlib import Path

from api import decider


def die_of_layer(doomed):
    """Decide, but die by SIGKILL of a window whose first expert got `doomed` tokens."""
    decide = decider.Decider.decide

    def deadly(self, run_id, window):
        if window.tokens[0][0] == doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return decide(self, run_id, window)

    decider.Decider.decide = deadly


def dies_of_13(connection, database_url, log_format):
    die_of_layer(13)
    decider.work(connection, database_url, log_format)


def hangs_over_13(connection, database_url, log_format):
    decide = decider.Decider.decide

    def endless(self, run_id, window):
        while window.tokens[0][0] == 13:
            time.sleep(0.02)
        return decide(self, run_id, window)

    decider.Decider.decide = endless
    decider.work(connection, database_url, log_format)


def breaks_over_13(connection, database_url, log_format):
    decide = decider.Decider.decide

    def broken(self, run_id, window):
        if window.tokens[0][0] == 13:
            raise RuntimeError("a secret of the service")
        return decide(self, run_id, window)

    decider.Decider.decide = broken
    decider.work(connection, database_url, log_format)


def ends_at_once_before(marker, connection, database_url, log_format):
    """As one that cannot live; until a file is there."""
    if Path(marker).exists():
        decider.work(connection, database_url, log_format)


def waits_for(marker, connection, database_url, log_format):
    """Says hello, and answers when a file is there."""
    decide = decider.Decider.decide

    def patient(self, run_id, window):
        while not Path(marker).exists():
            time.sleep(0.02)
        return decide(self, run_id, window)

    decider.Decider.decide = patient
    decider.work(connection, database_url, log_format)


def tells_a_password(connection, database_url, log_format):
    """Logs of each window, and what must not get into a line."""
    decide = decider.Decider.decide

    def talkative(self, run_id, window):
        logging.getLogger(__name__).warning("a window of %s, for postgresql://me:hush@host/db", run_id)
        return decide(self, run_id, window)

    decider.Decider.decide = talkative
    decider.work(connection, database_url, log_format)


def notes_what_it_is_asked(file, connection, database_url, log_format):
    """A line in the file for each window, with the id of its run."""
    decide = decider.Decider.decide

    def noted(self, run_id, window):
        with Path(file).open("a") as notes:
            notes.write(f"{run_id}\n")
        return decide(self, run_id, window)

    decider.Decider.decide = noted
    decider.work(connection, database_url, log_format)

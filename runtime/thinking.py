"""The process of `runtime.policy.LocalPolicy`: a run in, then windows in and decisions out, each a line of JSON.

Run by its path, with the number of the process that it belongs to. It ends when its input does, or with its owner.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from planner.online import begin, decide
from planner.spec.parse import parse, read_json
from planner.spec.run import Run
from planner.spec.window import Window

OWNER_CHECK_S = 2.0
"""Other processes may hold the input open after the owner has died: how often to look for it."""


def main(owner: int) -> None:
    """Answer windows, until there is nobody to answer to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which then closes the input
    os.nice(10)
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    lines = iter(sys.stdin.buffer)
    first = next(lines, None)
    if first is None:
        return  # the job ended before it had a run
    run = parse(Run, read_json(first, "run"))
    state = begin(run.context, run.plan_id)
    for line in lines:
        try:
            window = parse(Window, read_json(line, "window"))
            decision, state = decide(window, state, run.context)
        except Exception as error:  # whatever it is, the owner is told, and the next window may be better
            answer = json.dumps({"problem": str(error) or repr(error)})
        else:
            answer = f'{{"decision":{decision.model_dump_json()}}}'
        try:
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the job died while this thought: `_end_with` would end it a moment later
            os._exit(0)


def _end_with(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(OWNER_CHECK_S)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""`make fuzz`: the tests of this folder again and again with new seeds and more examples, until the time is over.

A round that fails ends it, with the command that repeats the round.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
FACTOR = 10
RUNS = 1000


def main() -> int:
    """The exit status of the round that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no round after so many seconds")
    parser.add_argument("--seed", type=int, help="do the one round of this seed")
    parser.add_argument("rest", nargs="*", help="for pytest: files, -k words")
    asked = parser.parse_args()
    end, number = time.monotonic() + asked.seconds, 0
    while number == 0 or (asked.seed is None and time.monotonic() < end):
        number += 1
        seed = random.SystemRandom().randrange(10**9) if asked.seed is None else asked.seed
        print(f"round {number}, seed {seed}", flush=True)
        if code := one_round(seed, asked.rest):
            print(f"\nround {number} failed; repeat it: make fuzz SEED={seed}", file=sys.stderr)
            return code
    print(f"{number} rounds, nothing found")
    return 0


def one_round(seed: int, rest: list[str]) -> int:
    """All tests once; what pytest ends with."""
    given = rest or [str(HERE)]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}", *given]
    more = {"FUZZ_FACTOR": str(FACTOR), "FUZZ_RUNS": str(RUNS)}
    return subprocess.run(command, env=os.environ | more, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

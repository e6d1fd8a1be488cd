"""kill -9 of the service at random moments while clients search and report: what of the acknowledged work is lost.

Ten kills of the service and three of workers during 50 searches (ten of them asked twice) and 2,000 windows of 8 runs,
on one SQLite file; the service is started again each time, and clients retry: searches with their idempotency key,
windows with their index. In the end every window is sent again and must get the same decision.

Run: .venv/bin/python benchmarks/bench_kills.py [seed]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from table import Row, show

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "api"))
from kill_storm import Storm, rage  # noqa: E402 - clients that retry, from the tests


def rows(seed: int = 0) -> list[Row]:
    """The aim of the issue, measured."""
    storm = Storm(kills=10, worker_kills=3, searches=50, windows=2000, runs=8, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        left = rage(Path(folder), storm, lambda line: print(line, file=sys.stderr))
    lost = left.searches_lost + left.windows_lost
    doubled = left.searches_doubled + left.windows_doubled
    kills = f"{left.kills} kills of the service, {left.worker_kills} of workers"
    work = f"{left.searches_acknowledged} searches, {left.windows_acknowledged} windows"
    return [
        Row(f"{kills}: lost of {work}", "0", str(lost), lost == 0),
        Row(f"{kills}: done twice", "0", str(doubled), doubled == 0),
        Row(f"{kills}: searches that started again", "", str(left.requeued), None),
        Row(f"{kills}: requests that were sent again", "", f"{left.asked_again} in {left.seconds:.0f} s", None),
    ]


if __name__ == "__main__":
    show(rows(int(sys.argv[1]) if len(sys.argv) > 1 else 0))

"""How many examples: few and always the same in `make check`, many and new ones under `make fuzz` (`fuzz.py`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))
"""Set by `fuzz.py`: how many times the examples of `make check`; 0 in `make check` itself."""


def effort(examples: int) -> settings:
    """Hypothesis' settings for a test that has `examples` in `make check`."""
    return settings(
        max_examples=examples * max(1, FACTOR),
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink) if FACTOR else (Phase.explicit, Phase.generate),
        print_blob=True,
    )

"""What frameworks can run is sampled where their rules are tested."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cost"))

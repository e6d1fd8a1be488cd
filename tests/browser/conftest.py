"""The browser's tests start the service with the same code as the tests of the service itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))

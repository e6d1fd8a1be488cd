"""What a test cannot do without: where it is missing the test is skipped, but never in CI."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Playwright

VARIABLE = "NO_TEST_IS_SKIPPED"
"""Set by .ci/run, which installs what is wanted. Not TRIMTAB_…: those are the service's settings."""


def without(what: str) -> NoReturn:
    """Skip the test with this reason or, in CI, let it fail."""
    if os.environ.get(VARIABLE):
        pytest.fail(f"{what}, and {VARIABLE} is set", pytrace=False)
    pytest.skip(what)


def chromium(playwright: Playwright) -> str:
    """The system's Chromium or, where it has none, Playwright's own."""
    program = shutil.which("chromium") or playwright.chromium.executable_path
    if not Path(program).exists():
        without("no chromium on this machine, nor Playwright's own (playwright install chromium)")
    return program

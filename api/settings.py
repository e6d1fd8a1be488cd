"""What an operator may set: by environment variables with the prefix TRIMTAB_, or by options of `trimtab serve`."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 2**20


class Settings(BaseSettings):
    """Settings of one service. Unknown variables with the prefix are left alone: agents use some of them."""

    model_config = SettingsConfigDict(
        env_prefix="TRIMTAB_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any free one."""
    database_url: str = "sqlite:///trimtab.db"
    """SQLAlchemy URL; the default is a file in the working directory."""
    workers: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Searches that run at once, each in a process of its own; the others queue."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 16 * MEBIBYTE
    """Largest request body."""
    max_waiting_searches: Annotated[int, Field(ge=1)] = 1000
    """Searches that may queue; beyond, new ones are refused with 503."""
    max_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """Longest that `Prefer: wait=N` is granted."""
    lease_s: Annotated[float, Field(ge=2)] = 10.0
    """How long a service that was killed keeps its searches from others. The clocks of services that share a database
    must agree to a part of it."""
    search_time_limit_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest time limit that a search may ask for, and the limit of one that asks for none."""

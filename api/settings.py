"""What an operator may set: by options of `trimtab serve`, over environment variables with the prefix TRIMTAB_, over a
TOML file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from planner.spec.errors import InputError, Problem

MEBIBYTE = 2**20
HOUR_S = 3600
LOCAL = "local"
PREFIX = "TRIMTAB_"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of the container, as it sees it: `QUOTA PERIOD` in microseconds, or `max PERIOD`."""
FILE_VARIABLE = f"{PREFIX}CONFIG"
"""Names the file where no option does."""
OF_OTHERS = {
    FILE_VARIABLE,
    "TRIMTAB_SERVICE",
    "TRIMTAB_TOKEN",
    "TRIMTAB_PUBLISHED_PORT",
    "TRIMTAB_MEMORY",
    "TRIMTAB_CPUS",
}
"""Variables with the prefix that are no settings: of agents, and of docker/compose.yaml."""
OF_KUBERNETES = re.compile(r"TRIMTAB_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What it sets in every container beside a Service whose name begins with trimtab."""


def num_cores(quota: Path = CPU_QUOTA) -> int:
    """CPU cores that this process may use: those of its affinity, and no more than a container's quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
    except (OSError, ValueError):  # no container, or another kind of cgroups
        return cores
    return cores if limit == "max" else max(1, min(cores, ceil(int(limit) / int(period))))


def _place(text: str) -> str:
    if re.fullmatch(r"local|dask://[^/\s]+:\d{1,5}", text) is None:
        raise ValueError(f"must be local or dask://HOST:PORT, got {text!r:.80}")
    return text


class Settings(BaseSettings):
    """Settings of one service."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any free one."""
    database_url: str = "sqlite:///trimtab.db"
    """SQLAlchemy URL; the default is a file in the working directory."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that answer requests, behind one address; more than one are for PostgreSQL."""
    executor: Annotated[str, AfterValidator(_place)] = LOCAL
    """Where searches run: `local`, in processes of this machine, or `dask://HOST:PORT`, on the workers of that Dask
    scheduler."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Searches that run at once, the others queue; by default one for each CPU core that the service may use, or for
    each thread of the Dask cluster's workers. Where several processes answer requests, they divide these among them.
    0: all wait for another service on the same database."""
    search_memory_bytes: Annotated[int, Field(ge=MEBIBYTE)] = 8 * 2**30
    """What each local search may use; one that needs more fails. Workers of a Dask cluster have limits of their own."""
    deciders: Annotated[int, Field(ge=1)] = Field(default_factory=num_cores)
    """Processes that answer the windows of runs, each at one window at a time; a run always has the same one. Divided
    as `workers` are, but one each at least."""
    access: Literal["auto", "tokens", "open"] = "auto"
    """Who may come in: whoever has a token, or everybody; auto: everybody on loopback, tokens elsewhere."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which a service that is open on loopback may be called, beside loopback's own: what a proxy passes on as
    `Host`. Others are refused (403), for a page of another site can give its name our address."""
    max_requests_per_minute: Annotated[int, Field(ge=0)] = 12_000
    """Of one token (or one address, where access is open) and, where it is about a run, of this run; beyond, 429.
    0: no limit."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 16 * MEBIBYTE
    """Largest request body."""
    max_json_depth: Annotated[int, Field(ge=8, le=200)] = 64
    """Arrays and objects within each other in a request body."""
    max_json_values: Annotated[int, Field(ge=1)] = 1_000_000
    """Values in a request body, and keys of objects."""
    max_layers: Annotated[int, Field(ge=1)] = 2048
    """Layers of a model that is asked about."""
    max_experts: Annotated[int, Field(ge=1)] = 4096
    """Experts in each of its layers."""
    max_experts_in_all: Annotated[int, Field(ge=1)] = 2**18
    """Experts of all its layers together: so many counts a window of its runs has."""
    max_devices: Annotated[int, Field(ge=1)] = 2**17
    """Devices of a cluster that is asked about."""
    max_links: Annotated[int, Field(ge=1)] = 2**16
    """Links of a cluster that is given as a graph."""
    max_scenarios: Annotated[int, Field(ge=1)] = 64
    """Scenarios of a search."""
    max_waiting_searches: Annotated[int, Field(ge=1)] = 1000
    """Searches that may queue; beyond, new ones are refused with 503."""
    max_waiting_windows: Annotated[int, Field(ge=1)] = 1000
    """Windows that may wait for their decision in a process; beyond, new ones are refused with 503."""
    max_waiting_window_bytes: Annotated[int, Field(ge=1)] = 256 * MEBIBYTE
    """From which on their bodies are too many, in the same way."""
    max_profiles: Annotated[int, Field(ge=0)] = 200
    """Measured profiles that clients may keep here; beyond, new ones are refused with 409."""
    max_wait_s: Annotated[float, Field(ge=0, le=HOUR_S)] = 60.0
    """Longest that `Prefer: wait=N` is granted."""
    lease_s: Annotated[float, Field(ge=2, le=HOUR_S)] = 10.0
    """How long a service that was killed keeps its searches from others. The clocks of services that share a database
    must agree to a part of it."""
    keep_windows_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    """How long windows are kept, the token counts that agents report; not set: as long as the database. Decisions,
    runs, searches and plans are kept in any case."""
    search_time_limit_s: Annotated[float, Field(gt=0, le=7 * 24 * HOUR_S)] = 600.0
    """Longest time limit that a search may ask for, and the limit of one that asks for none."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line for machines."""


def local_places(settings: Settings) -> int:
    """Searches that run at once on this machine."""
    return num_cores() if settings.workers is None else settings.workers


def requires_tokens(settings: Settings) -> bool:
    """Whether whoever asks needs a token: as `access` says or, if it leaves that open, off loopback."""
    return settings.access == "tokens" or (settings.access == "auto" and not is_loopback(settings.host))


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine alone; a name other than localhost may mean anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def file_of(option: Path | None) -> Path | None:
    """The settings' file: that of the option, or of TRIMTAB_CONFIG; None without either."""
    named = os.environ.get(FILE_VARIABLE)
    return option or (Path(named) if named else None)


def load_settings(file: Path | None = None, **options: Any) -> Settings:
    """Options (None: not given) over environment over file over defaults; raises InputError that names the setting."""
    check_variables(os.environ)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return (Settings if file is None else _with_file(file))(**given)
    except ValidationError as error:
        told = InputError.from_validation(error)
        raise InputError(*(_as_written(p, given, file) for p in told.problems), num_more=told.num_more) from None
    except ValueError as error:  # of the TOML parser
        raise InputError.at("--config", f"{file} is no TOML: {error}") from None
    except OSError as error:
        raise InputError.at("--config", f"{file} cannot be read: {error.strerror}") from None


def check_variables(environment: Mapping[str, str]) -> None:
    """Raise InputError for a variable with the prefix that means nothing, as it is misspelt, or that is no list."""
    known = {_variable(name) for name in Settings.model_fields} | OF_OTHERS
    for name in sorted(environment):
        if not name.upper().startswith(PREFIX) or name.upper() in known or OF_KUBERNETES.fullmatch(name.upper()):
            continue
        raise InputError.at(name, _no_setting(name.upper(), known))
    for name, field in Settings.model_fields.items():
        text = environment.get(variable := _variable(name))
        if text and get_origin(field.annotation) is tuple and not _is_json(text):
            raise InputError.at(variable, f"""must be a list in JSON, as '["a", "b"]', got {text!r:.80}""")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _no_setting(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, sorted(known), 1)
    return f"is no setting{f'; perhaps {near[0]} is meant' if near else ''}; see trimtab config"


def _as_written(problem: Problem, options: Collection[str], file: Path | None) -> Problem:
    """The same, with the setting as whoever set it wrote it: as an option, as a variable or in the file."""
    name, dot, rest = problem.field.partition(".")
    if name in options:
        return Problem(f"--{name.replace('_', '-')}{dot}{rest}", problem.message)
    if os.environ.get(_variable(name)):
        return Problem(f"{_variable(name)}{dot}{rest}", problem.message)
    told = problem.message if name in Settings.model_fields else _no_setting(name, Settings.model_fields)
    return Problem(f"{problem.field} in {file}" if file else problem.field, told)


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def origins(file: Path | None) -> dict[str, str]:
    """Where each setting is from, by name: a variable, the file, or `default`; the file must be readable."""
    in_file = {} if file is None else TomlConfigSettingsSource(Settings, file)()
    return {name: _origin(name, in_file, file) for name in Settings.model_fields}


def _origin(name: str, in_file: Mapping[str, object], file: Path | None) -> str:
    if os.environ.get(_variable(name)):
        return _variable(name)
    return str(file) if name in in_file else "default"


def _with_file(file: Path) -> type[Settings]:
    file.open("rb").close()  # what is not there is an error; the source of settings would take it for empty

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    return FromFile

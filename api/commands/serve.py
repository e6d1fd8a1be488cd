"""`trimtab serve`: the HTTP service."""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import closing
from typing import Annotated

import typer

from api.commands.lines import say
from api.commands.service_options import ConfigOption, DatabaseOption
from api.fork_server import start_fork_server
from api.garbage import spare_the_collector, uncollected
from api.logs import install_logs
from api.settings import LOCAL, Settings, file_of, is_loopback, load_settings, requires_tokens
from planner.spec.errors import InputError

log = logging.getLogger(__name__)
BACKLOG = 2048


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (TRIMTAB_HOST; 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for any free one (TRIMTAB_PORT; 8000)")] = None,
    database_url: DatabaseOption = None,
    processes: Annotated[int | None, typer.Option(help="Processes that answer requests (TRIMTAB_PROCESSES; 1)")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where searches run: local or dask://HOST:PORT (TRIMTAB_EXECUTOR; local)")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Searches that run at once (TRIMTAB_WORKERS; one per CPU core, or thread of the cluster)"),
    ] = None,
    deciders: Annotated[
        int | None, typer.Option(help="Processes that answer windows (TRIMTAB_DECIDERS; one per CPU core)")
    ] = None,
    access: Annotated[
        str | None,
        typer.Option(help="auto: tokens are required unless --host is loopback; tokens; open (TRIMTAB_ACCESS; auto)"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let everybody in: --access open")] = False,
    log_format: Annotated[str | None, typer.Option(help="text or json (TRIMTAB_LOG_FORMAT; text)")] = None,
    config: ConfigOption = None,
) -> None:
    """Serve the planner over HTTP, with Swagger UI at /docs."""
    if insecure and access not in (None, "open"):
        raise InputError.at("--insecure", f"contradicts --access {access}")
    settings = load_settings(
        file_of(config),
        host=host,
        port=port,
        database_url=database_url,
        processes=processes,
        executor=executor,
        workers=workers,
        deciders=deciders,
        access="open" if insecure else access,
        log_format=log_format,
    )
    with uncollected():
        _serve(settings)


def _serve(settings: Settings) -> None:
    if settings.processes == 1:
        start_fork_server()
    # Here, not above: the web framework and the database take long to load, and the fork server does so meanwhile.
    from api.database import open_database, shown_url, utc_now  # noqa: PLC0415
    from api.executors.choice import check_executor  # noqa: PLC0415
    from api.processes import supervise  # noqa: PLC0415
    from api.token_store import TokenStore  # noqa: PLC0415

    check_executor(settings)
    install_logs(settings.log_format)
    with (
        closing(_listening(settings.host, settings.port)) as listener,
        closing(open_database(settings.database_url)) as database,
    ):
        address = f"http://{_shown_host(settings.host)}:{listener.getsockname()[1]}"
        _tell(settings, f"Trimtab serves at {address}, Swagger UI at {address}/docs")
        unit = "core" if settings.executor == LOCAL else "thread of its workers"
        at_once = f"one per {unit}" if settings.workers is None else settings.workers
        database_line = f"Database: {shown_url(settings.database_url)}; searches: {settings.executor}, {at_once}"
        _tell(settings, f"{database_line}; stop with Ctrl-C")
        _tell_access(settings, has_tokens=bool(TokenStore(database, utc_now).all()))
        if settings.processes > 1:
            database.close()  # of this process; the children open it for themselves
            spare_the_collector()
            supervise(settings, listener)
            return
        from api.serving import serve_database  # noqa: PLC0415

        serve_database(settings, database, listener)


def _tell(settings: Settings, line: str) -> None:
    """To whoever starts the service, on stdout; where machines read what it says, as one of its log lines."""
    if settings.log_format == "json":
        log.info(line)
    else:
        say(line)


def _tell_access(settings: Settings, *, has_tokens: bool) -> None:
    """Who may come in, and how the first one does."""
    if requires_tokens(settings):
        first = "" if has_tokens else "; make the first: trimtab token create NAME --role submit --role report"
        _tell(settings, f"Access: with a token{first}")
    elif is_loopback(settings.host):
        _tell(settings, "Access: open to whoever reaches this machine's loopback address (--access tokens closes it)")
    else:
        warning = "open to everybody who reaches this address; without --insecure, tokens are required"
        if settings.log_format == "json":
            log.warning(warning)
        else:
            print(f"WARNING: {warning}", file=sys.stderr)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that a busy port is known before anything starts; raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError.at("--host", f"{host!r} is no address to listen on: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError.at(
            "--port", f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port"
        ) from None
    return listener


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host

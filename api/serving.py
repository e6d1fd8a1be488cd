"""One process that answers requests on a socket, until it is told to end."""

from __future__ import annotations

import socket
from contextlib import closing

import uvicorn

from api.app import create_app
from api.database import Database, open_database
from api.garbage import spare_the_collector
from api.logs import install_logs
from api.settings import Settings
from planner.search import search

GRACE_S = 3
"""Seconds that open requests get when the service ends; those that wait for a search are answered before."""


def serve_database(settings: Settings, database: Database, listener: socket.socket) -> None:
    """Serve an open database."""
    app = create_app(settings, database, search, stopping=lambda: server.should_exit)
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=GRACE_S, server_header=False)
    )
    spare_the_collector()
    server.run(sockets=[listener])


def serve_alone(settings: Settings, listener: socket.socket) -> None:
    """Serve in a process that has nothing yet but its settings and the socket."""
    install_logs(settings.log_format)
    with closing(open_database(settings.database_url)) as database:
        serve_database(settings, database, listener)

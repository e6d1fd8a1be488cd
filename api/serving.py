"""One process that answers requests on a socket, until it is told to end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing

from api.app import create_app
from api.database import Database, open_database
from api.garbage import spare_the_collector
from api.logs import install_logs
from api.server import OrderlyServer
from api.settings import Settings
from planner.search import search


def serve_database(
    settings: Settings, database: Database, listener: socket.socket, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve an open database; `on_ready` is called when requests are answered."""
    app = create_app(settings, database, search, stopping=lambda: server.should_exit)
    server = OrderlyServer(app, settings.trusted_proxies, on_ready)
    spare_the_collector()
    server.run(sockets=[listener])


def serve_alone(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve in a process that has nothing yet but its settings and the socket."""
    install_logs(settings.log_format)
    with closing(open_database(settings.database_url)) as database:
        serve_database(settings, database, listener, on_ready)

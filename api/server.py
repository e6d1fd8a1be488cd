"""The web server as Trimtab runs it: it ends in order however often it is asked to, and with exit status 0."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

GRACE_S = 3
"""Seconds that open requests get when the service ends; those that wait for a search are answered before."""
KEEP_ALIVE_S = 75
"""Seconds that an idle connection stays open: longer than clients and proxies keep one (5 to 60), so that it is they
who close it, and no request is sent into a connection that ends at this moment."""


class OrderlyServer(uvicorn.Server):
    """A server that takes each SIGTERM and SIGINT as the wish to end in order, the first like the tenth."""

    def __init__(
        self, app: ASGIApp, trusted_proxies: Sequence[str], on_ready: Callable[[], None] = lambda: None
    ) -> None:
        """`on_ready` is called when requests are answered."""
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,  # api.measured tells more
                server_header=False,
                forwarded_allow_ips=list(trusted_proxies),
                timeout_graceful_shutdown=GRACE_S,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end. uvicorn's own raises the signal again at the end, and at a second Ctrl-C forgets searches."""
        self.should_exit = True

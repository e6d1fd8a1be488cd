"""Whether the service lives, and whether it can work."""

from __future__ import annotations

from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from api.database import Database
from api.deciders import Deciders
from api.examples import METRICS_EXAMPLE
from api.jobs import Jobs
from api.metrics import Metrics
from api.routes.parameters import problems
from api.values import Health
from planner.spec.errors import UnavailableError

LOOKS_AT_ONCE = 2
"""For /readyz, and as many for /metrics: in threads of their own, as all others may wait for the database already."""


class HealthRoutes:
    """Routes without prefix, for those who watch the service."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        deciders: Deciders,
        metrics: Metrics,
        version: str,
        stopping: Callable[[], bool],
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._deciders = deciders
        self._metrics = metrics
        self._version = version
        self._stopping = stopping
        self._looking, self._counting = CapacityLimiter(LOOKS_AT_ONCE), CapacityLimiter(LOOKS_AT_ONCE)

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(tags=["health"])
        add = router.add_api_route
        add("/healthz", self.lives, methods=["GET"], operation_id="healthz", summary="Liveness")
        add("/readyz", self.ready, methods=["GET"], operation_id="readyz", summary="Readiness", responses=problems(503))
        add(
            "/metrics",
            self.metrics,
            methods=["GET"],
            operation_id="metrics",
            summary="Numbers for Prometheus",
            response_class=PlainTextResponse,
            responses={200: {"content": {"text/plain": {"example": METRICS_EXAMPLE}}}},
        )
        return router

    async def lives(self) -> Health:
        """The process answers."""
        return Health(status="ok", version=self._version)

    async def metrics(self) -> Response:
        """Requests, searches by state and time, the queue, windows and decisions of this service process.

        While the database does not answer, `trimtab_database_up` is 0, and what it would tell is missing.
        """
        text = await to_thread.run_sync(self._metrics.text, limiter=self._counting)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def ready(self) -> Health:
        """The database answers and has its tables, searches are started and have where to run, windows decided; no end
        has begun.
        """
        if self._stopping():
            raise UnavailableError("the service is ending")
        try:
            await to_thread.run_sync(self._database.check, limiter=self._looking)
        except SQLAlchemyError as error:  # away or without its tables: nothing can be done with it
            raise UnavailableError(f"the database does not answer: {type(error).__name__}") from error
        self._jobs.check()
        self._deciders.check()
        return Health(status="ready", version=self._version)

"""Whether the service lives, and whether it can work."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError

from api.database import Database
from api.jobs import Jobs
from api.routes.parameters import problems
from api.values import Health
from planner.spec.errors import UnavailableError


class HealthRoutes:
    """Routes without prefix, for those who watch the service."""

    def __init__(self, database: Database, jobs: Jobs, version: str) -> None:
        self._database = database
        self._jobs = jobs
        self._version = version

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(tags=["health"])
        add = router.add_api_route
        add("/healthz", self.lives, methods=["GET"], operation_id="healthz", summary="Liveness")
        add("/readyz", self.ready, methods=["GET"], operation_id="readyz", summary="Readiness", responses=problems(503))
        return router

    def lives(self) -> Health:
        """The process answers."""
        return Health(status="ok", version=self._version)

    def ready(self) -> Health:
        """The database answers, and searches are being started."""
        try:
            self._database.check()
        except SQLAlchemyError as error:
            raise UnavailableError(f"the database does not answer: {type(error).__name__}") from error
        if not self._jobs.alive:
            raise UnavailableError("no searches are started: the dispatcher has ended")
        return Health(status="ready", version=self._version)

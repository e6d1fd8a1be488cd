"""The HTTP service: its parts, put together. Every part that lasts is an argument or is made here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from api.access import Access, RunNames
from api.access_guard import AccessGuard
from api.answers import error_response, install_error_answers
from api.body_limit import BodyLimit
from api.database import Database, utc_now
from api.deciders import Deciders
from api.documentation import DESCRIPTION, TAGS, documentation_router
from api.ending import AnswersAtTheEnd
from api.executors.choice import executor_of
from api.executors.port import SearchFunction
from api.head import HeadAsGet
from api.jobs import Jobs
from api.json_limits import JsonLimits
from api.logs import ID_HEADER, is_accepted_id
from api.measured import Measured, operations_of
from api.metrics import Metrics
from api.openapi import describe
from api.profile_store import ProfileStore
from api.rate_limit import RateLimit
from api.retention import OldWindows, Retention
from api.routes.health import HealthRoutes
from api.routes.plans import PlanRoutes
from api.routes.presets import PresetRoutes
from api.routes.profiles import ProfileRoutes
from api.routes.runs import RunRoutes
from api.routes.searches import SearchRoutes
from api.run_store import RunStore
from api.runs import Runs
from api.safe_headers import SafeHeaders
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.settings import Settings, is_loopback, requires_tokens
from api.sign_in import SignIn
from api.size_limits import SizeLimits
from api.token_store import TokenStore
from api.web.html import Html
from api.web.pages import Problems, assets, page_router
from api.web.plan_pages import PlanPages
from api.web.run_pages import RunPages
from api.web.search_pages import SearchPages


def new_id() -> str:
    """An id that nobody guesses and nothing else has."""
    return secrets.token_hex(8)


def create_app(
    settings: Settings, database: Database, search: SearchFunction, stopping: Callable[[], bool] = lambda: False
) -> FastAPI:
    """The service on an open database. `search` runs on the executor while the application lives.

    Clients that wait for a search are answered early when `stopping` turns true.
    """
    metrics = Metrics()
    searches = SearchStore(database, utc_now, new_id)
    metrics.watch(searches, utc_now)
    runs = RunStore(database, utc_now)
    profiles = ProfileStore(database, utc_now, settings.max_profiles)
    queue = SearchQueue(database, utc_now, new_id(), settings.lease_s)
    executor = executor_of(settings, search)
    jobs = Jobs(searches, queue, executor, settings.search_time_limit_s, metrics.search_ended)

    deciders = Deciders(
        database.url,
        settings.deciders,
        settings.max_waiting_windows,
        settings.max_waiting_window_bytes,
        settings.log_format,
    )
    metrics.watch_deciders(deciders)
    run_names = RunNames(runs.name)
    access = Access(TokenStore(database, utc_now), run_names, utc_now) if requires_tokens(settings) else None
    sizes = SizeLimits(*(getattr(settings, name) for name in SizeLimits._fields))
    retention = _retention(settings.keep_windows_days, database, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        deciders.start()
        if retention is not None:
            retention.start()
        yield
        closing = [asyncio.to_thread(jobs.close)]
        if retention is not None:
            closing.append(asyncio.to_thread(retention.close))
        await asyncio.gather(*closing, deciders.close())

    app = FastAPI(
        title="Trimtab",
        summary="Plans the parallelism of Transformer training, offline and online",
        version=version("trimtab"),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        servers=[{"url": "/", "description": "This service"}],
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    search_routes = SearchRoutes(searches, profiles, jobs, settings, sizes, stopping)
    presets = PresetRoutes(profiles)
    html = Html(app.version, utc_now)
    problems = Problems(html)
    routers = (
        search_routes.router(),
        PlanRoutes(searches, profiles, sizes).router(),
        RunRoutes(Runs(searches, runs, utc_now, new_id), runs, deciders, metrics.decided).router(),
        presets.router(),
        ProfileRoutes(profiles).router(),
    )
    for router in routers:
        app.include_router(router, prefix="/v1")
    app.include_router(HealthRoutes(database, jobs, deciders, metrics, app.version, stopping).router())
    app.include_router(documentation_router())
    search_pages = SearchPages(html, searches, jobs, search_routes.ask, presets.devices)
    app.include_router(page_router(search_pages, PlanPages(html, searches), RunPages(html, runs)))
    app.mount("/assets", assets())
    app.include_router(SignIn(access, html).router())
    app.mount("/static", StaticFiles(directory=str(files("fastapi_offline") / "static")))
    json_limits = JsonLimits(settings.max_json_depth, settings.max_json_values)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, json_limits=json_limits, refuse=error_response)
    hosts = settings.allowed_hosts if access is None and is_loopback(settings.host) else None
    app.add_middleware(
        AccessGuard,
        access=access,
        names=run_names,
        hosts=hosts,
        rate=RateLimit(settings.max_requests_per_minute),
        answer=problems,
    )
    app.add_middleware(AnswersAtTheEnd, stopping=stopping, answer=problems)
    app.add_middleware(SafeHeaders)
    app.add_middleware(Measured, metrics=metrics, operations=operations_of("/v1", routers))
    app.add_middleware(CorrelationIdMiddleware, header_name=ID_HEADER, validator=is_accepted_id, generator=new_id)
    install_error_answers(app, problems)
    describe(app)
    return app


def _retention(kept_days: float | None, database: Database, metrics: Metrics) -> Retention | None:
    if kept_days is None:
        return None
    return Retention(OldWindows(database, utc_now, new_id(), kept_days), metrics.windows_removed)

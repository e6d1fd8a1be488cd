"""Pages of plans: one from all sides, two side by side, and launch files."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from fastapi import APIRouter, Response

from api.archives import ZIP_TYPE, archive_of
from api.comparison import diff_of, explanation_of
from api.routes.parameters import FoundBy, OtherFoundBy, PlanId
from api.search_store import Found, SearchStore
from api.web.html import HEADERS, Html, Who
from planner.export import export_plan
from planner.spec.errors import InputError, NotFoundError
from planner.spec.export import Export, ExportTarget
from planner.spec.request import Target
from planner.spec.shortlist import ShortlistEntry
from planner.view import (
    binding_table,
    diff_table,
    fastest_everywhere,
    headline_table,
    memory_table,
    misfit_line,
    neighbour_table,
    stage_table,
    time_table,
)


class ExportChoice(NamedTuple):
    """Whether a framework can run a plan."""

    target: ExportTarget
    refusals: tuple[str, ...]
    """The rules that the plan breaks, each with its name; none: there are files."""
    instead: ShortlistEntry | None = None
    """Where it cannot: the nearest plan of the shortlist that it can run, by rank."""
    again: Target | None = None
    """Where it cannot: what to search again for, so that it can; None: searches know no such target."""


class PlanPages:
    """/plans."""

    def __init__(self, html: Html, store: SearchStore) -> None:
        self._html = html
        self._store = store

    def router(self) -> APIRouter:
        """All pages."""
        router = APIRouter()
        add, one = router.add_api_route, "/plans/{plan_id}"
        add(one, self.one, methods=["GET"], operation_id="page_plan")
        add(f"{one}/diff/{{other_plan_id}}", self.diff, methods=["GET"], operation_id="page_plan_diff")
        add(f"{one}/exports/{{target}}.zip", self.archive, methods=["GET"], operation_id="page_export_archive")
        add(f"{one}/exports/{{target}}", self.export, methods=["GET"], operation_id="page_export")
        add(f"{one}/exports/{{target}}/{{name}}", self.file, methods=["GET"], operation_id="page_export_file")
        return router

    def one(self, plan_id: PlanId, who: Who, search_id: FoundBy = None) -> Response:
        """What the plan is, why, and where to take it."""
        found = self._store.found(plan_id, search_id)
        plan, price, explained = found.entry.plan, found.entry.estimate, explanation_of(found)
        return self._html.page(
            "plan.html",
            who,
            plan=plan,
            entry=found.entry,
            model=found.model,
            others=[entry for entry in found.shortlist.plans if entry.plan.id != plan.id],
            search_id=search_id,
            headline=headline_table(plan, price),
            explained=explained,
            binding=binding_table(explained),
            neighbours=neighbour_table(explained),
            stages=stage_table(found.model, plan, price),
            time=time_table(price),
            memory=memory_table(plan, price),
            found_by=found.search_id,
            misfit=misfit_line(found.shortlist, found.entry),
            safe=fastest_everywhere(found.shortlist),
            exports=tuple(_choice(found, target) for target in ExportTarget),
        )

    def diff(
        self,
        plan_id: PlanId,
        other_plan_id: PlanId,
        who: Who,
        search_id: FoundBy = None,
        other_search_id: OtherFoundBy = None,
    ) -> Response:
        """Both plans, as the API sets them side by side."""
        found, other = self._store.found(plan_id, search_id), self._store.found(other_plan_id, other_search_id)
        compared = diff_of(found, other, as_asked=other_search_id is not None)
        return self._html.page(
            "diff.html",
            who,
            first=found.entry.plan,
            second=other.entry.plan,
            search_id=search_id,
            reason=compared.reason,
            differences=diff_table(compared, ("the first plan", "the second plan")),
        )

    def export(self, plan_id: PlanId, target: ExportTarget, who: Who, search_id: FoundBy = None) -> Response:
        """The files, and what they leave to the user."""
        found = self._store.found(plan_id, search_id)
        export = _export(found, target)
        return self._html.page("export.html", who, export=export, search_id=search_id, plan=found.entry.plan)

    def archive(self, plan_id: PlanId, target: ExportTarget, search_id: FoundBy = None) -> Response:
        """All files in one, to be saved."""
        archive = archive_of(_export(self._store.found(plan_id, search_id), target))
        return Response(archive, headers=_saved_as(f"{target}-{plan_id}.zip"), media_type=ZIP_TYPE)

    def file(self, plan_id: PlanId, target: ExportTarget, name: str, search_id: FoundBy = None) -> Response:
        """One of the files, to be saved."""
        written = _export(self._store.found(plan_id, search_id), target)
        text = next((file.text for file in written.files if file.name == name), None)
        if text is None:
            raise NotFoundError(f"the export has no file {name!r}")
        return Response(text, headers=_saved_as(name), media_type="text/plain; charset=utf-8")


def _saved_as(name: str) -> dict[str, str]:
    return {**HEADERS, "content-disposition": f'attachment; filename="{name}"'}


def _export(found: Found, target: ExportTarget) -> Export:
    return export_plan(target, found.model, found.cluster, found.training, found.entry.plan)


def _choice(found: Found, target: ExportTarget) -> ExportChoice:
    refusals = _refusals(found, target)
    if not refusals:
        return ExportChoice(target, ())
    rank = found.entry.rank
    others = sorted(found.shortlist.plans, key=lambda entry: (abs(entry.rank - rank), entry.rank))
    instead = next((entry for entry in others if not _refusals(replace(found, entry=entry), target)), None)
    again = next((other for other in Target if other.value == target.value), None)
    return ExportChoice(target, refusals, instead, again)


def _refusals(found: Found, target: ExportTarget) -> tuple[str, ...]:
    try:
        _export(found, target)
    except InputError as error:
        return tuple(problem.message for problem in error.problems)
    return ()

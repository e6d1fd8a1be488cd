"""Plans from all sides, their prices under other conditions, and prices of plans that somebody else made."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Response

from api.answers import StrictRoute
from api.archives import ZIP_TYPE, archive_of
from api.comparison import diff_of, explanation_of
from api.examples import ESTIMATE_EXAMPLES, EXPORTED_FILE_EXAMPLE, TIMELINE_EXAMPLE, WHAT_IF_EXAMPLES
from api.pictures import SvgResponse, picture_of
from api.profile_store import ProfileStore
from api.routes.parameters import READS_BODY, FoundBy, OtherFoundBy, PlanId, header, problems
from api.search_store import SearchStore
from api.size_limits import SizeLimits
from api.values import EstimateRequest, WhatIfRequest
from planner.cost import estimate
from planner.export import exported_or_advised
from planner.spec.errors import InputError, Problem
from planner.spec.estimate import Estimate
from planner.spec.explanation import Explanation, PlanDiff
from planner.spec.export import Export, ExportTarget
from planner.spec.plan import Plan
from planner.spec.timeline import PlanTimeline
from planner.spec.training import Training
from planner.view import plan_picture, plan_timeline

_TIMELINE: dict[str, Any] = {
    "description": "Events of one step, as a file for Perfetto",
    "content": {"application/json": {"example": TIMELINE_EXAMPLE}},
}

_EXPORT: dict[str, Any] = {
    "description": "The files as JSON or as an archive, or the one that was asked for",
    "content": {
        "application/json": {},
        ZIP_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "the bytes of an archive"},
        "text/plain": {"schema": {"type": "string"}, "example": EXPORTED_FILE_EXAMPLE},
    },
    "headers": {"Content-Disposition": header("Of an archive or a file, a name for it")},
}
ExportedFileName = Annotated[
    str | None,
    Query(max_length=200, description="Name of one of the files: the answer is its text, and nothing else"),
]


class PlanRoutes:
    """Routes under /plans and /estimates."""

    def __init__(self, store: SearchStore, profiles: ProfileStore, sizes: SizeLimits) -> None:
        self._store = store
        self._profiles = profiles
        self._sizes = sizes

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(tags=["plans"], route_class=StrictRoute)
        add = router.add_api_route
        one, misses = "/plans/{plan_id}", problems(404, 422)
        add(one, self.get, methods=["GET"], operation_id="get_plan", summary="One plan", responses=misses)
        add(
            f"{one}/estimate",
            self.estimate,
            methods=["GET"],
            operation_id="get_plan_estimate",
            summary="Predicted time and memory of a plan",
            responses=misses,
        )
        add(
            f"{one}/picture",
            self.picture,
            methods=["GET"],
            operation_id="get_plan_picture",
            summary="Picture of a plan (SVG)",
            response_class=SvgResponse,
            responses={200: picture_of("Devices, layers and strategies; memory of each stage"), **misses},
        )
        add(
            f"{one}/timeline",
            self.timeline,
            methods=["GET"],
            operation_id="get_plan_timeline",
            summary="One step of a plan, event by event (Chrome trace)",
            response_model=PlanTimeline,
            response_model_exclude_none=True,
            responses={200: _TIMELINE, **misses},
        )
        add(
            f"{one}/explanation",
            self.explanation,
            methods=["GET"],
            operation_id="explain_plan",
            summary="Why a plan is as it is",
            responses=misses,
        )
        add(
            f"{one}/diff/{{other_plan_id}}",
            self.diff,
            methods=["GET"],
            operation_id="diff_plans",
            summary="How two plans differ, and why one is faster",
            responses=misses,
        )
        add(
            f"{one}/export/{{target}}",
            self.export,
            methods=["GET"],
            operation_id="export_plan",
            summary="A plan as files of a training framework",
            response_model=Export,
            responses={200: _EXPORT, **misses},
        )
        add(
            f"{one}/estimate",
            self.what_if,
            methods=["POST"],
            operation_id="estimate_plan_under_other_conditions",
            summary="The same plan under another load, cluster or recipe",
            responses=problems(404, *READS_BODY),
        )
        add(
            "/estimates",
            self.price,
            methods=["POST"],
            operation_id="estimate",
            summary="Price any plan",
            responses=problems(*READS_BODY),
        )
        return router

    def get(self, plan_id: PlanId, search_id: FoundBy = None) -> Plan:
        """The plan, as files and other programs take it."""
        return self._store.found(plan_id, search_id).entry.plan

    def estimate(self, plan_id: PlanId, search_id: FoundBy = None) -> Estimate:
        """What its search predicted for balanced load: seconds and bytes in named parts."""
        return self._store.found(plan_id, search_id).entry.estimate

    def picture(self, plan_id: PlanId, search_id: FoundBy = None) -> SvgResponse:
        """Stages, devices, layers and strategies, with memory bars."""
        found = self._store.found(plan_id, search_id)
        return SvgResponse(plan_picture(found.model, found.entry.plan, found.entry.estimate))

    def timeline(self, plan_id: PlanId, search_id: FoundBy = None) -> Response:
        """A step in the Trace Event Format: save it and open it in ui.perfetto.dev, or in chrome://tracing.

        Each stage is a process with tracks for compute and communication; forward, backward and recomputation,
        messages, reductions and the optimizer in the times of the estimate. Very long steps are drawn without their
        middle; `otherData.not_drawn` says what was left out.
        """
        found = self._store.found(plan_id, search_id)
        drawn = plan_timeline(found.model, found.cluster, found.training, found.entry.plan)
        # An attachment: Swagger UI offers it as a file, and does not try to show megabytes.
        headers = _attachment(f"{found.entry.plan.id}.timeline.json")
        return Response(drawn.model_dump_json(exclude_none=True), media_type="application/json", headers=headers)

    def explanation(self, plan_id: PlanId, search_id: FoundBy = None) -> Explanation:
        """What binds each stage, what the plans one step away would take, and how the runner-up differs.

        A plan that is not the best of its search stands beside the best instead of the runner-up.
        """
        return explanation_of(self._store.found(plan_id, search_id))

    def diff(
        self, plan_id: PlanId, other_plan_id: PlanId, search_id: FoundBy = None, other_search_id: OtherFoundBy = None
    ) -> PlanDiff:
        """Choices, seconds and bytes that differ between two plans for one model, and a sentence that says why.

        Both are priced on the cluster of the first one's search, the second on its own where it is for more or fewer
        devices; a plan for another batch or sequence length has the recipe of its own search, and its seconds are for
        as many tokens as the first one's. With `other_search_id` the second is priced as that search was asked.
        """
        found = self._store.found(plan_id, search_id)
        other = self._store.found(other_plan_id, other_search_id)
        return diff_of(found, other, as_asked=other_search_id is not None)

    def export(
        self,
        plan_id: PlanId,
        target: Annotated[ExportTarget, Path(description="The framework that is to run the plan")],
        search_id: FoundBy = None,
        file: ExportedFileName = None,
        accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        """Launch files of Megatron-LM, torchtitan, DeepSpeed or Galvatron, each with what it leaves to you.

        JSON with all files; with `Accept: application/zip` an archive of them, with `file=NAME` one of them as it is.
        Written for the model, cluster and recipe of the plan's search. A plan that the framework cannot run is
        answered with 422, and `errors` names every rule that it breaks; a search with `options.target` keeps to what a
        framework can run.
        """
        found = self._store.found(plan_id, search_id)
        conditions = found.model, found.cluster, found.training
        others = ((f"plan {entry.plan.id} of its search", entry.plan) for entry in found.shortlist.plans)
        export = exported_or_advised(target, conditions, found.entry.plan, others)
        if file is not None:
            return _one_file(export, file)
        if accept is not None and _wants_zip(accept):
            name = f"{export.target}-{export.plan_id}.zip"
            return Response(archive_of(export), media_type=ZIP_TYPE, headers=_attachment(name))
        return Response(export.model_dump_json(), media_type="application/json", headers={"Vary": "Accept"})

    def what_if(
        self,
        plan_id: PlanId,
        request: Annotated[WhatIfRequest, Body(openapi_examples=WHAT_IF_EXAMPLES)],
        search_id: FoundBy = None,
    ) -> Estimate:
        """Price a found plan; what the body leaves out is as in the plan's search."""
        found = self._store.found(plan_id, search_id)
        cluster = self._sizes.cluster_of(request.cluster, self._profiles.find) if request.cluster else found.cluster
        training = request.training or found.training
        try:
            return estimate(found.model, cluster, training, found.entry.plan, request.workload)
        except InputError as error:
            raise InputError(*(_as_asked(problem, request) for problem in error.problems)) from None

    def price(self, request: Annotated[EstimateRequest, Body(openapi_examples=ESTIMATE_EXAMPLES)]) -> Estimate:
        """Price a plan that no search of this service needs to have found."""
        model, cluster = (
            self._sizes.model_of(request.model),
            self._sizes.cluster_of(request.cluster, self._profiles.find),
        )
        return estimate(model, cluster, request.training, request.plan, request.workload)


def _as_asked(problem: Problem, request: WhatIfRequest) -> Problem:
    """The plan is the search's own: where it does not fit, the fault is of the conditions that the client sent."""
    place, _, field = problem.field.partition(".")
    if place != "plan":
        return problem
    if request.training is not None and (request.cluster is None or field in Training.model_fields):
        named = f"training.{field}" if field in Training.model_fields else "training"
        return Problem(named, f"must be as the plan has it: {problem.message}")
    if request.cluster is not None:
        return Problem("cluster", f"must be one that the plan fits: {problem.message}")
    return problem


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Vary": "Accept"}


def _wants_zip(accept: str) -> bool:
    """Whether a client names archives, and JSON not before them."""
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return ZIP_TYPE in kinds and "application/json" not in kinds[: kinds.index(ZIP_TYPE)]


def _one_file(export: Export, name: str) -> Response:
    for file in export.files:
        if file.name == name:
            return Response(file.text, media_type="text/plain", headers=_attachment(name))
    raise InputError.at("query.file", f"must be {' or '.join(file.name for file in export.files)}, got {name!r}")

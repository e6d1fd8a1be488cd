"""Measured profiles: what `trimtab profile` wrote, kept under a name that clusters can use."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from api.answers import StrictRoute
from api.profile_store import Accepts, ProfileStore
from api.routes.parameters import READS_BODY, Limit, header, page, problems
from api.turns import in_turn
from api.values import Page, ProfileEntry
from planner.spec.errors import NO_NUL
from profiles.devices import MeasuredProfile

NAME_PATTERN = "^[a-z0-9][a-z0-9_-]*$"
ProfileName = Annotated[
    str,
    Path(
        description="Name of a measured profile: small letters, digits, - and _; no device preset's",
        pattern=NAME_PATTERN,
        max_length=64,
        examples=["our-a100"],
    ),
]
AfterName = Annotated[
    str | None, Query(max_length=64, pattern=NO_NUL, description="Name of the last item of the page before")
]
IfMatch = Annotated[
    str | None,
    Header(max_length=1000, description="ETag of the profile that is to be replaced; `*`: whichever is there"),
]
IfNoneMatch = Annotated[
    str | None, Header(max_length=1000, description="`*`: only if nothing has this name; an ETag: only if it is not it")
]
_TAG = {"ETag": header("Identity of the profile's content, for If-Match")}
_PLACE = {"Location": header("Path of the profile")}
_UNCHANGED: dict[str, Any] = {"description": "The client has this one already", "headers": _TAG}


class ProfileRoutes:
    """Routes under /profiles."""

    def __init__(self, store: ProfileStore) -> None:
        self._store = store

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(prefix="/profiles", tags=["presets"], route_class=StrictRoute)
        add, one = router.add_api_route, "/{name}"
        add(
            "",
            self.list,
            methods=["GET"],
            operation_id="list_profiles",
            summary="Measured profiles that are kept here",
            responses=problems(422),
        )
        add(
            one,
            self.get,
            methods=["GET"],
            operation_id="get_profile",
            summary="One measured profile",
            responses={200: {"headers": _TAG}, 304: _UNCHANGED, **problems(404, 422)},
        )
        add(
            one,
            in_turn(self.put),
            methods=["PUT"],
            operation_id="put_profile",
            summary="Keep a measured profile under a name",
            response_description="The profile was there, and is now this one",
            responses={
                200: {"headers": _TAG},
                201: {"model": ProfileEntry, "description": "The profile is new", "headers": {**_TAG, **_PLACE}},
                **problems(*READS_BODY, 409, 412),
            },
        )
        add(
            one,
            in_turn(self.delete),
            methods=["DELETE"],
            status_code=204,
            operation_id="delete_profile",
            summary="Forget a measured profile",
            response_description="It is gone",
            responses=problems(404, 412, 422),
        )
        return router

    def list(self, limit: Limit = 50, after: AfterName = None) -> Page[ProfileEntry]:
        """Names with what was measured and when, in alphabetical order."""
        return page(self._store.page, limit, after, "/v1/profiles", lambda entry: entry.name)

    def get(self, name: ProfileName, response: Response, if_none_match: IfNoneMatch = None) -> MeasuredProfile:
        """The whole profile as it was sent, with the samples behind its constants."""
        profile, tag = self._store.get(name)
        response.headers["ETag"] = f'"{tag}"'
        if if_none_match is not None and _names(if_none_match, tag, weak=True):
            return Response(status_code=304, headers={"ETag": f'"{tag}"'})  # type: ignore[return-value]
        return profile

    def put(
        self,
        name: ProfileName,
        profile: MeasuredProfile,
        response: Response,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> ProfileEntry:
        """Send what `trimtab profile` wrote; `"device": "NAME"` in a cluster then means the machine that was measured.

        What the profile knows of links and software holds where the cluster does not say otherwise, as for
        `1x4:FILE.json` on the command line. Searches that were asked for before keep the numbers that they had. A
        profile that is there is replaced; with `If-Match` or `If-None-Match: *` only if nobody else changed it.
        """
        kept = self._store.put(name, profile, _accepts(if_match, if_none_match))
        response.headers["ETag"] = f'"{kept.entry.tag}"'
        if kept.is_new:
            response.status_code = 201
            response.headers["Location"] = f"/v1/profiles/{name}"
        return kept.entry

    def delete(self, name: ProfileName, if_match: IfMatch = None) -> None:
        """The name is free again. Searches that used the profile keep its numbers."""
        self._store.delete(name, _accepts(if_match, None))


def _accepts(if_match: str | None, if_none_match: str | None) -> Accepts:
    """What the headers of RFC 9110, 13.1, ask of the tag that is there."""

    def accepts(tag: str | None) -> bool:
        expected = if_match is None or _names(if_match, tag)
        return expected and not (if_none_match is not None and _names(if_none_match, tag, weak=True))

    return accepts


def _names(header: str, tag: str | None, *, weak: bool = False) -> bool:
    """Whether a list of entity tags, or *, names this one."""
    if tag is None:
        return False
    parts = [part.strip() for part in header.split(",")]
    return "*" in parts or any((part.removeprefix("W/") if weak else part) == f'"{tag}"' for part in parts)

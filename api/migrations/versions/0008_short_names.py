"""Searches know what people call their model and cluster, for lists, which need not read requests then."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
LONGEST = 200


def upgrade() -> None:
    """Those that there are get both from their requests, one at a time; what cannot be read stays without."""
    op.add_column("searches", sa.Column("model_name", sa.Text))
    op.add_column("searches", sa.Column("cluster_name", sa.Text))
    names = ("number", "request", "model_name", "cluster_name")
    searches = sa.table("searches", *(sa.column(name) for name in names))
    here = op.get_bind()
    for number in here.scalars(sa.select(searches.c.number)).all():
        of_this = searches.c.number == number
        text = here.execute(sa.select(searches.c.request).where(of_this)).scalar_one()
        try:
            request = json.loads(text)
            named = {"model_name": _model(request["model"]), "cluster_name": _cluster(request["cluster"])}
        except (LookupError, TypeError, ValueError, AttributeError):
            continue
        here.execute(searches.update().where(of_this).values(named))


def downgrade() -> None:
    """Only the requests know them again."""
    op.drop_column("searches", "cluster_name")
    op.drop_column("searches", "model_name")


def _model(request: dict[str, Any]) -> str:
    if request.get("preset") is not None:
        return _cut(request["preset"])
    if request.get("spec") is not None:
        return _cut(request["spec"]["name"])
    named = (request["hf_config"].get(key) for key in ("_name_or_path", "model_type"))
    return _cut(next((name for name in named if isinstance(name, str) and name), "config.json"))


def _cluster(request: dict[str, Any]) -> str:
    if "groups" in request:
        return _cut(" + ".join(_cluster(group) for group in request["groups"]))
    device = request["device"]
    named = device if isinstance(device, str) else device["name"]
    return _cut(f"{request['nodes']} × {request['devices_per_node']} {named}")


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"

"""Searches know the summary and the step time of their best plan, for lists."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Those that have a shortlist get both from it."""
    op.add_column("searches", sa.Column("best_plan_summary", sa.Text))
    op.add_column("searches", sa.Column("best_step_time_s", sa.Double))
    searches = sa.table(
        "searches",
        *(sa.column(name) for name in ("number", "shortlist", "best_plan_summary", "best_step_time_s")),
    )
    here = op.get_bind()
    for number in here.scalars(sa.select(searches.c.number).where(searches.c.shortlist.is_not(None))).all():
        of_this = searches.c.number == number
        shortlist = here.execute(sa.select(searches.c.shortlist).where(of_this)).scalar_one()
        best = json.loads(shortlist)["plans"][0]
        here.execute(
            searches.update()
            .where(of_this)
            .values(best_plan_summary=best["plan"]["summary"], best_step_time_s=best["estimate"]["step_time_s"])
        )


def downgrade() -> None:
    """Only the shortlists know it again."""
    op.drop_column("searches", "best_step_time_s")
    op.drop_column("searches", "best_plan_summary")

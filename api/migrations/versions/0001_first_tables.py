"""The first tables: searches, plans, runs, windows, decisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "searches",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("started_at", sa.DateTime),
        sa.Column("finished_at", sa.DateTime),
        sa.Column("idempotency_key", sa.String(255), unique=True),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("best_plan_id", sa.String(64)),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("cluster", sa.Text, nullable=False),
        sa.Column("shortlist", sa.Text),
    )
    op.create_index("searches_waiting", "searches", ["state", "number"])
    op.create_table(
        "plans",
        sa.Column("search_number", sa.Integer, sa.ForeignKey("searches.number"), primary_key=True),
        sa.Column("rank", sa.Integer, primary_key=True),
        sa.Column("plan_id", sa.String(64), nullable=False),
    )
    op.create_index("ix_plans_plan_id", "plans", ["plan_id"])
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("search_number", sa.Integer, sa.ForeignKey("searches.number"), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
    )
    op.create_index("ix_runs_name", "runs", ["name"])
    for table, value, time in (("windows", "window", "received_at"), ("decisions", "decision", "decided_at")):
        op.create_table(
            table,
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("run_number", sa.Integer, sa.ForeignKey("runs.number"), nullable=False),
            sa.Column("index", sa.BigInteger, nullable=False),
            sa.Column(time, sa.DateTime, nullable=False),
            sa.Column(value, sa.Text, nullable=False),
            sa.UniqueConstraint("run_number", "index"),
        )


def downgrade() -> None:
    """Drop the tables, and all that is in them."""
    for table in ("decisions", "windows", "runs", "plans", "searches"):
        op.drop_table(table)

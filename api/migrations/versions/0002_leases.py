"""Searches that run have a holder and a lease, for several services on one database; equal ones share a result."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What runs without a lease, since before, is anybody's; what has no question shares nothing."""
    op.add_column("searches", sa.Column("holder", sa.String(64)))
    op.add_column("searches", sa.Column("lease_until", sa.DateTime))
    op.add_column("searches", sa.Column("question", sa.String(64)))
    op.create_index("ix_searches_question", "searches", ["question"])


def downgrade() -> None:
    """One service at a time again."""
    op.drop_index("ix_searches_question", "searches")
    op.drop_column("searches", "question")
    op.drop_column("searches", "lease_until")
    op.drop_column("searches", "holder")

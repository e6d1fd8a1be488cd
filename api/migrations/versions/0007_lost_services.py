"""Services that died over a search are counted apart from workers that did."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was counted before counts as workers, as it did."""
    op.add_column("searches", sa.Column("lost_services", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Both in one number again."""
    op.drop_column("searches", "lost_services")

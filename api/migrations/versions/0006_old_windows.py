"""Old windows can be found and removed, by one service at a time; numbers of windows have no end in sight."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBERED = ("windows", "decisions")
"""Tables that grow with each window: a hundred a second are 2**31 within nine months."""


def upgrade() -> None:
    """On PostgreSQL the two large tables are written anew, which takes as long as it takes; nothing is lost."""
    op.create_index("ix_windows_received_at", "windows", ["received_at"])
    op.create_table(
        "chores",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(64)),
        sa.Column("lease_until", sa.DateTime),
    )
    op.execute("INSERT INTO chores (name) VALUES ('old windows')")
    if op.get_bind().dialect.name == "postgresql":  # SQLite's numbers are of 64 bits already
        for table in NUMBERED:
            op.alter_column(table, "number", type_=sa.BigInteger())
            op.execute(f"ALTER SEQUENCE {table}_number_seq AS bigint")


def downgrade() -> None:
    """Refused by PostgreSQL where a number is too large already."""
    if op.get_bind().dialect.name == "postgresql":
        for table in NUMBERED:
            op.execute(f"ALTER SEQUENCE {table}_number_seq AS integer")
            op.alter_column(table, "number", type_=sa.Integer())
    op.drop_table("chores")
    op.drop_index("ix_windows_received_at", "windows")

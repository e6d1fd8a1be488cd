"""How Alembic runs the steps: on the connection, and in the transaction, that api.database hands it."""

from __future__ import annotations

from alembic import context

from api.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()

"""Alembic's entry point: runs the revisions inside the transaction that db/migrate.py hands over."""

from __future__ import annotations

from alembic import context

from db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

"""Brings a database's schema to head, and says how far it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from db.answers import translated
from db.connecting import Connector
from db.database import DIALECT
from db.errors import DatabaseError

CONNECT_TIMEOUT_S = 5
WAIT_FOR_OTHER_MIGRATION_S = 60
WAIT_FOR_TABLE_S = 5  # whoever queues behind a migration that waits for a table waits with it

_MIGRATION_LOCK = 0x6368_6172_6765  # any number that others are unlikely to take; this one spells "charge"
_alembic = threading.Lock()  # Alembic keeps the migration under way in a module: one a process


class SchemaMismatch(DatabaseError):
    """The database is at a revision that this release does not know."""


@dataclass(frozen=True, slots=True)
class AppliedRevision:
    """One migration that was run."""

    revision: str
    title: str


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration found, and what it did; `from_revision` is None for a database that had no schema."""

    from_revision: str | None
    to_revision: str
    applied: tuple[AppliedRevision, ...]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """Where a schema is, and where this release wants it; `revision` is None where there is no schema."""

    revision: str | None
    head: str

    @property
    def at_head(self) -> bool:
        """Whether this release can work on it."""
        return self.revision == self.head


def migrate(url: str) -> MigrationReport:
    """Brings the schema to head in one transaction: every missing migration is run, or none.

    Of several processes at once, one does the work and the others wait and find it done.
    Raises SchemaMismatch, DatabaseDown, TimedOut, or DatabaseError when a migration fails.
    """
    scripts = ScriptDirectory.from_config(_config())
    with _alembic, _transaction(url) as connection:
        _wait_for_other_migrations(connection)
        before = _revision(connection)
        missing = _missing(scripts, before)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return MigrationReport(from_revision=before, to_revision=_head(scripts), applied=missing)


def schema_state(url: str) -> SchemaState:
    """Reads how far the schema is, and changes nothing. Raises DatabaseDown, SchemaMismatch."""
    with _transaction(url) as connection:
        return SchemaState(revision=_revision(connection), head=_head(ScriptDirectory.from_config(_config())))


def at_head(url: str) -> bool:
    """Whether the schema is exactly the one that this release was written for."""
    return schema_state(url).at_head


@contextmanager
def _transaction(url: str) -> Iterator[sa.Connection]:
    connector = Connector(url, connect_timeout_s=CONNECT_TIMEOUT_S)
    engine = sa.create_engine(DIALECT, creator=connector.connect, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise translated(error) from error


def _wait_for_other_migrations(connection: sa.Connection) -> None:
    _set_lock_timeout(connection, WAIT_FOR_OTHER_MIGRATION_S)
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    _set_lock_timeout(connection, WAIT_FOR_TABLE_S)


def _set_lock_timeout(connection: sa.Connection, seconds: int) -> None:
    connection.execute(sa.select(sa.func.set_config("lock_timeout", f"{seconds}s", True)))


def _revision(connection: sa.Connection) -> str | None:
    revisions = MigrationContext.configure(connection).get_current_heads()
    if len(revisions) > 1:
        raise SchemaMismatch(f"the database is at several revisions at once: {', '.join(sorted(revisions))}")
    return revisions[0] if revisions else None


def _missing(scripts: ScriptDirectory, revision: str | None) -> tuple[AppliedRevision, ...]:
    known = {script.revision for script in scripts.walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaMismatch(
            f"the database is at revision {revision}, and this release knows none above {_head(scripts)}:"
            " run the release that migrated it, or a newer one"
        )
    newest_first = scripts.iterate_revisions(_head(scripts), revision or "base")
    return tuple(AppliedRevision(script.revision, script.doc) for script in newest_first)[::-1]


def _head(scripts: ScriptDirectory) -> str:
    head = scripts.get_current_head()
    assert head is not None, "there is at least one migration"
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config

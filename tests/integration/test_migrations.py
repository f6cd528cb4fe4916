"""The schema comes to head once, whoever asks, and is the one of db/tables.py."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from db.errors import DatabaseDown, DatabaseError
from db.migrate import _MIGRATION_LOCK, AppliedRevision, MigrationReport, SchemaMismatch, at_head, migrate, schema_state
from db.tables import metadata
from tests.harness import driver_url, wait_until

ROOT = Path(__file__).parents[2]
MIGRATE_AND_TELL = "import sys, db.migrate as m; print(len(m.migrate(sys.argv[1]).applied))"


def test_a_fresh_database_has_no_schema(empty_database_url: str) -> None:
    assert schema_state(empty_database_url).revision is None
    assert not at_head(empty_database_url)


def test_looking_at_the_schema_creates_nothing(empty_database_url: str) -> None:
    schema_state(empty_database_url)

    assert _table_names(empty_database_url) == []


def test_a_migration_says_what_it_did_and_a_second_one_does_nothing(empty_database_url: str) -> None:
    first = migrate(empty_database_url)
    second = migrate(empty_database_url)

    assert first.from_revision is None
    assert first.applied[0] == AppliedRevision("0001", "The first schema, and the champagne")
    assert second == MigrationReport(from_revision=first.to_revision, to_revision=first.to_revision, applied=())
    assert at_head(empty_database_url)


def test_the_migrated_schema_is_the_one_of_the_tables(database_url: str) -> None:
    with _connected(database_url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_the_migrated_constraints_are_those_of_the_tables_name_by_name(empty_database_url: str) -> None:
    with _connected(empty_database_url) as connection:
        metadata.create_all(connection)
        declared = _constraints_and_storage(connection)
        metadata.drop_all(connection)
        connection.commit()

    migrate(empty_database_url)

    with _connected(empty_database_url) as connection:
        assert _constraints_and_storage(connection) == declared


@pytest.mark.parametrize("table", ["coupon_info", "prop_info"])
def test_the_champagne_is_there(database_url: str, table: str) -> None:
    with _connected(database_url) as connection:
        rows = connection.execute(sa.text(f"SELECT id, name FROM {table}")).all()

    assert [tuple(row) for row in rows] == [(1, "champagne")]


def test_of_two_processes_that_migrate_at_once_both_succeed_and_one_does_the_work(empty_database_url: str) -> None:
    with _connected(empty_database_url) as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        processes = [_start_migrating(empty_database_url) for _ in range(2)]
        wait_until(lambda: _waiters_for_the_migration_lock(connection) == 2)
        connection.commit()

        answers = [process.communicate(timeout=30) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], answers
    assert [json.loads(stdout) > 0 for stdout, _ in answers].count(True) == 1
    assert at_head(empty_database_url)


def test_an_unknown_revision_is_refused_in_one_sentence_and_left_alone(database_url: str) -> None:
    with _connected(database_url) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.commit()

    with pytest.raises(SchemaMismatch, match=r"^the database is at revision 9999, .*[^\n]$"):
        migrate(database_url)

    assert schema_state(database_url).revision == "9999"
    assert not at_head(database_url)


def test_a_migration_that_fails_leaves_nothing_behind(empty_database_url: str) -> None:
    with _connected(empty_database_url) as connection:
        connection.execute(sa.text("CREATE TABLE lock_audit (id bigint)"))
        connection.commit()

    with pytest.raises(DatabaseError, match='"lock_audit" already exists'):
        migrate(empty_database_url)

    assert _table_names(empty_database_url) == ["lock_audit"]


@pytest.mark.parametrize("work", [migrate, schema_state])
def test_a_database_out_of_reach_is_down(database_url: str, work: Callable[[str], object]) -> None:
    nobody_listens = sa.make_url(database_url).set(host="127.0.0.1", port=1, query={})

    with pytest.raises(DatabaseDown):
        work(nobody_listens.render_as_string(hide_password=False))


def test_migrating_prints_nothing_and_leaves_the_logs_as_they_are(
    empty_database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = _logging_set_up()

    migrate(empty_database_url)

    assert capfd.readouterr() == ("", "")
    assert _logging_set_up() == before


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(driver_url(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


def _table_names(url: str) -> list[str]:
    with _connected(url) as connection:
        return sa.inspect(connection).get_table_names()


def _constraints_and_storage(connection: sa.Connection) -> set[tuple[object, ...]]:
    """Every constraint, index and storage option of our tables, as Postgres describes them."""
    described = sa.text(
        """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid <> coalesce(to_regclass('alembic_version'), 0)
        UNION ALL
        SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version'
        UNION ALL
        SELECT relname, 'options', reloptions::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
        """
    )
    return {tuple(row) for row in connection.execute(described)}


def _start_migrating(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", MIGRATE_AND_TELL, url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _waiters_for_the_migration_lock(connection: sa.Connection) -> int:
    waiting = sa.text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    count: int = connection.execute(waiting).scalar_one()
    return count


def _logging_set_up() -> tuple[object, ...]:
    alembic = logging.getLogger("alembic")
    return logging.root.level, list(logging.root.handlers), alembic.level, list(alembic.handlers)

"""Whether the database takes writes, and what is no longer used once it does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import sqlalchemy as sa

from db.database import Database
from locks import Locker
from service.health import Health
from service.observe import Metrics
from service.openapi import status_of_codes
from tests.harness import PATIENCE_S, Rows
from tests.integration.charging_helpers import PATIENT


def backend(connection: sa.Connection) -> int:
    pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    assert isinstance(pid, int)
    return pid


async def test_no_session_of_the_time_in_which_the_database_only_read_is_used_afterwards(
    database_url: str, redis_url: str, rows: Rows
) -> None:
    """Even one that was in use when the database was found to take writes: it may lead to a standby that is behind."""
    database_name = sa.make_url(database_url).database
    metrics = Metrics(status_of_codes())
    with closing(Database(database_url, limits=PATIENT)) as database, ThreadPoolExecutor(1) as threads:
        health = Health(database, threads, Locker(redis_url, instance_id="a"), metrics, interval_s=PATIENCE_S)
        rows.run(f"ALTER DATABASE {database_name} SET default_transaction_read_only = on")
        await health.start()
        try:
            assert health.dependencies["database"] is False
            with database.engine.connect() as in_use:
                only_reads = backend(in_use)
                rows.run(f"ALTER DATABASE {database_name} RESET default_transaction_read_only")
                await health._look()
                assert health.dependencies["database"] is True

            used = database.read(lambda one: {backend(one), database.read(backend)})
        finally:
            await health.stop()
    assert only_reads not in used

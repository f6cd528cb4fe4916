"""Database work beside the event loop: what took too long may be written, or was only read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest

from db.coupons import coupons_of, grant_coupons
from db.database import Database
from db.errors import CommitUnknown, DatabaseDown
from service.reading import Reading
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_helpers import ANN, PATIENT


async def test_a_write_that_takes_too_long_is_unknown_and_a_read_is_down(database_url: str, rows: Rows) -> None:
    with (
        closing(Database(database_url, limits=PATIENT)) as database,
        ThreadPoolExecutor(2) as threads,
        closing(psycopg2.connect(database_url)) as other,
    ):
        reading = Reading(database, threads, max_waiting=5, timeout_s=0.2)
        other.cursor().execute("LOCK TABLE user_coupon IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(DatabaseDown):
            await reading.run(lambda database: coupons_of(database, ANN))
        with pytest.raises(CommitUnknown):
            await reading.write(
                lambda database: grant_coupons(database, user_id=ANN, coupon_id=1, count=1, reference="r")
            )
        other.rollback()

        async def granted() -> bool:
            return rows.balance(ANN) == 1

        await wait_until_async(granted, patience_s=PATIENCE_S, what="the grant, which went on")

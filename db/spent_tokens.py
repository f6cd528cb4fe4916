"""What is good for nothing any more before it expires: sessions that are signed out, codes that were used.

Only digests are kept, and only until what they are digests of would be over anyway.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from db.database import Database
from db.looking import looked
from db.tables import spent_token

# Over for so long that it is over by every clock, and by no leeway still good.
KEPT_AFTER = timedelta(days=1)
REMOVED_AT_ONCE = 1000


def spend(database: Database, digest: bytes, *, expires_at: float) -> bool:
    """Writes that this is spent, until `expires_at` (unix seconds); of all calls with a digest, one gets True.

    Committed when it returns. Rows that are over go with it.
    """
    row = insert(spent_token).values(digest=digest, expires_at=_time(expires_at))
    new = row.on_conflict_do_nothing().returning(spent_token.c.spent_at)
    over = sa.select(spent_token.c.digest).where(spent_token.c.expires_at < sa.func.now() - KEPT_AFTER)
    over = over.limit(REMOVED_AT_ONCE).with_for_update(skip_locked=True)
    wrote: list[datetime] = []

    def work(connection: sa.Connection) -> bool:
        connection.execute(sa.delete(spent_token).where(spent_token.c.digest.in_(over)))
        spent_at = connection.scalar(new)
        if spent_at is not None:
            wrote.append(spent_at)
        return spent_at is not None

    def standing(connection: sa.Connection) -> bool | None:
        """Who wants to write the same digest waits for one under way, and cannot where it stands."""
        if connection.scalar(new) is not None:
            return None
        return connection.scalar(sa.select(spent_token.c.spent_at).where(spent_token.c.digest == digest)) in wrote

    return database.settled_transaction(work, standing)


def spent_among(database: Database, digests: Collection[bytes]) -> frozenset[bytes]:
    """Those of them that are spent. Raises MayNotLook where the role may not read it."""
    found = sa.select(spent_token.c.digest).where(spent_token.c.digest.in_(digests))
    rows = database.read(lambda connection: looked(connection, lambda inner: inner.scalars(found).all()))
    return frozenset(bytes(row) for row in rows)


def _time(unix_s: float) -> datetime:
    """Postgres and Python have last years of their own; what ends later than in 9000 years ends then."""
    return datetime.fromtimestamp(min(unix_s, _LATEST_S), UTC)


_LATEST_S = datetime(9000, 1, 1, tzinfo=UTC).timestamp()

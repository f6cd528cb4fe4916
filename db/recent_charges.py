"""The newest charges, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from db.database import Database
from db.tables import user_consume


@dataclass(frozen=True, slots=True)
class RecentCharge:
    """One row of user_consume, with the fencing token under which it was written."""

    id: int
    appointment_id: int
    payer_id: int
    other_user_id: int
    coupon_id: int
    prop_id: int
    count: int
    fencing_token: int | None
    charged_at: datetime


def recent_charges(
    database: Database, *, limit: int, before: int | None = None
) -> tuple[list[RecentCharge], int | None]:
    """At most `limit` charges, newest first, older than the charge `before`; and what to pass for the next page."""
    charge = user_consume.c
    newest = (
        sa.select(
            charge.id,
            charge.appointment_id,
            charge.user_id.label("payer_id"),
            charge.other_user_id,
            charge.coupon_id,
            charge.prop_id,
            charge["count"].label("count"),
            charge.lock_fence.label("fencing_token"),
            charge.created_at.label("charged_at"),
        )
        .order_by(charge.id.desc())
        .limit(limit + 1)
    )
    if before is not None:
        newest = newest.where(charge.id < before)
    rows = database.read(lambda connection: connection.execute(newest).all())
    page = [RecentCharge(**row._mapping) for row in rows[:limit]]
    return page, page[-1].id if len(rows) > limit else None

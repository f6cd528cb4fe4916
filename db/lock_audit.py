"""Who ended whose lease by force, when and why: one row a call, written before it is done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from db.database import Database
from db.tables import lock_audit

FORCE_RELEASE = "force-release"
REFUSED = "force-release-refused"  # the lease had another fencing token, or was over
UNKNOWN = "force-release-unknown"  # the lock store did not answer


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call. `holder`: instance, host, pid, request, and owner, as they were found just before."""

    id: int
    at: datetime
    actor: str
    action: str
    lock_name: str
    reason: str
    holder: str | None
    fencing_token: int | None


def note(database: Database, *, actor: str, lock_name: str, reason: str, holder: str | None, fencing_token: int) -> int:
    """Writes that a lease is about to be ended by force; the entry's id. Committed when it returns."""
    new = insert(lock_audit).values(
        actor=actor,
        action=FORCE_RELEASE,
        lock_name=lock_name,
        reason=reason,
        holder=holder,
        fencing_token=fencing_token,
    )
    same = new.on_conflict_do_nothing(index_elements=["id"])
    made: list[tuple[int, datetime]] = []

    def work(connection: sa.Connection) -> int:
        id_, at = connection.execute(new.returning(lock_audit.c.id, lock_audit.c.at)).one()
        made.append((id_, at))
        return int(id_)

    def standing(connection: sa.Connection) -> int | None:
        """Who wants to write a row of the same id waits for one under way, and cannot where it stands."""
        id_, at = made[-1]
        connection.execute(same.values(id=id_))
        # The id alone does not do: after a crash a sequence may give the same id again.
        stands = connection.scalar(sa.select(lock_audit.c.at).where(lock_audit.c.id == id_)) == at
        return id_ if stands else None

    return database.settled_transaction(work, standing)


def mark_refused(database: Database, audit_id: int) -> None:
    """Nothing was released: that lease was not the current one."""
    _mark(database, audit_id, REFUSED)


def mark_unknown(database: Database, audit_id: int) -> None:
    """The lock store did not say whether it was released."""
    _mark(database, audit_id, UNKNOWN)


def entries(database: Database, *, limit: int, before: int | None = None) -> tuple[list[AuditEntry], int | None]:
    """At most `limit` entries, newest first, older than the entry `before`; and what to pass for the next page."""
    newest = sa.select(lock_audit).order_by(lock_audit.c.id.desc()).limit(limit + 1)
    if before is not None:
        newest = newest.where(lock_audit.c.id < before)
    rows = database.read(lambda connection: connection.execute(newest).all())
    page = [AuditEntry(**row._mapping) for row in rows[:limit]]
    return page, page[-1].id if len(rows) > limit else None


def _mark(database: Database, audit_id: int, action: str) -> None:
    update = sa.update(lock_audit).where(lock_audit.c.id == audit_id).values(action=action)
    database.transaction(lambda connection: connection.execute(update))

"""Coupons: granted exactly once a reference, counted, and every movement shown."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from db.database import Database
from db.tables import coupon_grant, coupon_info, user_consume, user_coupon

MAX_BALANCE = 2**63 - 1
MAX_REFERENCE_BYTES = 2000  # an entry of the unique index holds little more

MovementKind = Literal["grant", "charge"]


class GrantRefused(Exception):
    """A grant that cannot be made; nothing was written."""


class ReferenceReused(GrantRefused):
    """The reference was used for a grant with another content."""


class UnknownCoupon(GrantRefused):
    """There is no such coupon."""


class BalanceTooLarge(GrantRefused):
    """The user would have more coupons than can be counted."""


class UnstorableReference(GrantRefused):
    """The reference is empty, too long, or holds what Postgres cannot store: NUL, a lone surrogate."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant; `balance` is what the user has of this coupon now, `repeated` whether it was made before."""

    id: int
    user_id: int
    coupon_id: int
    count: int
    reference: str
    granted_at: datetime
    balance: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class CouponBalance:
    """How many of one coupon a user has."""

    coupon_id: int
    count: int


@dataclass(frozen=True, slots=True)
class Movement:
    """One change of a balance: `count` is positive for a grant, negative for a charge."""

    kind: MovementKind
    id: int
    coupon_id: int
    count: int
    at: datetime
    reference: str | None
    appointment_id: int | None


@dataclass(frozen=True, slots=True)
class MovementCursor:
    """The place behind one movement in the order newest first."""

    at: datetime
    kind: MovementKind
    id: int


def grant_coupons(database: Database, *, user_id: int, coupon_id: int, count: int, reference: str) -> Grant:
    """Grants once, however often and from wherever the same reference comes; a repeat writes nothing.

    Raises ReferenceReused, UnknownCoupon, BalanceTooLarge, UnstorableReference.
    """
    _check_storable(reference)
    if count > MAX_BALANCE:
        raise BalanceTooLarge(f"more coupons than can be counted: {count}")
    made: set[tuple[int, datetime]] = set()

    def work(connection: sa.Connection) -> Grant:
        granted = _insert_grant(connection, user_id, coupon_id, count, reference)
        if granted is None:
            return earlier(connection)
        made.add((granted.id, granted.created_at))
        balance = _add_to_balance(connection, user_id, coupon_id, count)
        return Grant(granted.id, user_id, coupon_id, count, reference, granted.created_at, balance, repeated=False)

    def earlier(connection: sa.Connection) -> Grant:
        found = _earlier_grant(connection, user_id, coupon_id, count, reference)
        return replace(found, repeated=(found.id, found.granted_at) not in made)

    def standing(connection: sa.Connection) -> Grant | None:
        """The reference tells whether a grant stands, and who wants to write it waits for one under way."""
        is_free = _insert_grant(connection, user_id, coupon_id, count, reference) is not None
        return None if is_free else earlier(connection)

    return database.settled_transaction(work, standing)


def coupons_of(database: Database, user_id: int) -> list[CouponBalance]:
    """What the user has, by coupon; a coupon that the user never had is not listed."""
    select = (
        sa.select(user_coupon.c.coupon_id, user_coupon.c["count"])
        .where(user_coupon.c.user_id == user_id)
        .order_by(user_coupon.c.coupon_id)
    )
    rows = database.read(lambda connection: connection.execute(select).all())
    return [CouponBalance(coupon_id, count) for coupon_id, count in rows]


def movements_of(
    database: Database, user_id: int, *, limit: int, before: MovementCursor | None = None
) -> tuple[list[Movement], MovementCursor | None]:
    """One page of the user's grants and charges, newest first, and the cursor of the next page, if any.

    Whatever is written between two pages: nothing is shown twice, and nothing that was there is left out.
    """
    all_movements = _movements(user_id)
    place = sa.tuple_(all_movements.c.at, all_movements.c.kind, all_movements.c.id)
    newest_first = (all_movements.c.at.desc(), all_movements.c.kind.desc(), all_movements.c.id.desc())
    select = sa.select(all_movements).order_by(*newest_first).limit(limit + 1)
    if before is not None:
        select = select.where(place < sa.tuple_(before.at, before.kind, before.id))
    rows = database.read(lambda connection: connection.execute(select).all())
    page = [Movement(*row) for row in rows[:limit]]
    return page, _cursor_behind(page[-1]) if len(rows) > limit else None


def encode_cursor(cursor: MovementCursor) -> str:
    """The cursor as a string that may stand in a URL."""
    plain = f"{(cursor.at - _EPOCH) // _MICROSECOND}.{cursor.kind}.{cursor.id}"
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def decode_cursor(text: str) -> MovementCursor:
    """The cursor that `encode_cursor` made this string of. Raises ValueError for every other string."""
    cursor = _parse_cursor(text)
    if cursor is None or encode_cursor(cursor) != text:
        raise ValueError("not a cursor")
    return cursor


def _check_storable(reference: str) -> None:
    try:
        encoded = reference.encode()
    except UnicodeEncodeError as error:
        raise UnstorableReference("the reference holds a lone surrogate") from error
    if b"\0" in encoded:
        raise UnstorableReference("the reference holds a NUL character")
    if not 0 < len(encoded) <= MAX_REFERENCE_BYTES:
        raise UnstorableReference(f"the reference must have 1 to {MAX_REFERENCE_BYTES} bytes")


def _insert_grant(
    connection: sa.Connection, user_id: int, coupon_id: int, count: int, reference: str
) -> sa.Row[int, datetime] | None:
    """The new row; None when the reference is taken. Waits for a grant under way with the same reference."""
    if connection.scalar(sa.select(coupon_info.c.id).where(coupon_info.c.id == coupon_id)) is None:
        raise UnknownCoupon(f"there is no coupon {coupon_id}")
    statement = (
        insert(coupon_grant)
        .values(user_id=user_id, coupon_id=coupon_id, count=count, reference=reference)
        .on_conflict_do_nothing(index_elements=["reference"])
        .returning(coupon_grant.c.id, coupon_grant.c.created_at)
    )
    return connection.execute(statement).one_or_none()


def _add_to_balance(connection: sa.Connection, user_id: int, coupon_id: int, count: int) -> int:
    statement = insert(user_coupon).values(user_id=user_id, coupon_id=coupon_id, count=count)
    balance: int | None = connection.scalar(
        statement.on_conflict_do_update(
            index_elements=["user_id", "coupon_id"],
            set_={"count": user_coupon.c["count"] + statement.excluded["count"]},
            where=user_coupon.c["count"] <= MAX_BALANCE - count,
        ).returning(user_coupon.c["count"])
    )
    if balance is None:
        raise BalanceTooLarge(f"user {user_id} would have more of coupon {coupon_id} than can be counted")
    return balance


def _earlier_grant(connection: sa.Connection, user_id: int, coupon_id: int, count: int, reference: str) -> Grant:
    granted = coupon_grant.c
    same_balance = sa.and_(user_coupon.c.user_id == granted.user_id, user_coupon.c.coupon_id == granted.coupon_id)
    row = connection.execute(
        sa.select(
            granted.id,
            granted.user_id,
            granted.coupon_id,
            granted["count"],
            granted.reference,
            granted.created_at,
            sa.func.coalesce(user_coupon.c["count"], 0),
        )
        .outerjoin(user_coupon, same_balance)
        .where(granted.reference == reference)
    ).one()
    grant = Grant(*row, repeated=True)
    if (grant.user_id, grant.coupon_id, grant.count) != (user_id, coupon_id, count):
        raise ReferenceReused(f"reference {reference!r} was used for another grant")
    return grant


def _movements(user_id: int) -> sa.Subquery:
    grant, charge = coupon_grant.c, user_consume.c
    grants = sa.select(
        sa.literal("grant").label("kind"),
        grant.id,
        grant.coupon_id,
        grant["count"],
        grant.created_at.label("at"),
        grant.reference,
        sa.null().cast(sa.BigInteger).label("appointment_id"),
    ).where(grant.user_id == user_id)
    charges = sa.select(
        sa.literal("charge"),
        charge.id,
        charge.coupon_id,
        -charge["count"],
        charge.created_at,
        sa.null().cast(sa.Text),
        charge.appointment_id,
    ).where(charge.user_id == user_id)
    return sa.union_all(grants, charges).subquery("movements")


def _cursor_behind(movement: Movement) -> MovementCursor:
    return MovementCursor(movement.at, movement.kind, movement.id)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENCODED = re.compile(r"[A-Za-z0-9_-]{1,100}")
_PLAIN = re.compile(rb"([0-9]{1,18})\.(grant|charge)\.([0-9]{1,19})")


def _parse_cursor(text: str) -> MovementCursor | None:
    if not _ENCODED.fullmatch(text) or len(text) % 4 == 1:
        return None
    parts = _PLAIN.fullmatch(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if parts is None or int(parts[3]) > MAX_BALANCE:
        return None
    kind: MovementKind = "grant" if parts[2] == b"grant" else "charge"
    try:
        at = _EPOCH + int(parts[1]) * _MICROSECOND
    except OverflowError:
        return None
    return MovementCursor(at, kind, int(parts[3]))

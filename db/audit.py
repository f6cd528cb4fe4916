"""Whether the books are right: every invariant that can be read from the tables, checked in one snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from db.database import Database
from db.errors import MayNotLook
from db.looking import looked
from db.sequences import BEHIND

AUDIT_STATEMENT_TIMEOUT_S = 600.0
EXAMPLE_LIMIT = 10

Example = dict[str, int | bool | str | None]


@dataclass(frozen=True, slots=True)
class Invariant:
    """What must hold, how many places break it, and up to ten of them; `unknown`: why that could not be looked at."""

    name: str
    sentence: str
    broken_count: int
    examples: list[Example]
    unknown: str | None = None

    @property
    def holds(self) -> bool:
        """Whether it was looked at, and nothing breaks it."""
        return self.broken_count == 0 and self.unknown is None


@dataclass(frozen=True, slots=True)
class AuditTotals:
    """How much was looked at: an audit of empty tables proves nothing. None: could not be counted."""

    appointments: int | None
    charges: int | None
    entries: int | None
    users: int | None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Every invariant, and how much it was checked on."""

    invariants: list[Invariant]
    totals: AuditTotals

    @property
    def holds(self) -> bool:
        """Whether every invariant holds."""
        return all(invariant.holds for invariant in self.invariants)

    @property
    def is_broken(self) -> bool:
        """Whether any invariant is known to be broken; what could not be looked at is neither broken nor holds."""
        return any(invariant.broken_count for invariant in self.invariants)


def audit(database: Database, *, statement_timeout_s: float = AUDIT_STATEMENT_TIMEOUT_S) -> AuditReport:
    """Checks the tables as they stood at one moment: a running service neither disturbs it nor is disturbed.

    An invariant that the role may not look at is unknown, and the others are checked.
    Raises DatabaseDown, or TimedOut when a single check takes longer than `statement_timeout_s`.
    """

    def work(connection: sa.Connection) -> AuditReport:
        _take_snapshot(connection, statement_timeout_s)
        return AuditReport(
            invariants=[_checked(connection, name, *rule) for name, rule in _RULES.items()],
            totals=AuditTotals(*[_counted(connection, count) for count in _TOTALS]),
        )

    return database.read(work)


def _take_snapshot(connection: sa.Connection, statement_timeout_s: float) -> None:
    connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    milliseconds = str(round(statement_timeout_s * 1000))
    connection.execute(sa.select(sa.func.set_config("statement_timeout", milliseconds, True)))


def _checked(connection: sa.Connection, name: str, sentence: str, broken: str) -> Invariant:
    counted = sa.text(
        f"SELECT count(*) OVER () AS broken_count, broken.* FROM ({broken}) AS broken"  # noqa: S608 (our own text)
        f" ORDER BY 2, 3 LIMIT {EXAMPLE_LIMIT}"
    )
    try:
        rows = looked(connection, lambda connection: connection.execute(counted).mappings().all())
    except MayNotLook as error:
        return Invariant(name, sentence, broken_count=0, examples=[], unknown=str(error))
    return Invariant(
        name=name,
        sentence=sentence,
        broken_count=rows[0]["broken_count"] if rows else 0,
        examples=[{column: value for column, value in row.items() if column != "broken_count"} for row in rows],
    )


def _counted(connection: sa.Connection, count: str) -> int | None:
    try:
        counted: int = looked(connection, lambda connection: connection.execute(sa.text(count)).scalar_one())
        return counted
    except MayNotLook:
        return None


# name: (what must hold, the rows that break it; the first two columns say which)
_RULES: dict[str, tuple[str, str]] = {
    "one_charge_per_appointment": (
        "An appointment has at most one user_consume.",
        """
        SELECT appointment_id, count(*) AS charges, min(id) AS first_charge_id, max(id) AS last_charge_id
        FROM user_consume
        GROUP BY appointment_id
        HAVING count(*) > 1
        """,
    ),
    "consumed_is_charged": (
        "Where is_consume is true, there is a user_consume.",
        """
        SELECT appointment.id AS appointment_id, appointment.user_id, appointment.invitee_user_id
        FROM appointment_info AS appointment
        WHERE appointment.is_consume
          AND NOT EXISTS (SELECT FROM user_consume AS charge WHERE charge.appointment_id = appointment.id)
        """,
    ),
    "charged_is_consumed": (
        "Where there is a user_consume, is_consume is true.",
        """
        SELECT charge.appointment_id, charge.id AS charge_id, charge.user_id AS payer_id
        FROM user_consume AS charge
        JOIN appointment_info AS appointment ON appointment.id = charge.appointment_id
        WHERE NOT appointment.is_consume
        """,
    ),
    "charge_has_appointment": (
        "Every user_consume is of an appointment that exists.",
        """
        SELECT charge.appointment_id, charge.id AS charge_id, charge.user_id AS payer_id
        FROM user_consume AS charge
        WHERE NOT EXISTS (
            SELECT FROM appointment_info AS appointment WHERE appointment.id = charge.appointment_id
        )
        """,
    ),
    "charge_between_participants": (
        "The payer and the other user of a user_consume are its appointment's two participants.",
        """
        SELECT charge.appointment_id, charge.id AS charge_id, charge.user_id AS payer_id,
               charge.other_user_id, appointment.user_id, appointment.invitee_user_id
        FROM user_consume AS charge
        JOIN appointment_info AS appointment ON appointment.id = charge.appointment_id
        WHERE (charge.user_id, charge.other_user_id) NOT IN (
            (appointment.user_id, appointment.invitee_user_id),
            (appointment.invitee_user_id, appointment.user_id)
        )
        """,
    ),
    "charge_has_entry": (
        "No user_consume without an ENTER row of its appointment.",
        """
        SELECT charge.appointment_id, charge.id AS charge_id, charge.user_id AS payer_id
        FROM user_consume AS charge
        WHERE NOT EXISTS (
            SELECT FROM appointment_action AS entry
            WHERE entry.appointment_id = charge.appointment_id AND entry.type = 1
        )
        """,
    ),
    "fence_of_charge": (
        "An appointment bears the fencing token under which it was charged.",
        """
        SELECT charge.appointment_id, charge.id AS charge_id, charge.lock_fence AS charge_fence,
               appointment.lock_fence AS appointment_fence
        FROM user_consume AS charge
        JOIN appointment_info AS appointment ON appointment.id = charge.appointment_id
        WHERE charge.lock_fence IS DISTINCT FROM appointment.lock_fence
        """,
    ),
    "balances_add_up": (
        "For each user and coupon, grants less consumptions are user_coupon.count.",
        """
        SELECT user_id, coupon_id,
               coalesce(granted.count, 0) AS granted, coalesce(consumed.count, 0) AS consumed,
               balance.count AS balance
        FROM user_coupon AS balance
        FULL JOIN (
            SELECT user_id, coupon_id, sum(count) AS count FROM coupon_grant GROUP BY user_id, coupon_id
        ) AS granted USING (user_id, coupon_id)
        FULL JOIN (
            SELECT user_id, coupon_id, sum(count) AS count FROM user_consume GROUP BY user_id, coupon_id
        ) AS consumed USING (user_id, coupon_id)
        WHERE coalesce(granted.count, 0) - coalesce(consumed.count, 0) <> coalesce(balance.count, 0)
        """,
    ),
    "no_negative_balance": (
        "No user_coupon.count is below zero.",
        "SELECT user_id, coupon_id, count AS balance FROM user_coupon WHERE count < 0",
    ),
    "sequences_ahead": ("No sequence gives an id that its table has already.", BEHIND),
}

INVARIANTS = tuple(_RULES)

# In the order of AuditTotals.
_TOTALS = (
    "SELECT count(*) FROM appointment_info",
    "SELECT count(*) FROM user_consume",
    "SELECT count(*) FROM appointment_action WHERE type = 1",
    """
    SELECT count(*) FROM (
        SELECT user_id FROM user_coupon
        UNION SELECT user_id FROM coupon_grant
        UNION SELECT user_id FROM user_consume
    ) AS users
    """,
)

"""Mutants that lack a layer, or use it in the wrong order: what the row lock, the Redis lock and the fence are for."""

from __future__ import annotations

from tests.chaos.mutants.edits import Edit, Python, Statement
from tests.chaos.mutants.mutant import Mutant

# The last layer, which would turn a second charge into an error.
WITHOUT_UNIQUE_KEY = ("ALTER TABLE user_consume DROP CONSTRAINT user_consume_appointment_id_key",)
TWICE = ("charged_at_most_once", "consume_once_linearizable")
HELD_OVER_LAPSE = (("rows_locked", "freeze"), ("decided", "freeze"), ("committing", "freeze"))
SLOW_INSIDE = (("rows_locked", "delay"), ("decided", "delay"), ("committing", "delay"))

_WITHOUT_LOCK = Python(
    "service.entering:Entering._charge",
    """
    -            return await self._charge_in_turn(request, time.monotonic())
    +            return await self._charge_without_lease(request)
    """,
)
_PLAIN_READ: tuple[Edit, ...] = (
    Statement("LOCK_FREE", " FOR UPDATE OF appointment_info SKIP LOCKED", ""),
    Statement("LOCK", " FOR UPDATE OF appointment_info", ""),
)


def _reads_entry_log(statement: str) -> Edit:
    return Statement(
        statement,
        "appointment_info.is_consume AS is_consume",
        "EXISTS (SELECT FROM appointment_action entry WHERE entry.appointment_id = appointment_info.id) AS is_consume",
    )


def _decides_without_flag(statement: str) -> tuple[Edit, ...]:
    """The locking read gives a charge's id and the payer's coupons whatever the row says by now."""
    is_due, is_open = "NOT appointment.is_consume AND appointment.status = 1", "appointment.status = 1"
    return (
        Statement(statement, f"WHERE {is_due}", f"WHERE {is_open}"),
        Statement(statement, f"({is_due})", f"({is_open})"),
    )


LAYERS = (
    Mutant(
        name="no-guard",
        does="Reads is_consume without a lock of any kind, and writes.",
        caught_by=TWICE,
        points=SLOW_INSIDE,
        hints=("hot",),
        edits=(_WITHOUT_LOCK, *_PLAIN_READ),
        schema=WITHOUT_UNIQUE_KEY,
    ),
    Mutant(
        name="entry-log",
        does="Takes the appointment for charged once there is an ENTER row, as the origin did.",
        caught_by=TWICE,
        points=SLOW_INSIDE,
        hints=("hot",),
        edits=(_WITHOUT_LOCK, *_PLAIN_READ, _reads_entry_log("LOCK_FREE"), _reads_entry_log("LOCK")),
        schema=WITHOUT_UNIQUE_KEY,
    ),
    Mutant(
        name="lock-only",
        does="Trusts the Redis lock alone: reads the row without locking it.",
        caught_by=TWICE,
        points=HELD_OVER_LAPSE,
        hints=("hot",),
        edits=_PLAIN_READ,
        schema=WITHOUT_UNIQUE_KEY,
    ),
    Mutant(
        name="row-only",
        does="Says that it holds the Redis lock, and has not asked for it.",
        caught_by=("holders_do_not_overlap", "overlaps_are_explained"),
        points=SLOW_INSIDE,
        hints=("hot",),
        edits=(
            Python(
                "locks.acquiring:Acquiring.acquire",
                """
                +            if begins_at_once:
                +                import time
                +
                +                lease_id, fence = self._new_lease_id(), time.time_ns() // 1000
                +                return self._begin_at_once(
                +                    name, lease_id, fence, lease_ttl_s, False, for_whom, started_at_s, 0.0
                +                )
                             if wait_s is not None and wait_s <= 0:
                """,
            ),
        ),
    ),
    Mutant(
        name="release-before-commit",
        does="Releases the lock as soon as the charge is submitted; the row is read without a lock, so that it shows.",
        caught_by=TWICE,
        points=SLOW_INSIDE,
        hints=("hot",),
        edits=(
            Python(
                "service.entering:Entering._charge_in_turn",
                """
                +                    charge.lease = None
                +                    await lease.release()
                                     timed = await charge
                """,
            ),
            *_PLAIN_READ,
        ),
        schema=WITHOUT_UNIQUE_KEY,
    ),
    Mutant(
        name="stale-read",
        does="Reads is_consume first, then locks the row, and decides on what it read first.",
        caught_by=TWICE,
        points=HELD_OVER_LAPSE,
        run_s=4.0,
        hints=("hot",),
        edits=(
            Python(
                "db.batch:ChargingBatch.begin",
                """
                +        asked = FIND_CHARGED.with_values(appointment_ids=self.appointment_ids)
                +        flags = {row[0]: row[4] for row in await ask(asked)}
                         rows = await self._locked_rows(ask)
                +        appointments = {
                +            id_: row._replace(is_consume=flags[id_]) for id_, row in rows.appointments.items()
                +        }
                +        rows = rows._replace(appointments=appointments)
                """,
            ),
            *_decides_without_flag("LOCK"),
            *_decides_without_flag("LOCK_FREE"),
        ),
        schema=WITHOUT_UNIQUE_KEY,
    ),
)

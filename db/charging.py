"""The charge: many requests in one transaction. Lock rows, decide, write, COMMIT; each request learns its own outcome.

Locks are taken in one order everywhere, appointments ascending, then coupons ascending: batches cannot deadlock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from db.charging_statements import (
    FIND_APPOINTMENTS,
    FIND_CHARGES,
    FIND_ENTRY,
    LOCK_APPOINTMENTS,
    LOCK_COUPONS,
    LOCK_FREE_APPOINTMENTS,
    STATEMENTS,
    WRITE,
)
from db.database import Database
from db.decisions import (
    AppointmentRow,
    ChargeRequest,
    Decisions,
    LetIn,
    LockedRows,
    NewCharge,
    Outcome,
    Refusal,
    Rules,
    decide,
    payers_due,
)
from db.errors import CommitUnknown, DatabaseDown, TimedOut
from db.events import Committed, Committing, Listener, RowsLocked, Settled, ignore
from db.prepared import Prepared
from db.records import ChargeRecord

SETTLE_PAUSE_S = 0.05
RUNS_PER_BATCH = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that was let in and stands in the tables. `charge` is this one's, the earlier one, or None when free."""

    outcome: Outcome
    charge: ChargeRecord | None
    entered_at: datetime


class HeldElsewhere(Refusal):
    """Another session holds the appointment's row; nothing was decided. Ask again, alone, with charge_waiting."""


Verdict = Entry | Refusal


class Charges:
    """Charges on a database that it has for itself. Blocking: one call a transaction."""

    def __init__(
        self, database: Database, rules: Rules, *, settle_within_s: float = 2.0, listener: Listener = ignore
    ) -> None:
        database.prepare(STATEMENTS)
        self._database = database
        self._rules = rules
        self._settle_within_s = settle_within_s
        self._emit = listener

    def charge_batch(self, requests: Sequence[ChargeRequest]) -> list[Verdict]:
        """One verdict a request, in their order; rows that others hold are not waited for (HeldElsewhere).

        Raises DatabaseDown, TimedOut, Conflict (nothing was written) or CommitUnknown (it could not be settled).
        """
        return self._charge(requests, LOCK_FREE_APPOINTMENTS)

    def charge_waiting(self, requests: Sequence[ChargeRequest]) -> list[Verdict]:
        """As charge_batch, but waits for rows that others hold, at most the row lock's limit (TimedOut)."""
        return self._charge(requests, LOCK_APPOINTMENTS)

    def _charge(self, requests: Sequence[ChargeRequest], lock_appointments: Prepared) -> list[Verdict]:
        for run in range(RUNS_PER_BATCH):
            batch = _Batch(requests, lock_appointments, self._rules, self._emit)
            started_at_s = time.monotonic()
            try:
                verdicts = self._database.transaction(batch.run)
            except CommitUnknown:
                if not self._had_committed(batch):
                    continue  # nothing was written, so it may run again
                verdicts = batch.verdicts
            except DatabaseDown:
                # A pooled connection may have died long ago; a new one costs one try.
                if run + 1 == RUNS_PER_BATCH:
                    raise
                continue
            charges = len(batch.new_charges)
            self._emit(Committed(batch.entry_count, charges, time.monotonic() - started_at_s))
            return verdicts
        raise DatabaseDown("the connection was lost during COMMIT, and nothing was written")

    def _had_committed(self, batch: _Batch) -> bool:
        """Settles by reading whether the batch is in the tables. Raises CommitUnknown when that takes too long."""
        give_up_at_s = time.monotonic() + self._settle_within_s
        while True:
            try:
                had_committed = self._database.transaction(batch.is_in_the_tables)
            except (DatabaseDown, TimedOut, CommitUnknown) as error:
                if time.monotonic() >= give_up_at_s:
                    raise CommitUnknown("the connection was lost during COMMIT, and could not be settled") from error
                time.sleep(SETTLE_PAUSE_S)
            else:
                self._emit(Settled(batch.appointment_ids, had_committed))
                return had_committed


class _Batch:
    """One transaction's work. It may run more than once, so every run starts from nothing."""

    def __init__(
        self, requests: Sequence[ChargeRequest], lock_appointments: Prepared, rules: Rules, emit: Listener
    ) -> None:
        self._requests = requests
        self._lock_appointments = lock_appointments
        self._rules = rules
        self._emit = emit
        self.appointment_ids = sorted({request.appointment_id for request in requests})
        self._start()

    def _start(self) -> None:
        self.verdicts: list[Verdict] = []
        self.new_charges: Mapping[int, NewCharge] = {}
        self.entry_count = 0
        self._last_entry_id: int | None = None
        self._entered_at: datetime | None = None

    def run(self, connection: sa.Connection) -> list[Verdict]:
        self._start()
        appointments = self._locked_appointments(connection)
        held_elsewhere = self._held_elsewhere(connection, appointments)
        self._emit(RowsLocked(list(appointments), held_elsewhere))
        requests = [request for request in self._requests if request.appointment_id not in held_elsewhere]
        balances = _locked_balances(connection, payers_due(appointments, requests, self._rules))
        charges = _earlier_charges(connection, [row.id for row in appointments.values() if row.is_consume])
        decisions = decide(LockedRows(appointments, balances, charges), requests, self._rules)
        verdicts = iter(self._written(connection, requests, decisions))
        self.verdicts = [
            HeldElsewhere() if request.appointment_id in held_elsewhere else next(verdicts)
            for request in self._requests
        ]
        self._emit(Committing(self.appointment_ids))
        return self.verdicts

    def is_in_the_tables(self, connection: sa.Connection) -> bool:
        if self._last_entry_id is None:
            return True  # only refusals, which write nothing
        # The row locks wait until a COMMIT that is still under way has ended, one way or the other.
        LOCK_APPOINTMENTS.run(connection, ids=self.appointment_ids)
        # The id alone does not do: after a crash a sequence may give the same id again.
        entry = {"entry_id": self._last_entry_id, "entered_at": self._entered_at}
        found = connection.execute(FIND_ENTRY, entry).scalar_one()
        return bool(found)

    def _locked_appointments(self, connection: sa.Connection) -> dict[int, AppointmentRow]:
        rows = self._lock_appointments.run(connection, ids=self.appointment_ids)
        return {row[0]: AppointmentRow(*row) for row in rows}

    def _held_elsewhere(self, connection: sa.Connection, appointments: Mapping[int, AppointmentRow]) -> list[int]:
        missing = [id_ for id_ in self.appointment_ids if id_ not in appointments]
        if not missing or self._lock_appointments is LOCK_APPOINTMENTS:
            return []
        return [row[0] for row in FIND_APPOINTMENTS.run(connection, ids=missing)]

    def _written(
        self, connection: sa.Connection, requests: Sequence[ChargeRequest], decisions: Decisions
    ) -> list[Verdict]:
        self.new_charges = decisions.new_charges
        entrants = [
            request for request, verdict in zip(requests, decisions.verdicts, strict=True) if isinstance(verdict, LetIn)
        ]
        records = self._write(connection, decisions, entrants) if entrants else {}
        return [
            _entry(verdict, records, self._entered_at) if isinstance(verdict, LetIn) else verdict
            for verdict in decisions.verdicts
        ]

    def _write(
        self, connection: sa.Connection, decisions: Decisions, entrants: Sequence[ChargeRequest]
    ) -> dict[int, ChargeRecord]:
        charges = list(decisions.new_charges.values())
        rows = WRITE.run(
            connection,
            appointment_ids=[charge.appointment_id for charge in charges],
            payer_ids=[charge.payer_id for charge in charges],
            other_user_ids=[charge.other_user_id for charge in charges],
            counts=[charge.count for charge in charges],
            fences=[charge.lock_fence for charge in charges],
            spending_ids=list(decisions.spent),
            spent_counts=list(decisions.spent.values()),
            entered_ids=[request.appointment_id for request in entrants],
            entrant_ids=[request.user_id for request in entrants],
        )
        self._last_entry_id, self._entered_at = rows[0][0], rows[0][1]
        self.entry_count = len(entrants)
        return {row[2]: ChargeRecord(*row[3:]) for row in rows if row[2] is not None}


def _locked_balances(connection: sa.Connection, payer_ids: list[int]) -> dict[int, int]:
    if not payer_ids:
        return {}
    return {row[0]: row[1] for row in LOCK_COUPONS.run(connection, payer_ids=payer_ids)}


def _earlier_charges(connection: sa.Connection, appointment_ids: list[int]) -> dict[int, ChargeRecord]:
    if not appointment_ids:
        return {}
    # A statement of its own: joined to the locking one it would be read as of before the wait for the lock.
    return {row[0]: ChargeRecord(*row[1:]) for row in FIND_CHARGES.run(connection, ids=appointment_ids)}


def _entry(verdict: LetIn, records: Mapping[int, ChargeRecord], entered_at: datetime | None) -> Entry:
    assert entered_at is not None
    charge = verdict.charge
    record = records[charge.appointment_id] if isinstance(charge, NewCharge) else charge
    return Entry(verdict.outcome, record, entered_at)

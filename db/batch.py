"""One transaction's work: what a batch of requests asks of Postgres, in which order, and what becomes of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from db.charging_statements import (
    FIND_APPOINTMENTS,
    FIND_CHARGED,
    FIND_CHARGES,
    FIND_ENTRY,
    LOCK,
    LOCK_FREE,
    TRY_ENTRY,
    WRITE,
    WRITE_ENTRIES,
)
from db.connection import Row
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
)
from db.events import Decided, Listener, RowsLocked
from db.prepared import Prepared
from db.records import ChargeRecord
from db.tables import CHAMPAGNE

Ask = Callable[[str], Awaitable[list[Row]]]


class Entry(NamedTuple):
    """An entry that was let in and stands in the tables. `charge` is this one's, the earlier one, or None when free."""

    outcome: Outcome
    charge: ChargeRecord | None
    entered_at: datetime


class HeldElsewhere(Refusal):
    """Another session holds the appointment's row; nothing was decided. Ask again, alone, with charge_waiting."""


class NotChargedYet(Refusal):
    """The appointment is not charged; nothing was decided. Ask again with charge_batch, under the lock."""


Verdict = Entry | Refusal


@dataclass(slots=True)
class Progress:
    """How far a batch's transaction has come, for whoever waits for it."""

    may_have_committed: bool = False


class Batch:
    """What the two kinds of transaction share. It may run more than once, so every run starts from nothing."""

    def __init__(self, requests: Sequence[ChargeRequest], rules: Rules, emit: Listener) -> None:
        self.appointment_ids = sorted({request.appointment_id for request in requests})
        self._requests = requests
        self._rules = rules
        self._emit = emit
        self.verdicts: list[Verdict] = []
        self.entry_count = self.charge_count = 0
        self._entry_id: int | None = None
        self._entered_at: datetime | None = None

    async def begin(self, ask: Ask) -> str | None:
        """Reads, decides, and says what is to be written; None when nothing is. `verdicts` are true once it is."""
        raise NotImplementedError

    async def is_in_the_tables(self, ask: Ask) -> bool:
        """Whether the transaction whose COMMIT got lost is there, after waiting for its end. In a transaction."""
        await self._end_of_the_lost(ask)
        found = await ask(FIND_ENTRY.with_values(entry_ids=[self._entry_id]))
        # The id alone does not do: after a crash a sequence may give the same id again.
        return bool(found) and found[0][0] == self._entered_at

    async def _end_of_the_lost(self, ask: Ask) -> None:
        raise NotImplementedError

    def _entries(self, entrants: Sequence[ChargeRequest]) -> dict[str, list[int | None]]:
        return {
            "entry_ids": [self._entry_id, *[None] * (len(entrants) - 1)],
            "entered_ids": [request.appointment_id for request in entrants],
            "entrant_ids": [request.user_id for request in entrants],
        }


class ChargingBatch(Batch):
    """Locks the rows, decides, writes."""

    def __init__(self, requests: Sequence[ChargeRequest], rules: Rules, emit: Listener, lock: Prepared) -> None:
        super().__init__(requests, rules, emit)
        self._lock = lock
        self._charge_ids: dict[int, int] = {}

    async def begin(self, ask: Ask) -> str | None:
        """As Batch.begin."""
        rows = await self._locked_rows(ask)
        held_elsewhere = await self._held_elsewhere(ask, rows.appointments)
        self._emit(RowsLocked(list(rows.appointments), held_elsewhere))
        requests = self._requests
        if held_elsewhere:
            requests = [request for request in requests if request.appointment_id not in held_elsewhere]
        consumed = [row.id for row in rows.appointments.values() if row.is_consume]
        if consumed:
            # Not before: as of the moment the rows were asked for, a charge that was waited for is not there yet.
            rows = rows._replace(charges=await _earlier_charges(ask, consumed))
        decisions = decide(rows, requests, self._rules)
        self.verdicts = self._verdicts(decisions, held_elsewhere)
        entrants = [
            request for request, verdict in zip(requests, decisions.verdicts, strict=True) if verdict.__class__ is LetIn
        ]
        self.entry_count, self.charge_count = len(entrants), len(decisions.new_charges)
        self._emit(Decided(self.appointment_ids))
        return self._writing(decisions, entrants) if entrants else None

    async def _end_of_the_lost(self, ask: Ask) -> None:
        # The lost transaction holds these row locks until it has ended, one way or the other.
        await ask(LOCK.with_values(appointment_ids=self.appointment_ids, user_ids=[]))

    async def _locked_rows(self, ask: Ask) -> LockedRows:
        rows = await ask(
            "BEGIN;"
            + self._lock.with_values(
                appointment_ids=[request.appointment_id for request in self._requests],
                user_ids=[request.user_id for request in self._requests],
            )
        )
        appointments: dict[int, AppointmentRow] = {}
        balances: dict[int, int] = {}
        charge_ids = self._charge_ids = {}
        for row in rows:
            if row[0] == 0:
                appointments[row[1]] = AppointmentRow._make(row[1:9])
                charge_ids[row[1]] = row[9]
            else:
                balances[row[1]] = row[2]
        if rows:
            self._entry_id, self._entered_at = rows[0][10:]
        return LockedRows(appointments, balances, {})

    async def _held_elsewhere(self, ask: Ask, appointments: Mapping[int, AppointmentRow]) -> list[int]:
        if self._lock is LOCK or len(appointments) == len(self.appointment_ids):
            return []
        missing = [id_ for id_ in self.appointment_ids if id_ not in appointments]
        return [row[0] for row in await ask(FIND_APPOINTMENTS.with_values(appointment_ids=missing))]

    def _verdicts(self, decisions: Decisions, held_elsewhere: Sequence[int]) -> list[Verdict]:
        entered_at, records = self._entered_at, self._records(decisions)
        decided: list[Verdict] = []
        for verdict in decisions.verdicts:
            if isinstance(verdict, LetIn):
                assert entered_at is not None
                charge = verdict.charge
                record = records[charge.appointment_id] if isinstance(charge, NewCharge) else charge
                decided.append(Entry(verdict.outcome, record, entered_at))
            else:
                decided.append(verdict)
        if not held_elsewhere:
            return decided
        others = iter(decided)
        return [
            HeldElsewhere() if request.appointment_id in held_elsewhere else next(others) for request in self._requests
        ]

    def _records(self, decisions: Decisions) -> dict[int, ChargeRecord]:
        charged_at = self._entered_at
        if charged_at is None:
            return {}
        return {
            id_: ChargeRecord(self._charge_ids[id_], charge.payer_id, CHAMPAGNE, CHAMPAGNE, charge.count, charged_at)
            for id_, charge in decisions.new_charges.items()
        }

    def _writing(self, decisions: Decisions, entrants: Sequence[ChargeRequest]) -> str:
        charges = list(decisions.new_charges.values())
        if not charges:
            return WRITE_ENTRIES.with_values(**self._entries(entrants))
        return WRITE.with_values(
            charge_ids=[self._charge_ids[charge.appointment_id] for charge in charges],
            appointment_ids=[charge.appointment_id for charge in charges],
            payer_ids=[charge.payer_id for charge in charges],
            other_user_ids=[charge.other_user_id for charge in charges],
            counts=[charge.count for charge in charges],
            fences=[charge.lock_fence for charge in charges],
            spending_ids=list(decisions.spent),
            spent_counts=list(decisions.spent.values()),
            **self._entries(entrants),
        )


class RepeatingBatch(Batch):
    """Finds appointments charged, and writes entries. is_consume never goes back to false, so no lock is needed."""

    async def begin(self, ask: Ask) -> str | None:
        """As Batch.begin."""
        appointments: dict[int, AppointmentRow] = {}
        charges: dict[int, ChargeRecord] = {}
        for row in await ask("BEGIN;" + FIND_CHARGED.with_values(appointment_ids=self.appointment_ids)):
            appointments[row[0]] = AppointmentRow._make((*row[:5], None, None, None))
            if row[5] is not None:
                charges[row[0]] = ChargeRecord(*row[5:11])
            self._entry_id, self._entered_at = row[11:]
        decisions = decide(LockedRows(appointments, {}, charges), self._requests, self._rules)
        self.verdicts = [
            self._verdict(verdict, charges.get(request.appointment_id))
            for request, verdict in zip(self._requests, decisions.verdicts, strict=True)
        ]
        entrants = [
            request
            for request, verdict in zip(self._requests, self.verdicts, strict=True)
            if verdict.__class__ is Entry
        ]
        self.entry_count = len(entrants)
        return WRITE_ENTRIES.with_values(**self._entries(entrants)) if entrants else None

    def _verdict(self, verdict: LetIn | Refusal, charge: ChargeRecord | None) -> Verdict:
        """What is not charged is decided under the lock, whatever it looked like without."""
        if charge is None or self._entered_at is None:
            return NotChargedYet()
        return Entry(verdict.outcome, charge, self._entered_at) if isinstance(verdict, LetIn) else verdict

    async def _end_of_the_lost(self, ask: Ask) -> None:
        # It has locked nothing. Who wants to write an entry of the same id waits for it.
        await ask(TRY_ENTRY.with_values(entry_ids=[self._entry_id]))


async def _earlier_charges(ask: Ask, appointment_ids: list[int]) -> dict[int, ChargeRecord]:
    rows = await ask(FIND_CHARGES.with_values(appointment_ids=appointment_ids))
    return {row[0]: ChargeRecord(*row[1:]) for row in rows}


def lock_free(requests: Sequence[ChargeRequest], rules: Rules, emit: Listener) -> ChargingBatch:
    """A batch that leaves out rows that others hold."""
    return ChargingBatch(requests, rules, emit, LOCK_FREE)


def lock_waiting(requests: Sequence[ChargeRequest], rules: Rules, emit: Listener) -> ChargingBatch:
    """A batch that waits for them, as long as a row lock may take."""
    return ChargingBatch(requests, rules, emit, LOCK)

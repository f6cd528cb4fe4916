"""Charges: the newest ones, what the audit says, and one appointment's whole story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.appointments import Appointment, find_appointment
from db.recent_charges import recent_charges
from locks.contention import PastHold
from service.dashboard.asked import Asked
from service.dashboard.formatting import duration, plural
from service.dashboard.looking import Looking
from service.dashboard.views.kinds import IncidentRow, rows_of
from service.entering import lock_name
from service.refusals import InvalidRequest, NotFound

CHARGES_A_PAGE = 50
SHOWN_INCIDENTS = 50


async def charges(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """The newest charges, and whether the books are right."""
    before = asked.integer("before")
    page, next_before = await looking.reading.run(
        lambda database: recent_charges(database, limit=CHARGES_A_PAGE, before=before), caller=asked.caller
    )
    return {
        "charges": page,
        "next_before": next_before,
        "before": before,
        "audit": looking.audit(),
        "now_s": asked.now_s,
        "export": {"before": before},
    }


async def appointment(looking: Looking, asked: Asked) -> Mapping[str, Any]:
    """Entries, charge, holders and incidents of one appointment, in the order of time."""
    appointment_id = asked.integer("appointment_id")
    if not appointment_id:
        raise InvalidRequest("appointment_id", "must be an integer from 1")
    found = await looking.reading.run(
        lambda database: find_appointment(database, appointment_id, entry_limit=looking.entry_limit),
        caller=asked.caller,
    )
    if found is None:
        raise NotFound(f"there is no appointment {appointment_id}")
    name = lock_name(appointment_id)
    holds = await looking.contention.holds_of(name)
    incidents = await looking.contention.incidents(name=name, limit=SHOWN_INCIDENTS)
    return {
        "title": f"Appointment {appointment_id}",
        "appointment": found,
        "lock_name": name,
        "lock": await looking.locker.inspect(name),
        "story": story_of(found, holds, rows_of(incidents, now_s=asked.now_s)),
        "entry_limit": looking.entry_limit,
        "now_s": asked.now_s,
    }


@dataclass(frozen=True, slots=True)
class Happened:
    """One line of the story."""

    at: float
    what: str
    tone: str
    words: str
    instance_id: str = ""


def story_of(
    appointment: Appointment, holds: Sequence[PastHold], incidents: Sequence[IncidentRow]
) -> Sequence[Happened]:
    """All that is known, the oldest first; what happened in one moment, in the order lock, charge, entry."""
    story = [
        Happened(
            hold.began_at,
            "lock held",
            "calm" if hold.end in ("released", "exported") else "bad",
            _words(hold),
            hold.instance_id,
        )
        for hold in holds
    ]
    if appointment.charge is not None:
        charge = appointment.charge
        words = f"{plural(charge.count, 'coupon')} of user {charge.payer_id}, charge {charge.id}"
        story.append(Happened(charge.charged_at.timestamp(), "charged", "good", words))
    story += [
        Happened(entry.entered_at.timestamp(), "entered", "calm", f"user {entry.user_id}")
        for entry in appointment.entries
    ]
    story += [Happened(each.at, each.kind.word, each.kind.tone, each.words, each.instance_id) for each in incidents]
    return sorted(story, key=lambda each: each.at)


def _words(hold: PastHold) -> str:
    request = f", request {hold.request_id}" if hold.request_id else ""
    owner = f", owner {hold.owner}" if hold.owner else ""
    return f"for {duration(hold.held_s)}, {hold.end}{request}{owner}"

"""Appointments: made by services, seen by their participants, opened and closed by services."""

from __future__ import annotations

from aiohttp import web

from db.appointments import Appointment, create_appointment, find_appointment, set_status
from db.decisions import IllegalRequest
from db.tables import AppointmentStatus
from service.callers import SERVICE, Callers
from service.handlers.http import answer, caller_of, caller_with, charge_answer, json_body, path_id
from service.models import AppointmentAnswer, AppointmentChange, EntryListed, NewAppointment
from service.reading import Reading
from service.refusals import NotFound


class AppointmentHandlers:
    """Everything under /v1/appointments but the entries."""

    def __init__(self, reading: Reading, callers: Callers, *, entry_limit: int) -> None:
        self._reading = reading
        self._callers = callers
        self._entry_limit = entry_limit

    async def create(self, request: web.Request) -> web.Response:
        """A new, open appointment."""
        caller = caller_with(request, self._callers, SERVICE)
        body = await json_body(request, NewAppointment)
        appointment = await self._reading.write(
            lambda database: create_appointment(
                database,
                user_id=body.user_id,
                invitee_user_id=body.invitee_user_id,
                prepare_id=body.prepare_id,
            ),
            caller=caller.user_id,
        )
        return answer(_appointment_answer(appointment), 201)

    async def show(self, request: web.Request) -> web.Response:
        """The appointment; whoever may not see it gets the same answer as for one that does not exist."""
        caller = caller_of(request, self._callers)
        appointment_id = path_id(request, "appointment_id")
        sees_all = caller.may(SERVICE)
        of_user = None if sees_all else caller.user_id
        found = await self._reading.run(
            lambda database: find_appointment(database, appointment_id, entry_limit=self._entry_limit, of_user=of_user),
            caller=caller.user_id,
        )
        if found is None:
            raise NotFound(f"there is no appointment {appointment_id}") if sees_all else IllegalRequest
        return answer(_appointment_answer(found))

    async def change(self, request: web.Request) -> web.Response:
        """Opens, ends or cancels it."""
        caller = caller_with(request, self._callers, SERVICE)
        appointment_id = path_id(request, "appointment_id")
        body = await json_body(request, AppointmentChange)
        status = AppointmentStatus[body.status.upper()]
        changed = await self._reading.write(
            lambda database: set_status(database, appointment_id, status, entry_limit=self._entry_limit),
            caller=caller.user_id,
        )
        if changed is None:
            raise NotFound(f"there is no appointment {appointment_id}")
        return answer(_appointment_answer(changed))


def _appointment_answer(appointment: Appointment) -> AppointmentAnswer:
    return AppointmentAnswer(
        id=appointment.id,
        user_id=appointment.user_id,
        invitee_user_id=appointment.invitee_user_id,
        prepare_id=appointment.prepare_id,
        status=appointment.status.name.lower(),
        is_consume=appointment.is_consume,
        charge=charge_answer(appointment.charge),
        entries=[EntryListed(user_id=entry.user_id, entered_at=entry.entered_at) for entry in appointment.entries],
    )

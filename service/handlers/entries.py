"""POST /v1/appointments/{appointment_id}/entries, and the origin's /agoraToken: the main job."""

from __future__ import annotations

from aiohttp import web

from db.decisions import Outcome
from service.callers import Caller, Callers
from service.entering import Entered, Entering, EntryRequest, lock_name
from service.handlers.http import answer_dict, caller_of, charge_answer, json_or_form_body, path_id
from service.models import AgoraTokenRequest, EntryAnswer
from service.observe import EntryLog, Observer
from service.pending_charge import TimedEntry
from service.problems import problem_of
from service.tracing import Tracing

log = EntryLog()


class EntryHandlers:
    """Entering, once by its own route and once by the origin's."""

    def __init__(
        self, entering: Entering, callers: Callers, observer: Observer, *, app_id: str, tracing: Tracing | None
    ) -> None:
        self._entering = entering
        self._callers = callers
        self._observer = observer
        self._app_id = app_id
        self._tracing = tracing

    async def enter(self, request: web.Request) -> web.Response:
        """Charges once, and answers with the key to the room."""
        caller = caller_of(request, self._callers)
        appointment_id = path_id(request, "appointment_id")
        return await self._enter(
            request, caller, EntryRequest(appointment_id, caller.user_id, request_id=request["id"])
        )

    async def enter_as_before(self, request: web.Request) -> web.Response:
        """The same under the origin's URL; somebody else than the partner as otherUserid is an illegal request."""
        caller = caller_of(request, self._callers)
        body = await json_or_form_body(request, AgoraTokenRequest)
        return await self._enter(
            request, caller, EntryRequest(body.appointmentId, caller.user_id, body.otherUserid, request["id"])
        )

    async def _enter(self, request: web.Request, caller: Caller, wanted: EntryRequest) -> web.Response:
        try:
            entered = await self._entering.enter(wanted)
        except Exception as error:
            problem = problem_of(error)
            self._observer.on_refused(problem.code, lock_name(wanted.appointment_id))
            log.info(
                "entry refused",
                request_id=request["id"],
                appointment_id=wanted.appointment_id,
                user_id=caller.user_id,
                outcome=problem.code,
                charged=problem.charged,
            )
            raise
        if self._tracing is not None:
            self._tracing.entered(entered)
        _note(request["id"], wanted, entered.timed)
        status = 201 if entered.timed.entry.outcome is Outcome.CHARGED else 200
        return answer_dict(self._answer(wanted, entered), status)

    def _answer(self, wanted: EntryRequest, entered: Entered) -> EntryAnswer:
        entry = entered.timed.entry
        return {
            "appointment_id": wanted.appointment_id,
            "user_id": wanted.user_id,
            "outcome": entry.outcome.value,
            "charge": charge_answer(entry.charge),
            "entered_at": entry.entered_at,
            "room": {
                "app_id": self._app_id,
                "channel": entered.channel,
                "uid": str(wanted.user_id),
                "token": entered.room_token.token,
                "expires_at": entered.room_token.expires_at,
            },
        }


def _note(request_id: str, wanted: EntryRequest, timed: TimedEntry) -> None:
    log.info(
        "entry",
        request_id=request_id,
        appointment_id=wanted.appointment_id,
        user_id=wanted.user_id,
        outcome=timed.entry.outcome,
        lock_wait_ms=round(timed.lock_wait_s * 1000, 2),
        queued_ms=round(timed.queued_s * 1000, 2),
        transaction_ms=round(timed.transaction_s * 1000, 2),
    )

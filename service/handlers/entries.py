"""POST /v1/appointments/{appointment_id}/entries, and the origin's /agoraToken: the main job."""

from __future__ import annotations

import structlog
from aiohttp import web

from db.decisions import Outcome
from service.callers import Caller, Callers
from service.entering import Entered, Entering, EntryRequest
from service.handlers.http import answer_dict, caller_of, charge_answer, json_or_form_body, path_id
from service.models import AgoraTokenRequest, EntryAnswer
from service.observe import STAGES, Metrics
from service.problems import problem_of

log = structlog.get_logger("chargeonce.entries")


class EntryHandlers:
    """Entering, once by its own route and once by the origin's."""

    def __init__(self, entering: Entering, callers: Callers, metrics: Metrics, *, app_id: str) -> None:
        self._entering = entering
        self._callers = callers
        self._metrics = metrics
        self._app_id = app_id
        self._entered = {outcome: metrics.charges.labels(outcome.value) for outcome in Outcome}
        self._stages = {stage: metrics.charge_seconds.labels(stage) for stage in STAGES}

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
            self._metrics.charges.labels(problem.code).inc()
            log.info(
                "entry refused",
                request_id=request["id"],
                appointment_id=wanted.appointment_id,
                user_id=caller.user_id,
                outcome=problem.code,
                charged=problem.charged,
            )
            raise
        self._note(request, wanted, entered)
        status = 201 if entered.entry.outcome is Outcome.CHARGED else 200
        return answer_dict(self._answer(wanted, entered), status)

    def _note(self, request: web.Request, wanted: EntryRequest, entered: Entered) -> None:
        outcome = entered.entry.outcome
        self._entered[outcome].inc()
        self._stages["lock"].observe(entered.lock_wait_s)
        self._stages["queue"].observe(entered.queued_s)
        self._stages["transaction"].observe(entered.transaction_s)
        if outcome is Outcome.ALREADY_CHARGED:
            self._metrics.duplicates_prevented.labels(entered.guarded_by).inc()
        log.info(
            "entry",
            request_id=request["id"],
            appointment_id=wanted.appointment_id,
            user_id=wanted.user_id,
            outcome=outcome.value,
            lock_wait_ms=round(entered.lock_wait_s * 1000, 2),
            queued_ms=round(entered.queued_s * 1000, 2),
            transaction_ms=round(entered.transaction_s * 1000, 2),
        )

    def _answer(self, wanted: EntryRequest, entered: Entered) -> EntryAnswer:
        return {
            "appointment_id": wanted.appointment_id,
            "user_id": wanted.user_id,
            "outcome": entered.entry.outcome.value,
            "charge": charge_answer(entered.entry.charge),
            "entered_at": entered.entry.entered_at,
            "room": {
                "app_id": self._app_id,
                "channel": entered.channel,
                "uid": str(wanted.user_id),
                "token": entered.room_token.token,
                "expires_at": entered.room_token.expires_at,
            },
        }

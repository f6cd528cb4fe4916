"""The HTTP application of a guard: the product's route, callers, answers and problem documents."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog
from aiohttp import web

from db.charging import Entry
from db.decisions import Outcome
from service.app import callers
from service.callers import Callers
from service.entering import EntryRequest
from service.handlers.http import IN_FLIGHT, USER_ID, answer_dict, caller_of, charge_answer, path_id
from service.listeners import NOBODY, Listeners
from service.problems import ProblemRunner, is_bug, new_request_id, problem_answer
from service.refusals import NotFound
from service.rtc_token import RoomTokenMint
from service.settings import Settings
from service.shares import Limit

log = structlog.get_logger("chargeonce.chaos")

REQUEST_ID = web.RequestKey("REQUEST_ID", str)


class Guard(Protocol):
    """Lets people into appointments, and charges when it believes that nobody was charged."""

    async def enter(self, request: EntryRequest) -> Entry:
        """Raises whatever service/problems.py knows."""


OpenGuard = Callable[[Settings, str, Listeners], AbstractAsyncContextManager[Guard]]


def serve(open_guard: OpenGuard) -> Callable[..., Awaitable[None]]:
    """Like the product's serve_instance, for this guard."""

    async def serve_it(
        settings: Settings,
        *,
        instance_id: str,
        listening: socket.socket,
        until: Callable[[], Awaitable[object]],
        on_ready: Callable[[], None],
        listeners: Listeners = NOBODY,
    ) -> None:
        async with open_guard(settings, instance_id, listeners) as guard:
            runner = ProblemRunner(_application(settings, guard), access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            await web.SockSite(runner, listening, backlog=1024).start()
            try:
                on_ready()
                await until()
            finally:
                await runner.cleanup()

    return serve_it


def _application(settings: Settings, guard: Guard) -> web.Application:
    assert settings.agora_app_id is not None
    assert settings.agora_app_certificate is not None
    mint = RoomTokenMint(
        settings.agora_app_id, settings.agora_app_certificate.get_secret_value(), settings.room_token_ttl_s
    )
    entries = _Entries(guard, callers(settings), mint, app_id=settings.agora_app_id)
    app = web.Application(middlewares=[_edge])
    app[IN_FLIGHT] = Limit("requests", settings.max_requests_in_flight, caller_share=1.0)
    app.router.add_post("/v1/appointments/{appointment_id}/entries", entries.enter)
    app.router.add_get("/readyz", _ready)
    return app


class _Entries:
    def __init__(self, guard: Guard, known_callers: Callers, mint: RoomTokenMint, *, app_id: str) -> None:
        self._guard = guard
        self._callers = known_callers
        self._mint = mint
        self._app_id = app_id

    async def enter(self, request: web.Request) -> web.Response:
        """POST /v1/appointments/{appointment_id}/entries"""
        user_id = caller_of(request, self._callers).user_id
        appointment_id = path_id(request, "appointment_id")
        entry = await self._guard.enter(EntryRequest(appointment_id, user_id, request_id=request[REQUEST_ID]))
        channel = f"appointment-{appointment_id}"
        room = self._mint.mint(channel=channel, user_id=user_id, now=time.time())
        answer = {
            "appointment_id": appointment_id,
            "user_id": user_id,
            "outcome": entry.outcome.value,
            "charge": charge_answer(entry.charge),
            "entered_at": entry.entered_at,
            "room": {
                "app_id": self._app_id,
                "channel": channel,
                "uid": str(user_id),
                "token": room.token,
                "expires_at": room.expires_at,
            },
        }
        return answer_dict(answer, 201 if entry.outcome is Outcome.CHARGED else 200)


async def _ready(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ready"})


@web.middleware
async def _edge(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    request_id = request[REQUEST_ID] = request.headers.get("X-Request-Id") or new_request_id()
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = problem_answer(NotFound(error.reason), request_id)
    except Exception as error:
        if is_bug(error):
            log.error("request failed", request_id=request_id, exc_info=error)
        response = problem_answer(error, request_id)
    finally:
        if USER_ID in request:
            request.app[IN_FLIGHT].leave(request[USER_ID])
    response.headers["X-Request-Id"] = request_id
    return response

"""The page /dashboard: every view with its stream and its exports. Looking takes the scope monitor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

import orjson
from aiohttp import web

from service.callers import Unauthenticated
from service.dashboard.access import PATH, NotLoggedIn, session_of
from service.dashboard.asked import Asked
from service.dashboard.assets import Assets
from service.dashboard.door import Door
from service.dashboard.exports import FORMATS, TABLES
from service.dashboard.force import ForcePages
from service.dashboard.last_seen import LastSeen, Seen
from service.dashboard.live import Live, sent_in_pieces
from service.dashboard.looking import Looking
from service.dashboard.pages import SESSION, Handler, Pages, see
from service.dashboard.rendering import Templates
from service.dashboard.views.series import series
from service.dashboard.views.table import VIEWS, View
from service.forcing import Forcing
from service.handlers.http import query_values
from service.problems import detail_of, is_bug, problem_of
from service.refusals import InvalidRequest, NotFound
from service.routes import Route
from service.sessions import Session, Sessions
from service.shares import Limit

TAG = "running"
HTML, STREAM = "text/html", "text/event-stream"
SHOWN: Mapping[int, type | str] = dict.fromkeys((200, 400, 401, 403, 503), HTML)
FOUND: Mapping[int, type | str] = {**SHOWN, 404: HTML}
TOLD = ("invalid-request", "unauthenticated", "forbidden", "not-found", "lock-store-down")


class DashboardHandlers:
    """Everything under /dashboard."""

    def __init__(
        self,
        looking: Looking,
        sessions: Sessions,
        forcing: Forcing,
        *,
        streams: Limit,
        exports: Limit,
        stopping: asyncio.Event,
    ) -> None:
        self._looking = looking
        self._sessions = sessions
        self._assets = Assets()
        self._templates = Templates(self._assets)
        self._pages = Pages(self._templates, instance_id=looking.instance_id)
        self._door = Door(sessions, self._pages)
        self._force = ForcePages(looking, sessions, forcing, self._pages)
        self._last_seen = LastSeen(looking.down_since)
        self._live = Live(self._fragment, sessions, streams=streams, stopping=stopping)
        self._exports = exports

    def routes(self) -> list[Route]:
        """Every address of the page."""
        page, door, force = self._pages.guarded, self._door, self._force
        return [
            _FRONT,
            *(_route("GET", view.path, page(self._show(view)), FOUND) for view in VIEWS.values()),
            _route("GET", "/appointments", page(self._find_appointment), {303: HTML, 400: HTML, 401: HTML, 403: HTML}),
            _route("GET", "/locks/{name}/force-release", page(force.ask), SHOWN),
            _route("POST", "/locks/{name}/force-release", page(force.force), {303: HTML, 409: HTML, **SHOWN}),
            _open("GET", "/login", page(door.show_or_log_in_by_code), {200: HTML, 303: HTML, 400: HTML, 503: HTML}),
            _open("POST", "/login", page(door.log_in), {303: HTML, 400: HTML, 401: HTML, 403: HTML}),
            _open("POST", "/logout", page(door.log_out), {303: HTML, 403: HTML, 503: HTML}),
            _open("POST", "/theme", page(door.choose_theme), {303: HTML, 400: HTML, 403: HTML}),
            _route("GET", "/streams/{view}", self._stream, {200: STREAM}, TOLD),
            _route("GET", "/exports/{table}", self._export, {200: "text/csv"}, (*TOLD, "database-down")),
            _route("GET", "/series", self._series, {200: "application/json"}, TOLD),
            _open("GET", "/static/{digest}/{file}", self._assets.serve, {200: "text/css", 304: ""}, ("not-found",)),
        ]

    def described(self) -> Route:
        """The page as the API's description has it: one address, without a token in a header."""
        [page] = [route for route in self.routes() if route.path == PATH]
        return replace(
            page,
            summary="The page, for people",
            description="It asks for an access token of scope monitor or operator once, and keeps it as a cookie.",
            public=True,
        )

    def _show(self, view: View) -> Handler:
        async def show(request: web.Request) -> web.Response:
            session = request[SESSION] = await session_of(request, self._sessions)
            asked = Asked({**query_values(request), **request.match_info}, session, session.counts_as, time.time())
            return self._pages.view(request, view, asked, await self._look(view, asked))

        return show

    async def _find_appointment(self, request: web.Request) -> web.Response:
        """From the form's number to the appointment's own address."""
        session = await session_of(request, self._sessions)
        asked = Asked(query_values(request), session, session.counts_as, time.time())
        appointment_id = asked.integer("id")
        if not appointment_id:
            raise InvalidRequest("id", "must be an appointment's number")
        return see(f"{PATH}/appointments/{appointment_id}")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        asked = await self._asked_by_script(request)
        view = VIEWS.get(request.match_info["view"])
        if view is None:
            raise NotFound("there is no such view")
        return await self._live.stream(request, view, asked)

    async def _look(self, view: View, asked: Asked) -> Seen:
        """What the view shows: what is read now, or was last. Raises refusals, but none for what is away."""
        return await self._last_seen.look(
            (view.key, asked.key), lambda: view.read(self._looking, asked), now_s=asked.now_s
        )

    async def _fragment(self, view: View, asked: Asked) -> str:
        """The part of a view that changes. What is refused is told in its place, and the stream goes on."""
        try:
            seen = await self._look(view, asked)
        except Exception as error:
            if is_bug(error):
                raise
            return self._templates.render("_problem.html", problem=problem_of(error), detail=detail_of(error))
        return self._templates.render("_seen.html", view=view, seen=seen, **(seen.values or {}))

    async def _series(self, request: web.Request) -> web.Response:
        asked = await self._asked_by_script(request)
        seen = await self._last_seen.look(
            ("series", asked.key), lambda: series(self._looking, asked), now_s=asked.now_s
        )
        # null where nothing was seen yet: there is nothing to draw, and the page says why.
        told = None if seen.values is None else {**seen.values, "as_of": seen.at_s if seen.problem else None}
        return web.Response(body=orjson.dumps(told), content_type="application/json")

    async def _export(self, request: web.Request) -> web.StreamResponse:
        asked = await self._asked_by_script(request)
        name, _, kind = request.match_info["table"].rpartition(".")
        if name not in TABLES or kind not in FORMATS:
            raise NotFound("there is no such table, or not in this format")
        media_type, written = FORMATS[kind]
        file = f"chargeonce-{name.replace('_', '-')}.{kind}"
        headers = {"Content-Type": media_type, "Content-Disposition": f'attachment; filename="{file}"'}
        with self._exports.place(asked.session.counts_as):
            return await sent_in_pieces(request, headers, written(await TABLES[name](self._looking, asked)))

    async def _asked_by_script(self, request: web.Request) -> Asked:
        """What is asked where no person reads a refusal. Raises Unauthenticated, Forbidden."""
        try:
            session: Session = await session_of(request, self._sessions)
        except NotLoggedIn as error:
            raise Unauthenticated(str(error)) from error
        return Asked(query_values(request), session, session.counts_as, time.time())


async def _to_the_page(request: web.Request) -> web.Response:
    """Whoever types the address without a path is a person."""
    return see(PATH)


# As the other addresses of the page it is not in the API's description: no program has a use for it.
_FRONT = Route(
    method="GET",
    path="/",
    handler=_to_the_page,
    tag=TAG,
    summary="To the page",
    description="It leads to /dashboard.",
    answers={303: HTML},
    public=True,
)


def _route(
    method: str, path: str, handler: Handler, answers: Mapping[int, type | str], problems: tuple[str, ...] = ()
) -> Route:
    return Route(
        method=method,
        path=PATH + path,
        handler=handler,
        tag=TAG,
        summary="A part of the page",
        description="HTML, or what its script asks for.",
        answers=answers,
        problems=(*problems, "too-many-requests", "overloaded", "draining"),
    )


def _open(
    method: str, path: str, handler: Handler, answers: Mapping[int, type | str], problems: tuple[str, ...] = ()
) -> Route:
    """One that needs no session."""
    return replace(_route(method, path, handler, answers, problems), for_anyone=True)

"""The page /dashboard: every view with its stream and its exports. Looking takes the scope monitor."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import orjson
from aiohttp import web

from service.callers import Unauthenticated
from service.dashboard.access import PATH, NotLoggedIn, secured, session_of
from service.dashboard.asked import Asked
from service.dashboard.assets import Assets
from service.dashboard.door import Door
from service.dashboard.exports import FORMATS, TABLES
from service.dashboard.force import ForcePages
from service.dashboard.live import Live
from service.dashboard.looking import Looking
from service.dashboard.pages import Handler, Pages, see
from service.dashboard.rendering import Templates
from service.dashboard.views.series import series
from service.dashboard.views.table import VIEWS, View
from service.forcing import Forcing
from service.problems import BUG, problem_of
from service.refusals import InvalidRequest, NotFound
from service.sessions import Session, Sessions


@dataclass(frozen=True, slots=True)
class PageRoute:
    """One address of the page."""

    method: str
    path: str
    handler: Handler


class DashboardHandlers:
    """Everything under /dashboard."""

    def __init__(
        self, looking: Looking, sessions: Sessions, forcing: Forcing, *, max_streams: int, stopping: asyncio.Event
    ) -> None:
        self._looking = looking
        self._sessions = sessions
        self._assets = Assets()
        self._templates = Templates(self._assets)
        self._pages = Pages(self._templates, instance_id=looking.instance_id)
        self._door = Door(sessions, self._pages)
        self._force = ForcePages(looking, sessions, forcing, self._pages)
        self._live = Live(self._fragment, max_streams=max_streams, stopping=stopping)

    def routes(self) -> list[PageRoute]:
        """Every address of the page."""
        page, door, force = self._pages.guarded, self._door, self._force
        return [
            *(PageRoute("GET", PATH + view.path, page(self._show(view))) for view in VIEWS.values()),
            PageRoute("GET", f"{PATH}/appointments", page(self._find_appointment)),
            PageRoute("GET", f"{PATH}/locks/{{name}}/force-release", page(force.ask)),
            PageRoute("POST", f"{PATH}/locks/{{name}}/force-release", page(force.force)),
            PageRoute("GET", f"{PATH}/login", page(door.show_or_log_in_by_code)),
            PageRoute("POST", f"{PATH}/login", page(door.log_in)),
            PageRoute("POST", f"{PATH}/logout", page(door.log_out)),
            PageRoute("POST", f"{PATH}/theme", page(door.choose_theme)),
            PageRoute("GET", f"{PATH}/streams/{{view}}", self._stream),
            PageRoute("GET", f"{PATH}/exports/{{table}}", self._export),
            PageRoute("GET", f"{PATH}/series", self._series),
            PageRoute("GET", f"{PATH}/static/{{digest}}/{{file}}", self._assets.serve),
        ]

    def _show(self, view: View) -> Handler:
        async def show(request: web.Request) -> web.Response:
            session = session_of(request, self._sessions)
            asked = Asked({**request.query, **request.match_info}, session, time.time())
            values = {"title": view.title, **await view.read(self._looking, asked)}
            return self._pages.html(request, f"{view.key}.html", session, view=view, asked=asked, **values)

        return show

    async def _find_appointment(self, request: web.Request) -> web.Response:
        """From the form's number to the appointment's own address."""
        asked = Asked(dict(request.query), session_of(request, self._sessions), time.time())
        appointment_id = asked.integer("id")
        if not appointment_id:
            raise InvalidRequest("id", "must be an appointment's number")
        return see(f"{PATH}/appointments/{appointment_id}")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        asked = self._asked_by_script(request)
        view = VIEWS.get(request.match_info["view"])
        if view is None:
            raise NotFound("there is no such view")
        return await self._live.stream(request, view, asked)

    async def _fragment(self, view: View, asked: Asked) -> str:
        """The part of a view that changes. What cannot be read says so in its place, and the stream goes on."""
        try:
            values = await view.read(self._looking, asked)
        except Exception as error:
            problem = problem_of(error)
            if problem is BUG:
                raise
            return self._templates.render("_problem.html", problem=problem, detail=str(error))
        return self._templates.render(f"_{view.key}.html", view=view, **values)

    async def _series(self, request: web.Request) -> web.Response:
        body = orjson.dumps(await series(self._looking, self._asked_by_script(request)))
        return secured(web.Response(body=body, content_type="application/json"))

    async def _export(self, request: web.Request) -> web.Response:
        asked = self._asked_by_script(request)
        name, _, kind = request.match_info["table"].rpartition(".")
        if name not in TABLES or kind not in FORMATS:
            raise NotFound("there is no such table, or not in this format")
        media_type, written = FORMATS[kind]
        body = written(await TABLES[name](self._looking, asked))
        file = f"chargeonce-{name.replace('_', '-')}.{kind}"
        headers = {"Content-Type": media_type, "Content-Disposition": f'attachment; filename="{file}"'}
        return secured(web.Response(body=body, headers=headers))

    def _asked_by_script(self, request: web.Request) -> Asked:
        """What is asked where no person reads a refusal. Raises Unauthenticated, Forbidden."""
        try:
            session: Session = session_of(request, self._sessions)
        except NotLoggedIn as error:
            raise Unauthenticated(str(error)) from error
        return Asked(dict(request.query), session, time.time())

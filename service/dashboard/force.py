"""Releasing a lock by force: asking, doing, and saying what came of it."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from locks import HolderChanged
from service.dashboard.access import check_same_origin, operator_of
from service.dashboard.asked import Asked
from service.dashboard.looking import Looking
from service.dashboard.pages import SESSION, Pages, see
from service.dashboard.rendering import lock_url
from service.dashboard.views.locks import lock_name_of
from service.dashboard.views.table import VIEWS
from service.forcing import Forcing
from service.handlers.http import form_fields, validated
from service.models import ForceRelease
from service.refusals import InvalidRequest
from service.sessions import Sessions


class ForcePages:
    """For operators only. With scripts the question is a dialog on the lock's page, without them a page of its own."""

    def __init__(self, looking: Looking, sessions: Sessions, forcing: Forcing, pages: Pages) -> None:
        self._looking = looking
        self._sessions = sessions
        self._forcing = forcing
        self._pages = pages

    async def ask(self, request: web.Request) -> web.Response:
        """Names the holder and its age, and asks why."""
        return await self._form(request, await self._asked(request), 200)

    async def force(self, request: web.Request) -> web.Response:
        """Ends the lease that was shown, and no other one."""
        check_same_origin(request)
        asked = await self._asked(request)
        name = lock_name_of(asked)
        fields = await form_fields(request)
        token, reason = fields.get("fencing_token", ""), fields.get("reason", "")
        if not (token.isascii() and token.isdigit() and len(token) < 20):
            raise InvalidRequest("fencing_token", "must be the number of the lease that is to end")
        try:
            wanted = validated(ForceRelease, {"reason": reason, "fencing_token": int(token)})
        except InvalidRequest as error:
            return await self._form(request, asked, 400, problem=str(error), reason=reason)
        try:
            actor = str(asked.session.user_id)
            await self._forcing.force_release(
                name, fencing_token=wanted.fencing_token, reason=wanted.reason, actor=actor, caller=asked.caller
            )
        except HolderChanged:
            return await self._form(request, asked, 409, changed_from=token, reason=wanted.reason)
        return see(f"{lock_url(name)}?done=released")

    async def _asked(self, request: web.Request) -> Asked:
        request[SESSION] = session = await operator_of(request, self._sessions)
        return Asked({"name": request.match_info["name"]}, session, session.counts_as, time.time())

    async def _form(self, request: web.Request, asked: Asked, status: int, **values: str) -> web.Response:
        name = lock_name_of(asked)
        shown: dict[str, Any] = {"problem": "", "changed_from": "", "reason": "", **values}
        return self._pages.html(
            request,
            "force.html",
            asked.session,
            status=status,
            title=f"Release {name} by force",
            view=VIEWS["lock"],
            asked=asked,
            name=name,
            lock=await self._looking.locker.inspect(name),
            **shown,
        )

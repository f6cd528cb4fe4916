"""POST /v1/locks/{name}/force-release: an operator ends a lease that is not theirs."""

from __future__ import annotations

from aiohttp import web

from service.callers import OPERATOR, Callers
from service.forcing import Forcing
from service.handlers.contention import party_answer
from service.handlers.http import answer, caller_with, json_body, path_name
from service.models import ForceRelease, ForceReleaseAnswer


class ForcingHandlers:
    """Takes the scope operator; every call is written down before it is done."""

    def __init__(self, forcing: Forcing, callers: Callers) -> None:
        self._forcing = forcing
        self._callers = callers

    async def force_release(self, request: web.Request) -> web.Response:
        """Ends the lease with this fencing token, if it is the current one."""
        caller = caller_with(request, self._callers, OPERATOR)
        name = path_name(request)
        wanted = await json_body(request, ForceRelease)
        forced = await self._forcing.force_release(
            name,
            fencing_token=wanted.fencing_token,
            reason=wanted.reason,
            actor=str(caller.user_id),
            caller=caller.user_id,
        )
        return answer(
            ForceReleaseAnswer(
                name=name, released=True, fencing_token=wanted.fencing_token, holder=party_answer(forced.holder)
            )
        )

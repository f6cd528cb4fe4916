"""Logging in and out, and the choice of light or dark."""

from __future__ import annotations

import contextlib
import time

import structlog
from aiohttp import web

from db.errors import DatabaseError
from service.callers import Unauthenticated
from service.dashboard.access import PATH, NotLoggedIn, check_same_origin, end_session, keep_session, presented
from service.dashboard.pages import THEME_COOKIE, THEMES, Pages, back_to, see
from service.handlers.http import form_fields, query_values
from service.refusals import InvalidRequest, Overloaded
from service.sessions import LoginRefused, Session, Sessions

THEME_KEPT_S = 365 * 24 * 3600
# Why somebody is at the form, by a word in the address: an address brings no sentences of its own.
BECAUSE = {
    "code": "That address does not log in: it works once, within ten minutes.",
    "out": "You are signed out, in every browser that kept this session. An access token logs nobody in any more"
    " after that; at the API it is good until it expires.",
}
NOT_SIGNED_OUT = (
    "You are not signed out everywhere: the database could not be told. This browser has forgotten your session, but"
    " whoever has a copy of it may look with it until it expires."
)

log = structlog.get_logger("chargeonce.sessions")


class Door:
    """Begins and ends sessions. The session is a cookie with the access token, or what a code has begun."""

    def __init__(self, sessions: Sessions, pages: Pages) -> None:
        self._sessions = sessions
        self._pages = pages

    async def log_in(self, request: web.Request) -> web.Response:
        """By an access token, pasted into the form."""
        check_same_origin(request)
        fields = await form_fields(request)
        back = back_to(fields.get("next", ""))
        token = fields.get("token", "").strip()
        if token[:7].lower() == "bearer ":
            token = token[7:].strip()
        try:
            session = self._sessions.of_token(token, now=time.time())
            with contextlib.suppress(DatabaseError, Overloaded):  # every page looks again
                if await self._sessions.is_signed_out(session):
                    raise LoginRefused("this access token was signed out")
        except (Unauthenticated, LoginRefused) as error:
            reason = f"That did not work: {error.reason if token else 'no access token was given'}."
            return self._pages.login_form(request, status=401, reason=reason, back=back)
        return _logged_in(request, session, back)

    async def show_or_log_in_by_code(self, request: web.Request) -> web.Response:
        """The form; or, with a code, the session that it begins. The code stays neither in the bar nor in a Referer."""
        asked = query_values(request)
        code = asked.get("code")
        if code is None or request.method == "HEAD":  # whoever previews an address does not use its code
            reason = BECAUSE.get(asked.get("because", ""))
            return self._pages.login_form(request, status=200, reason=reason, back=PATH)
        try:
            session = await self._sessions.of_code(code, now=time.time())
        except LoginRefused:
            response = see(f"{PATH}/login?because=code")
        else:
            response = _logged_in(request, session, PATH)
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def log_out(self, request: web.Request) -> web.Response:
        """The session is over everywhere; where that could not be written, this browser forgets it, and is told so."""
        check_same_origin(request)
        response = see(f"{PATH}/login?because=out")
        try:
            session = presented(request, self._sessions)
            await self._sessions.sign_out(session)
        except NotLoggedIn:
            pass
        except (DatabaseError, Overloaded) as error:
            log.warning("a sign-out could not be written", reason=str(error))
            response = self._pages.login_form(request, status=503, reason=NOT_SIGNED_OUT, back=PATH)
        end_session(request, response)
        return response

    async def choose_theme(self, request: web.Request) -> web.Response:
        """Auto, light or dark, kept in a cookie that scripts may read."""
        check_same_origin(request)
        fields = await form_fields(request)
        theme = fields.get("theme", "")
        if theme not in THEMES:
            raise InvalidRequest("theme", f"must be one of {', '.join(THEMES)}")
        response = see(back_to(fields.get("next", "")))
        response.set_cookie(THEME_COOKIE, theme, path=PATH, max_age=THEME_KEPT_S, samesite="Strict")
        return response


def _logged_in(request: web.Request, session: Session, back: str) -> web.Response:
    # Also a session that may not look: the page then says which scope is missing.
    response = see(back)
    keep_session(request, response, session)
    return response

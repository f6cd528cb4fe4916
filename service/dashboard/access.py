"""Who may see the page, and which forms are its own."""

from __future__ import annotations

import contextlib
import time

from aiohttp import web

from db.errors import DatabaseError
from service.callers import MONITOR, OPERATOR, Unauthenticated
from service.handlers.headers import header_of
from service.handlers.http import count_for
from service.handlers.security_headers import PAGE_PATH, is_https
from service.refusals import Forbidden, Overloaded
from service.sessions import LoginRefused, Session, Sessions

COOKIE = "chargeonce_session"
PATH = PAGE_PATH


class NotLoggedIn(Exception):
    """There is no session; the reason is for whoever had one."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason or "not logged in")
        self.reason = reason


class CrossSite(Forbidden):
    """A form that was not sent from a page of this service."""

    def __init__(self) -> None:
        super().__init__("")
        self.args = ("this was not sent from a page of this service",)


async def session_of(request: web.Request, sessions: Sessions) -> Session:
    """The session of whoever may look at the page. Raises NotLoggedIn, Forbidden, TooManyRequests, Overloaded.

    While Postgres is away nobody can say who has signed out meanwhile, and the page is there to show that it is away.
    """
    session = _counted(request, sessions)
    with contextlib.suppress(DatabaseError, Overloaded):
        await _check_not_signed_out(session, sessions)
    if not session.may_look:
        raise Forbidden(MONITOR)
    return session


async def operator_of(request: web.Request, sessions: Sessions) -> Session:
    """The session of whoever may release by force, for certain.

    Raises NotLoggedIn, Forbidden, TooManyRequests, DatabaseError, Overloaded.
    """
    session = _counted(request, sessions)
    await _check_not_signed_out(session, sessions)
    if not session.may_force:
        raise Forbidden(OPERATOR)
    return session


def presented(request: web.Request, sessions: Sessions) -> Session:
    """The session that the browser has shown, signed out or not. Raises NotLoggedIn."""
    token = _cookie(request)
    if not token:
        raise NotLoggedIn
    try:
        return sessions.of_token(token, now=time.time())
    except (Unauthenticated, LoginRefused) as error:
        raise NotLoggedIn(f"You were signed out: {error.reason}.") from error


def check_same_origin(request: web.Request) -> None:
    """A POST must come from our own page. Raises CrossSite.

    Browsers say so in Sec-Fetch-Site; older ones, and addresses that are neither HTTPS nor local, only in Origin.
    """
    site = header_of(request, "Sec-Fetch-Site")
    if site is not None:
        if site != "same-origin":
            raise CrossSite
        return
    # Both are compared as a browser writes them: what is nonsense is not ours, and nothing is parsed.
    scheme, host = "https" if is_https(request) else "http", request.headers.get("Host")
    origin = header_of(request, "Origin")
    if not host or origin is None or origin.lower() != f"{scheme}://{host.lower()}":
        raise CrossSite


def keep_session(request: web.Request, response: web.Response, session: Session) -> None:
    """The browser keeps the token, out of reach of scripts, until it expires."""
    response.set_cookie(
        COOKIE,
        session.token,
        path=PATH,
        max_age=max(1, int(session.expires_at - time.time())),
        httponly=True,
        samesite="Strict",
        secure=is_https(request),
    )


def end_session(request: web.Request, response: web.Response) -> None:
    """The browser forgets the token."""
    response.del_cookie(COOKIE, path=PATH, httponly=True, samesite="Strict", secure=is_https(request))


def _counted(request: web.Request, sessions: Sessions) -> Session:
    """The session as presented() knows it; the request counts as theirs. Raises also TooManyRequests, Overloaded."""
    session = presented(request, sessions)
    count_for(session.counts_as, request)
    return session


async def _check_not_signed_out(session: Session, sessions: Sessions) -> None:
    if await sessions.is_signed_out(session):
        raise NotLoggedIn("You were signed out.")


def _cookie(request: web.Request) -> str | None:
    """What the browser keeps for us. Raises NotLoggedIn for two: another site has set one of them."""
    pairs = [pair.partition("=") for line in request.headers.getall("Cookie", ()) for pair in line.split(";")]
    values = {value.strip().strip('"') for name, _, value in pairs if name.strip() == COOKIE}
    if len(values) > 1:
        raise NotLoggedIn("This browser has sent two sessions: clear its cookies of this site.")
    return values.pop() if values else None

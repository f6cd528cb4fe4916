"""Who may see the page, and what every answer of it tells a browser to refuse."""

from __future__ import annotations

import time
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import web

from service.callers import MONITOR, OPERATOR, Unauthenticated
from service.handlers.http import count_for
from service.refusals import Forbidden
from service.sessions import LoginRefused, Session, Sessions

COOKIE = "chargeonce_session"
PATH = "/dashboard"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Response = TypeVar("Response", bound=web.StreamResponse)


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


def session_of(request: web.Request, sessions: Sessions) -> Session:
    """The session of whoever may look at the page. Raises NotLoggedIn, Forbidden, TooManyRequests, Overloaded."""
    token = request.cookies.get(COOKIE)
    if not token:
        raise NotLoggedIn
    try:
        session = sessions.of_token(token, now=time.time())
    except (Unauthenticated, LoginRefused) as error:
        raise NotLoggedIn(f"You were signed out: {error.reason}.") from error
    count_for(session.caller, request)
    if not session.may_look:
        raise Forbidden(MONITOR)
    return session


def operator_of(request: web.Request, sessions: Sessions) -> Session:
    """The same, of whoever may release by force. Raises NotLoggedIn, Forbidden."""
    session = session_of(request, sessions)
    if not session.may_force:
        raise Forbidden(OPERATOR)
    return session


def check_same_origin(request: web.Request) -> None:
    """A POST must come from our own page. Raises CrossSite.

    Browsers say so in Sec-Fetch-Site; older ones, and addresses that are neither HTTPS nor local, only in Origin.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        if site != "same-origin":
            raise CrossSite
        return
    origin = request.headers.get("Origin")
    if origin is None or urlsplit(origin).netloc != request.host:
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


def is_https(request: web.Request) -> bool:
    """Whether the browser spoke HTTPS, with us or with the proxy in front of us."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip() == "https"


def secured(response: Response) -> Response:
    """The answer with the headers that every answer of the page has."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response

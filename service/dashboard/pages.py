"""Templates as answers: pages, the form to log in, and refusals that people can read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from service.dashboard.access import PATH, NotLoggedIn
from service.dashboard.asked import Asked
from service.dashboard.last_seen import Seen
from service.dashboard.rendering import Templates
from service.dashboard.views.table import VIEWS, View
from service.problems import Problem, detail_of, is_bug, problem_of
from service.refusals import Forbidden
from service.sessions import Session

SESSION = "session"  # of a request: whose menu a refusal keeps
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "chargeonce_theme"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pages:
    """Whole pages, each with the menu and what all of them need."""

    def __init__(self, templates: Templates, *, instance_id: str) -> None:
        self._templates = templates
        self._instance_id = instance_id

    def guarded(self, handler: Handler) -> Handler:
        """The handler with its refusals as pages."""

        async def page(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except NotLoggedIn as error:
                return self.login_form(request, status=401, reason=error.reason, back=_address_of(request))
            except Exception as error:
                if is_bug(error):
                    raise
                return self._refusal(request, error)

        return page

    def html(
        self, request: web.Request, template: str, session: Session | None, *, status: int = 200, **values: Any
    ) -> web.Response:
        """The template as an answer."""
        theme = request.cookies.get(THEME_COOKIE, "auto")
        asked = values.get("asked")
        text = self._templates.render(
            template,
            **{"view": None, **values},
            views=VIEWS,
            session=session,
            theme=theme if theme in THEMES else "auto",
            themes=THEMES,
            instance_id=self._instance_id,
            request_id=request["id"],
            here=_address_of(request) or PATH,
            stream_query=urlencode(asked.values) if asked else "",
        )
        return web.Response(text=text, status=status, content_type="text/html")

    def view(self, request: web.Request, view: View, asked: Asked, seen: Seen) -> web.Response:
        """The page of a view, as much of it as is known; 503 where that is not of now."""
        template = "away.html" if seen.values is None else f"{view.key}.html"
        status = HTTPStatus.OK if seen.problem is None else seen.problem.status
        values = {"title": view.title, **(seen.values or {})}
        response = self.html(
            request, template, asked.session, status=status, view=view, asked=asked, seen=seen, **values
        )
        return _to_be_asked_again(response, seen.problem)

    def login_form(self, request: web.Request, *, status: int, reason: str | None, back: str) -> web.Response:
        """Where an access token is pasted; `back` is where to go then."""
        return self.html(request, "login.html", None, status=status, title="Log in", reason=reason, back=back)

    def _refusal(self, request: web.Request, error: Exception) -> web.Response:
        problem = problem_of(error)
        response = self.html(
            request,
            "refused.html",
            request.get(SESSION),
            status=int(problem.status),
            title=problem.title,
            problem=problem,
            detail=detail_of(error),
            scope=error.scope if isinstance(error, Forbidden) else "",
        )
        return _to_be_asked_again(response, problem)


def _to_be_asked_again(response: web.Response, problem: Problem | None) -> web.Response:
    if problem is not None and problem.retry_after_s is not None:
        response.headers["Retry-After"] = str(problem.retry_after_s)
    return response


def see(address: str) -> web.Response:
    """Go there, with GET."""
    return web.Response(status=303, headers={"Location": address})


def back_to(address: str) -> str:
    """An address that came with a form, if it is one of our pages; else the first page."""
    ours = address == PATH or address.startswith((f"{PATH}/", f"{PATH}?"))
    return address if ours and address.isascii() and address.isprintable() else PATH


def _address_of(request: web.Request) -> str:
    """Where to come back to: the page itself, but no form's target and nothing that carries a code."""
    is_page = request.method in ("GET", "HEAD") and not request.path.startswith(f"{PATH}/login")
    return request.path_qs if is_page else ""

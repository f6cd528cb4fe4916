"""Views kept up to date: server-sent events, each the part of a page that changes, for as long as somebody looks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from aiohttp import web

from db.errors import DatabaseError
from service.dashboard.asked import Asked
from service.dashboard.views.table import View
from service.handlers.http import write_event
from service.refusals import Overloaded
from service.sessions import Session, Sessions
from service.shared_task import shared_task
from service.shares import OURSELVES, Limit

# A session that is signed out anywhere ends its streams within twice this.
SESSION_LOOK_S = 0.5
KEPT_FRAGMENTS = 200

Render = Callable[[View, Asked], Awaitable[str]]


@dataclass(slots=True)
class _Fragment:
    task: asyncio.Task[str]
    at_s: float


class Live:
    """All open streams of this instance. Those who look at the same thing share its rendering."""

    def __init__(self, render: Render, sessions: Sessions, *, streams: Limit, stopping: asyncio.Event) -> None:
        self._render = render
        self._sessions = sessions
        self._streams = streams
        self._stopping = stopping
        self._fragments: dict[object, _Fragment] = {}

    async def stream(self, request: web.Request, view: View, asked: Asked) -> web.StreamResponse:
        """The view again and again, until the browser goes, the session ends, or this instance stops.

        Raises TooManyRequests, Overloaded, and whatever the first rendering does.
        """
        with self._streams.place(asked.session.counts_as):
            asked = replace(asked, caller=OURSELVES)  # others who share it are not to wait for what this one has asked
            # A page was rendered a moment ago: its stream must not begin with what is older than that.
            first = await self._fragment(view, asked, at_most_s=0.1)
            response = await _begun(request, {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
            if request.method != "HEAD":
                with contextlib.suppress(ConnectionResetError):
                    await self._follow(request, response, view, asked, first)
        return response

    async def _follow(
        self, request: web.Request, response: web.StreamResponse, view: View, asked: Asked, first: str
    ) -> None:
        await write_event(request, response, message(first))
        while not await self._stopped_or_signed_out(asked.session, view.period_s):
            # The next rendering waits until the last one has left: a slow reader gets fewer, never a backlog.
            now = replace(asked, now_s=time.time())
            await write_event(
                request, response, message(await self._fragment(view, now, at_most_s=view.period_s * 0.8))
            )
        if not self._stopping.is_set():
            await write_event(request, response, b"event: signed-out\ndata: \n\n")

    async def _fragment(self, view: View, asked: Asked, *, at_most_s: float) -> str:
        """The part that changes, at most so old."""
        key = (view.key, asked.key)
        now_s = time.monotonic()
        known = self._fragments.get(key)
        if known is None or now_s - known.at_s > at_most_s:
            task = shared_task(self._rendered(view, asked), name="dashboard-fragment")
            self._fragments.pop(key, None)
            known = self._fragments[key] = _Fragment(task, now_s)
            while len(self._fragments) > KEPT_FRAGMENTS:
                del self._fragments[next(iter(self._fragments))]
        return await asyncio.shield(known.task)

    async def _rendered(self, view: View, asked: Asked) -> str:
        return await self._render(view, asked)

    async def _stopped_or_signed_out(self, session: Session, period_s: float) -> bool:
        """Waits for the period; True as soon as this instance stops or the session is over."""
        end_s = time.monotonic() + period_s
        while (left_s := end_s - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(left_s, SESSION_LOOK_S))
            if self._stopping.is_set() or await self._is_over(session):
                return True
        return False

    async def _is_over(self, session: Session) -> bool:
        if time.time() >= session.expires_at:
            return True
        with contextlib.suppress(DatabaseError, Overloaded):  # nobody can say, and the page shows that Postgres is away
            return await self._sessions.is_signed_out(session, at_most_s=SESSION_LOOK_S)
        return False


async def sent_in_pieces(
    request: web.Request, headers: Mapping[str, str], pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    """An answer that is too long to be made at once; whoever does not read on is left."""
    response = await _begun(request, headers)
    if request.method == "HEAD":
        return response
    try:
        async for piece in pieces:
            await write_event(request, response, piece)
    except ConnectionResetError:
        response.force_close()
        if request.transport is not None:
            request.transport.abort()  # so that nobody takes it for the whole
    return response


async def _begun(request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers={**headers, "X-Request-Id": request["id"]})
    await response.prepare(request)
    return response


def message(html: str) -> bytes:
    """One message of a stream, which htmx swaps in."""
    lines = "".join(f"data: {line}\n" for line in html.splitlines() if line.strip())
    return f"{lines or 'data:'}\n".encode()

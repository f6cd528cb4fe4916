"""Views kept up to date: server-sent events, each the part of a page that changes, for as long as somebody looks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from service.dashboard.access import secured
from service.dashboard.asked import Asked
from service.dashboard.views.table import View
from service.refusals import Overloaded

# Whoever reads nothing for so long is gone, or as good as gone.
WRITE_WAIT_S = 20.0
KEPT_FRAGMENTS = 200

Render = Callable[[View, Asked], Awaitable[str]]


@dataclass(slots=True)
class _Fragment:
    task: asyncio.Task[str]
    at_s: float


class Live:
    """All open streams of this instance. Those who look at the same thing share its rendering."""

    def __init__(self, render: Render, *, max_streams: int, stopping: asyncio.Event) -> None:
        self._render = render
        self._max_streams = max_streams
        self._stopping = stopping
        self._fragments: dict[object, _Fragment] = {}
        self.open_count = 0

    async def stream(self, request: web.Request, view: View, asked: Asked) -> web.StreamResponse:
        """The view again and again, until the browser goes, the session ends, or this instance stops.

        Raises Overloaded, and whatever the first rendering does.
        """
        if self.open_count >= self._max_streams:
            raise Overloaded(f"pages that are kept up to date already: {self.open_count}")
        self.open_count += 1
        try:
            # A page was rendered a moment ago: its stream must not begin with what is older than that.
            first = await self._fragment(view, asked, at_most_s=0.1)
            response = secured(
                web.StreamResponse(
                    headers={
                        "Content-Type": "text/event-stream",
                        "X-Accel-Buffering": "no",
                        "X-Request-Id": request["id"],
                        "Server": "chargeonce",
                    }
                )
            )
            await response.prepare(request)
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                await self._follow(response, view, asked, first)
        finally:
            self.open_count -= 1
        return response

    async def _follow(self, response: web.StreamResponse, view: View, asked: Asked, first: str) -> None:
        await _write(response, message(first))
        while not await self._stopped_within(view.period_s):
            if time.time() >= asked.session.expires_at:
                await _write(response, b"event: signed-out\ndata: \n\n")
                return
            # The next rendering waits until the last one has left: a slow reader gets fewer, never a backlog.
            now = Asked(asked.values, asked.session, time.time())
            await _write(response, message(await self._fragment(view, now, at_most_s=view.period_s * 0.8)))

    async def _fragment(self, view: View, asked: Asked, *, at_most_s: float) -> str:
        """The part that changes, at most so old."""
        key = (view.key, tuple(sorted(asked.values.items())), asked.session.may_force)
        now_s = time.monotonic()
        known = self._fragments.get(key)
        if known is None or now_s - known.at_s > at_most_s:
            task = asyncio.create_task(self._rendered(view, asked), name="dashboard-fragment")
            self._fragments.pop(key, None)
            known = self._fragments[key] = _Fragment(task, now_s)
            while len(self._fragments) > KEPT_FRAGMENTS:
                del self._fragments[next(iter(self._fragments))]
        return await asyncio.shield(known.task)

    async def _rendered(self, view: View, asked: Asked) -> str:
        return await self._render(view, asked)

    async def _stopped_within(self, wait_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        return self._stopping.is_set()


def message(html: str) -> bytes:
    """One message of a stream, which htmx swaps in."""
    lines = "".join(f"data: {line}\n" for line in html.splitlines() if line.strip())
    return f"{lines or 'data:'}\n".encode()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_WAIT_S):
        await response.write(data)

"""A stream whose client reads nothing comes to an end, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from service.handlers import http
from service.handlers.http import write_event
from tests.harness import wait_until_async


def test_who_reads_nothing_has_no_stream_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "EVENT_WAIT_S", 0.2)
    asyncio.run(_read_nothing())


async def _read_nothing() -> None:
    ended = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await write_event(request, response, b"x" * 1_000_000)
        except ConnectionResetError:
            ended.set()
        return response

    app = web.Application()
    app.router.add_get("/", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, writer = await asyncio.open_connection(*runner.addresses[0][:2], limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(ended.wait(), 30)

    async def is_gone() -> bool:
        assert runner.server is not None
        return not runner.server.connections

    await wait_until_async(is_gone, patience_s=30, what="the end of the connection")
    writer.close()
    await runner.cleanup()

"""`python -m tests.bench.pressure.bare`: aiohttp on uvloop that answers a repeat's bytes, and does nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import uvloop
from aiohttp import web


def main() -> None:
    """Serves on CHARGEONCE_PORT, beside others of its kind, what BENCH_ANSWER has in it."""
    body = Path(os.environ["BENCH_ANSWER"]).read_bytes()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/appointments/{appointment_id}/entries", answer)
    for path in ("/readyz", "/metrics"):
        app.router.add_get(path, answer)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ["CHARGEONCE_PORT"]),
        reuse_port=True,
        access_log=None,
        print=lambda _text: None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()

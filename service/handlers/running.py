"""/livez, /readyz, /metrics and /openapi.json: without a token, for whoever runs the service."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from db.errors import DatabaseDown
from locks import LockStoreDown
from service.handlers.http import answer
from service.health import Health
from service.models import AliveAnswer, ReadyAnswer
from service.problems import problem_answer
from service.refusals import Draining
from service.scraping import MetricsAway, ReadMetrics, Scraping

# The workers' metrics folder is made again within a second.
MADE_AGAIN_S = 3.0


class RunningHandlers:
    """What this instance says of itself."""

    def __init__(
        self,
        health: Health,
        read_metrics: ReadMetrics,
        *,
        instance_id: str,
        needs_lock_store: bool,
        is_draining: Callable[[], bool],
    ) -> None:
        self._scraping = Scraping(read_metrics)
        self._health = health
        self._instance_id = instance_id
        self._needs_lock_store = needs_lock_store
        self._is_draining = is_draining
        self.openapi_json = b"{}"

    async def alive(self, request: web.Request) -> web.Response:
        """The event loop turns, and that is all this says."""
        return answer(AliveAnswer(status="alive"))

    async def ready(self, request: web.Request) -> web.Response:
        """Whether to send traffic here; the body names each dependency either way."""
        up = self._health.dependencies
        named = {dependency: "up" if up[dependency] else "down" for dependency in up}
        reason = self._why_not(up["database"], up["lock_store"])
        if reason is not None:
            return problem_answer(reason, request["id"], instance=self._instance_id, dependencies=named)
        return answer(ReadyAnswer(status="ready", instance=self._instance_id, dependencies=named))

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text; 503 where it would not be whole, since a counter that falls looks like a start from 0."""
        give_up_at_s = time.monotonic() + MADE_AGAIN_S
        while True:
            try:
                body = await self._scraping.text()
            except MetricsAway as away:
                if time.monotonic() >= give_up_at_s:
                    return web.Response(status=503, text=f"{away}\n", headers={"Retry-After": "1"})
            else:
                return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: web.Request) -> web.Response:
        """OpenAPI 3.1."""
        return web.Response(body=self.openapi_json, content_type="application/json")

    def _why_not(self, database_up: bool, lock_store_up: bool) -> Exception | None:
        if self._is_draining():
            return Draining("this instance is about to stop")
        if not database_up:
            return DatabaseDown("the database does not answer, or takes no writes")
        if self._needs_lock_store and not lock_store_up:
            return LockStoreDown("the lock store does not answer")
        return None

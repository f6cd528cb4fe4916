"""A real load: crowds that race into appointments, and programs that take turns with a few locks over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager

import aiohttp

from tests.harness import bearer

PEOPLE = range(1001, 1031)
OPERATOR_ID = 900
COUPONS = 10_000
# name: how long a program holds it, seconds, at most
LOCKS = {
    "inventory:sku-18": 0.06,
    "report:daily/2026-11": 0.12,
    "payout:merchant-7": 0.09,
    "cache:rates": 0.03,
    "invoice:numbering": 0.05,
}


class Load:
    """Callers of one running service, for as long as `running` lasts."""

    def __init__(self, url: str, *, programs_a_lock: int, crowds: int, crowd_size: int, pause_s: float) -> None:
        self._url = url
        self._programs_a_lock = programs_a_lock
        self._crowds = crowds
        self._crowd_size = crowd_size
        self._pause_s = pause_s
        self._random = random.Random(42)
        self.appointments: list[int] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Begins in a thread of its own, and ends with the block."""
        with _beside(self._all):
            yield

    async def _all(self, stop: asyncio.Event) -> None:
        async with aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0)) as client:
            for person in PEOPLE:
                await self._grant(client, person)
            programs = [
                self._program(client, name, held_s)
                for name, held_s in LOCKS.items()
                for _ in range(self._programs_a_lock)
            ]
            callers = [
                asyncio.ensure_future(each) for each in [*programs, *(self._crowd(client) for _ in range(self._crowds))]
            ]
            await _until(stop, callers)

    async def _grant(self, client: aiohttp.ClientSession, person: int) -> None:
        wanted = {"coupon_id": 1, "count": COUPONS, "reference": f"load:{uuid.uuid4().hex}"}
        async with client.post(f"/v1/users/{person}/coupons", json=wanted, headers=bearer(OPERATOR_ID, "service")):
            pass

    async def _program(self, client: aiohttp.ClientSession, name: str, most_held_s: float) -> None:
        """Acquires, works, releases, and does something else for a while; again and again."""
        path = f"/v1/locks/{name.replace('/', '%2F')}/leases"
        headers = {**bearer(OPERATOR_ID, "locks"), "X-Request-Id": f"job-{uuid.uuid4().hex[:8]}"}
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with client.post(path, json={"ttl_ms": 2000, "wait_ms": 2500}, headers=headers) as answer:
                    lease = await answer.json() if answer.status == 201 else None
                if lease is not None:
                    await asyncio.sleep(self._random.uniform(0.2, 1.0) * most_held_s)
                    async with client.delete(f"{path}/{lease['lease_id']}", headers=headers):
                        pass
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._pause_s)

    async def _crowd(self, client: aiohttp.ClientSession) -> None:
        """Several devices of two people race into one appointment; then into the next."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                inviter, invitee = self._random.sample(PEOPLE, 2)
                wanted = {"user_id": inviter, "invitee_user_id": invitee}
                async with client.post(
                    "/v1/appointments", json=wanted, headers=bearer(OPERATOR_ID, "service")
                ) as answer:
                    appointment_id = (await answer.json())["id"]
                people = [self._random.choice((inviter, invitee)) for _ in range(self._crowd_size)]
                await asyncio.gather(*(self._enter(client, appointment_id, person) for person in people))
                self.appointments.append(appointment_id)
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._pause_s)

    async def _enter(self, client: aiohttp.ClientSession, appointment_id: int, person: int) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with client.post(f"/v1/appointments/{appointment_id}/entries", headers=bearer(person)) as answer:
                await answer.read()


@contextmanager
def queue(url: str, name: str, *, waiters: int) -> Iterator[None]:
    """Somebody holds this lock, and so many others wait for it, for a minute at most."""

    async def ask(client: aiohttp.ClientSession, person: int, wait_ms: int) -> None:
        wanted = {"ttl_ms": 600_000, "wait_ms": wait_ms}
        path = f"/v1/locks/{name.replace('/', '%2F')}/leases"
        async with client.post(path, json=wanted, headers=bearer(person, "locks")) as answer:
            await answer.read()

    async def crowd(stop: asyncio.Event) -> None:
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as client:
            await ask(client, OPERATOR_ID, 0)
            people = range(OPERATOR_ID + 1, OPERATOR_ID + 1 + waiters)
            await _until(stop, [asyncio.ensure_future(ask(client, person, 60_000)) for person in people])

    with _beside(crowd):
        yield


@contextmanager
def _beside(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> Iterator[None]:
    """The work in a thread and an event loop of its own; it is told to stop when the block ends."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(work(stop)), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


async def _until(stop: asyncio.Event, callers: Sequence[asyncio.Future[None]]) -> None:
    await stop.wait()
    for each in callers:
        each.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


def light(url: str) -> Load:
    """Enough for every view to have something to show, on a slow machine too."""
    return Load(url, programs_a_lock=2, crowds=2, crowd_size=5, pause_s=0.25)


def steady(url: str) -> Load:
    """Enough for queues, heat and charts."""
    return Load(url, programs_a_lock=5, crowds=4, crowd_size=8, pause_s=0.15)

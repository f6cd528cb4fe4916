"""Entries: crowds that race for one appointment, traffic over many, repeats, people who run out of coupons, retries."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg2
from psycopg2.extensions import connection as Session

from tests.chaos.workload.client import PATIENCE_S, Answer, Client
from tests.chaos.workload.config import Config
from tests.chaos.workload.people import RICH_INVITERS, Front

CROWD = (2, 3, 4, 6, 8)
POOR_CROWD = (2, 4, 6)
FEW_PAYERS = RICH_INVITERS[:10]
PAYERS_CROWD = 5
MOST_RETRIES = 3
IMPATIENT = 0.04  # of the entries hang up early, and mostly ask again
IMPATIENT_S = (0.005, 0.25)
SAT_ON = 0.05  # of the crowds find the row held by a session of somebody else
SAT_S = (0.25, 0.8)
DIES_SITTING = 0.3


class Pace:
    """At most so many operations a second, over all clients."""

    def __init__(self, rate: float) -> None:
        self._each_s = 1 / rate
        self._next_s = 0.0

    async def take(self, operations: int) -> None:
        """Returns when so many may begin."""
        now_s = asyncio.get_running_loop().time()
        begin_s = max(now_s, self._next_s)
        self._next_s = begin_s + operations * self._each_s
        if begin_s > now_s:
            await asyncio.sleep(begin_s - now_s)


class Entrants:
    """The clients that enter."""

    def __init__(self, client: Client, config: Config, front: Front, sitters: ThreadPoolExecutor) -> None:
        self.stopping = asyncio.Event()
        self._client = client
        self._config = config
        self._appointments = config.appointments
        self._front = front
        # Whoever comes to the end of them enters them again.
        self._wide = itertools.cycle(self._appointments.wide)
        self._poor = itertools.cycle(self._appointments.poor)
        of_few = [id_ for id_ in self._appointments.wide if self._appointments.participants(id_)[0] in FEW_PAYERS]
        self._of_few = itertools.cycle(of_few)
        self._pace = Pace(config.rate)
        self._sitters = sitters
        self._sitting = False
        self._standing_up: asyncio.Task[None] | None = None
        modes = {
            "crowd": self._crowd,
            "wide": self._one,
            "again": self._again,
            "poor": self._poor_crowd,
            "payers": self._few_payers,
        }
        # A mode's share is of operations, and a crowd is several of them.
        sizes = {
            "crowd": sum(CROWD) / len(CROWD),
            "poor": 3 * sum(POOR_CROWD) / len(POOR_CROWD),
            "payers": PAYERS_CROWD,
        }
        self._modes = [modes[name] for name in config.mix]
        self._weights = [share / sizes.get(name, 1) for name, share in config.mix.items()]

    async def client(self, number: int) -> None:
        """One client, until the stop."""
        rng = random.Random(f"{self._config.seed}/{number}")
        while not self.stopping.is_set():
            await rng.choices(self._modes, self._weights)[0](rng, number)

    async def burst(self, entries: int) -> None:
        """So many entries at once, into one appointment: more than the instances have room for."""
        rng = random.Random(entries)
        appointment_id = self._next_hot()
        await asyncio.gather(*[self._enter(rng, number, appointment_id) for number in range(entries)])

    async def _crowd(self, rng: random.Random, number: int) -> None:
        size = rng.choice(CROWD)
        await self._pace.take(size)
        appointment_id = self._next_hot()
        if self._config.sits and not self._sitting and rng.random() < SAT_ON:
            await self._sit_on(rng, appointment_id)
        await asyncio.gather(*[self._enter(rng, number, appointment_id) for _ in range(size)])

    async def _one(self, rng: random.Random, number: int) -> None:
        await self._pace.take(1)
        await self._enter(rng, number, next(self._wide))

    async def _again(self, rng: random.Random, number: int) -> None:
        await self._pace.take(1)
        front = self._front.get()
        await self._enter(rng, number, self._appointments.hot[rng.randint(max(0, front - 50), max(0, front - 1))])

    async def _poor_crowd(self, rng: random.Random, number: int) -> None:
        """Several appointments of one payer at once, who can pay for some of them."""
        size = rng.choice(POOR_CROWD)
        await self._pace.take(3 * size)
        chosen = [next(self._poor) for _ in range(size)]
        await asyncio.gather(*[self._enter(rng, number, appointment_id) for appointment_id in chosen for _ in range(3)])

    async def _few_payers(self, rng: random.Random, number: int) -> None:
        """Appointments of the same few payers, all at once by one instance: batches that have payers in common."""
        await self._pace.take(PAYERS_CROWD)
        instance = rng.choice(list(self._client.base_urls))
        chosen = [next(self._of_few) for _ in range(PAYERS_CROWD)]
        payers = [self._appointments.participants(appointment_id)[0] for appointment_id in chosen]
        await asyncio.gather(
            *[self._ask(number, id_, payer, instance, PATIENCE_S) for id_, payer in zip(chosen, payers, strict=True)]
        )

    async def _enter(self, rng: random.Random, number: int, appointment_id: int) -> None:
        user = rng.choice(self._appointments.participants(appointment_id))
        of = None
        for _ in range(1 + MOST_RETRIES):
            impatient = rng.random() < IMPATIENT
            instance = rng.choice(list(self._client.base_urls))
            patience_s = rng.uniform(*IMPATIENT_S) if impatient else PATIENCE_S
            answer = await self._ask(number, appointment_id, user, instance, patience_s, of)
            if not answer.retryable or rng.random() < 0.25:
                return
            of = of or answer.op
            await asyncio.sleep(rng.uniform(0.0, 0.1))

    async def _ask(
        self, number: int, appointment_id: int, user: int, instance: int, patience_s: float, of: str | None = None
    ) -> Answer:
        return await self._client.ask(
            "POST",
            f"/v1/appointments/{appointment_id}/entries",
            caller=user,
            instance=instance,
            f="enter",
            patience_s=patience_s,
            client=number,
            appointment=appointment_id,
            of=of,
        )

    def _next_hot(self) -> int:
        front = self._front.get()
        self._front.set((front + 1) % len(self._appointments.hot))
        return self._appointments.hot[front]

    async def _sit_on(self, rng: random.Random, appointment_id: int) -> None:
        """Returns once somebody else's session holds the row; it does for a while."""
        self._sitting = True
        loop = asyncio.get_running_loop()
        try:
            session = await loop.run_in_executor(self._sitters, _locked, self._config.database_url, appointment_id)
        except psycopg2.Error:
            self._sitting = False  # a fault was there first
            return
        leave = _die if rng.random() < DIES_SITTING else _close
        self._standing_up = loop.create_task(self._stand_up(session, leave, after_s=rng.uniform(*SAT_S)))

    async def _stand_up(self, session: Session, leave: Callable[[Session], None], *, after_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), after_s)
        await asyncio.get_running_loop().run_in_executor(self._sitters, leave, session)
        self._sitting = False


def _locked(database_url: str, appointment_id: int) -> Session:
    session = psycopg2.connect(database_url, application_name="sitter", connect_timeout=2)
    try:
        with session.cursor() as cursor:
            cursor.execute("SET lock_timeout = '300ms'")
            cursor.execute("SELECT 1 FROM appointment_info WHERE id = %s FOR UPDATE", (appointment_id,))
    except psycopg2.Error:
        session.close()
        raise
    return session


def _die(session: Session) -> None:
    """As a client does whose machine goes down: no word to the server."""
    with socket.socket(fileno=os.dup(session.fileno())) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)
    session.close()


def _close(session: Session) -> None:
    with contextlib.suppress(psycopg2.Error):
        session.rollback()
    session.close()

"""The race of one guard: crowds at the doors of several appointments at once, then a holder that is paused."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import uvloop

from service.callers import sign_token
from tests.chaos.race_ground import Charged, Ground, Sessions, Track
from tests.chaos.race_instances import HOST, LEASE_TTL_S, Instances, running_instances

DOORS = 4  # appointments that are raced for at the same time
PAUSE_LEASES, LONGEST_PAUSE_LEASES = 2.0, 4.0
GO_ON_EVERY_S = 0.2
ANSWER_WITHIN_S = 30.0
TOKEN_TTL_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many race, and how often."""

    entrants: int  # for each appointment
    appointments: int
    paused: int  # appointments whose first holder is paused, besides
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What became of one guard. `answers`: how many of each outcome or code, over crowds and pauses."""

    guard: str
    crowd: Charged
    paused: Charged
    pause_s: float  # the shortest
    entries: int
    p50_ms: float
    p99_ms: float
    most_sessions: int
    most_waiting_for_a_row: int
    answers: dict[str, int]


def race(guard: str, ground: Ground, folder: Path, plan: Plan) -> Measured:
    """Races this guard on a database of its own, and counts what is in the tables. Blocking. Raises RaceFailed."""
    warm_up = list(range(1, DOORS + 1))
    crowd = list(range(DOORS + 1, DOORS + 1 + plan.appointments))
    paused = list(range(crowd[-1] + 1, crowd[-1] + 1 + plan.paused))
    track = ground.new_track(guard, appointments=paused[-1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(_race(guard, track, folder, plan, warm_up=warm_up, crowd=crowd, paused=paused))
    return Measured(
        guard=guard,
        crowd=track.charged(crowd),
        paused=track.charged(paused),
        pause_s=min(seen.pauses_s),
        entries=len(seen.took_s),
        p50_ms=_percentile_ms(seen.took_s, 0.50),
        p99_ms=_percentile_ms(seen.took_s, 0.99),
        most_sessions=seen.most_sessions,
        most_waiting_for_a_row=seen.most_waiting_for_a_row,
        answers=dict(seen.answers),
    )


@dataclass(slots=True)
class _Seen:
    """What the clients have seen, and whoever watched the database. `took_s`: of the entries in crowds."""

    took_s: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    most_sessions: int = 0
    most_waiting_for_a_row: int = 0


async def _race(
    guard: str,
    track: Track,
    folder: Path,
    plan: Plan,
    *,
    warm_up: Sequence[int],
    crowd: Sequence[int],
    paused: Sequence[int],
) -> _Seen:
    async with (
        running_instances(guard, track, folder, stop_at=paused) as instances,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(ANSWER_WITHIN_S)
        ) as session,
    ):
        entrants = _Entrants(session, instances, track, plan)
        await entrants.crowd(warm_up)
        seen = _Seen()
        with Sessions(track.database_url) as sessions:
            for first in range(0, len(crowd), DOORS):
                answers = await entrants.crowd(crowd[first : first + DOORS])
                seen.took_s += [answer.took_s for answer in answers]
                seen.answers.update(answer.outcome for answer in answers)
        for appointment_id in paused:
            pause_s, answers = await entrants.crowd_with_a_pause(appointment_id)
            seen.pauses_s.append(pause_s)
            seen.answers.update(answer.outcome for answer in answers)
        seen.most_sessions, seen.most_waiting_for_a_row = sessions.most, sessions.most_waiting_for_a_row
    return seen


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: str
    took_s: float


class _Entrants:
    """The participants of appointments, on several devices each, at the doors of all instances at once."""

    def __init__(self, session: aiohttp.ClientSession, instances: Instances, track: Track, plan: Plan) -> None:
        self._session = session
        self._instances = instances
        self._track = track
        self._entrants = plan.entrants
        self._random = random.Random(plan.seed)

    async def crowd(self, appointment_ids: Sequence[int]) -> list[_Answer]:
        """All of them at once."""
        return list(await asyncio.gather(*self._all_enter(appointment_ids)))

    async def crowd_with_a_pause(self, appointment_id: int) -> tuple[float, list[_Answer]]:
        """The same for one appointment, whose first holder is paused past its lease between reading and writing.

        The pause ends when another has been answered, or cannot be: the row lock is still held. How long it was at
        least, and the answers.
        """
        entries = self._all_enter([appointment_id])
        try:
            await self._instances.stopped_at(appointment_id)
            stopped_at_s = time.monotonic()
            await asyncio.sleep(PAUSE_LEASES * LEASE_TTL_S)
            rest_s = (LONGEST_PAUSE_LEASES - PAUSE_LEASES) * LEASE_TTL_S
            _, waiting = await asyncio.wait(entries, timeout=rest_s, return_when=asyncio.FIRST_COMPLETED)
            pause_s = time.monotonic() - stopped_at_s
            while waiting:
                self._instances.go_on()
                _, waiting = await asyncio.wait(waiting, timeout=GO_ON_EVERY_S)
            return pause_s, [entry.result() for entry in entries]
        finally:
            for entry in entries:
                entry.cancel()

    def _all_enter(self, appointment_ids: Sequence[int]) -> list[asyncio.Task[_Answer]]:
        entries = [entry for appointment_id in appointment_ids for entry in self._entries_into(appointment_id)]
        self._random.shuffle(entries)
        return [asyncio.create_task(self._enter(*entry)) for entry in entries]

    def _entries_into(self, appointment_id: int) -> list[tuple[int, int, str]]:
        tokens = [self._token(user_id) for user_id in self._track.participants(appointment_id)]
        doors = self._instances.ports
        return [
            (doors[number % len(doors)], appointment_id, tokens[number // len(doors) % len(tokens)])
            for number in range(self._entrants)
        ]

    async def _enter(self, port: int, appointment_id: int, token: str) -> _Answer:
        began_at_s = time.perf_counter()
        try:
            async with self._session.post(
                f"http://{HOST}:{port}/v1/appointments/{appointment_id}/entries",
                headers={"Authorization": f"Bearer {token}"},
            ) as response:
                body = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError):
            return _Answer("no-answer", time.perf_counter() - began_at_s)
        return _Answer(body.get("outcome") or body["code"], time.perf_counter() - began_at_s)

    def _token(self, user_id: int) -> str:
        return sign_token(self._instances.jwt_secret, user_id=user_id, scopes=(), ttl_s=TOKEN_TTL_S, now=time.time())


def _percentile_ms(took_s: Sequence[float], share: float) -> float:
    ordered = sorted(took_s)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

"""A deployment that is not ours: people and appointments made by its API, and its tables as far as they are theirs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import aiohttp
import psycopg2

from service.callers import sign_token
from tests.chaos.history import History
from tests.chaos.leftovers import plain
from tests.chaos.run import RunError
from tests.chaos.workload.people import POOR_COUPONS, SERVICE_USER

PEOPLE = 40  # inviters, and as many invitees; of each a quarter is poor
RICH = 30
RICH_COUPONS = 1_000_000
SHARES = {"hot": 0.12, "wide": 0.3, "poor": 0.15}  # of the operations: so many appointments of each kind
LEAST = 50
CONCURRENT = 16
ALIVE_WAIT_S = 10.0

TABLES = {
    "user_consume": ("id, appointment_id, user_id, other_user_id, count, lock_fence, created_at", "appointment_id"),
    "appointment_action": ("id, appointment_id, user_id, created_at", "appointment_id"),
    "appointment_info": ("id, user_id, invitee_user_id, status, is_consume, lock_fence", "id"),
    "user_coupon": ("user_id, count", "user_id"),
    "coupon_grant": ("user_id, count, reference", "user_id"),
}


@dataclass(frozen=True, slots=True)
class Shell:
    """A fault that a shell command makes."""

    name: str
    scope: str
    command: str

    @classmethod
    def read(cls, text: str) -> Shell:
        """NAME[@SCOPE]=COMMAND. Raises RunError."""
        head, equals, command = text.partition("=")
        name, _, scope = head.partition("@")
        if not (equals and name and command.strip()):
            raise RunError(f"--fault: {text!r} is not NAME[@SCOPE]=COMMAND")
        return cls(name, scope or "deployment", command)


@dataclass(frozen=True, slots=True)
class Ours:
    """Who and what was made for this run."""

    user_ids: Sequence[int]
    people: Mapping[int, tuple[int, int]]  # appointment -> inviter, invitee
    hot: int
    wide: int
    jobs: tuple[str, ...]

    @property
    def chosen(self) -> dict[str, Any]:
        """As the workload's Config takes it."""
        return {"people": dict(self.people), "hot": self.hot, "wide": self.wide}


async def wait_until_alive(base_urls: Iterable[str]) -> None:
    """Returns once each answers. Raises RunError, which names the one that does not."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        for url in base_urls:
            give_up_at_s = time.monotonic() + ALIVE_WAIT_S
            while True:
                try:
                    async with session.get(f"{url}/livez") as response:
                        if response.status == 200:
                            break
                except (aiohttp.ClientError, TimeoutError, ValueError):
                    pass
                if time.monotonic() > give_up_at_s:
                    raise RunError(f"--base-url: {url} does not answer GET /livez")
                await asyncio.sleep(0.1)


async def make_ours(base_url: str, jwt_secret: str, *, duration_s: float, rate: float) -> Ours:
    """People with coupons, and appointments, enough for so many operations. Raises RunError, aiohttp.ClientError."""
    run = secrets.token_hex(4)
    first_user = secrets.randbelow(2**52) + 2**52
    user_ids = range(first_user, first_user + 2 * PEOPLE)
    numbers = {kind: max(LEAST, int(share * duration_s * rate)) for kind, share in SHARES.items()}
    pairs = [_pair(first_user, number, poor=kind == "poor") for kind in SHARES for number in range(numbers[kind])]
    api = _Api(base_url, sign_token(jwt_secret, user_id=SERVICE_USER, scopes=("service",), ttl_s=3600, now=time.time()))
    async with api:
        await api.all(
            [
                (f"/v1/users/{user}/coupons", {"coupon_id": 1, "count": _coupons(place), "reference": f"{run}-{place}"})
                for place, user in enumerate(user_ids)
            ]
        )
        made = await api.all(
            [("/v1/appointments", {"user_id": inviter, "invitee_user_id": invitee}) for inviter, invitee in pairs]
        )
    people = {appointment["id"]: pair for appointment, pair in zip(made, pairs, strict=True)}
    return Ours(user_ids, people, numbers["hot"], numbers["wide"], (f"chaos-{run}:1", f"chaos-{run}:2"))


def _pair(first_user: int, number: int, *, poor: bool) -> tuple[int, int]:
    place = RICH + number // 9 % (PEOPLE - RICH) if poor else number % RICH
    other = RICH + number % (PEOPLE - RICH) if poor else number // 7 % RICH
    return first_user + place, first_user + PEOPLE + other


def _coupons(place: int) -> int:
    return RICH_COUPONS if place % PEOPLE < RICH else POOR_COUPONS


class _Api:
    """POSTs, many at a time; each must succeed."""

    def __init__(self, base_url: str, token: str) -> None:
        self._base_url = base_url
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})
        self._slots = asyncio.Semaphore(CONCURRENT)

    async def __aenter__(self) -> None:
        await self._session.__aenter__()

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def all(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """The answers, in the same order."""
        return list(await asyncio.gather(*[self._post(path, body) for path, body in asked]))

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._slots, self._session.post(self._base_url + path, json=body) as response:
            if response.status not in (200, 201):
                raise RunError(f"POST {path} was answered with {response.status}: {(await response.text())[:200]}")
            answer: dict[str, Any] = await response.json()
            return answer


def write_tables_of(history: History, database_url: str, ours: Ours) -> None:
    """Their rows. Raises psycopg2.Error."""
    ids = {"appointment_id": list(ours.people), "id": list(ours.people), "user_id": list(ours.user_ids)}
    with closing(psycopg2.connect(database_url, connect_timeout=5)) as session, session.cursor() as cursor:
        session.set_session(readonly=True)
        for table, (columns, key) in TABLES.items():
            cursor.execute(f"SELECT {columns} FROM {table} WHERE {key} = ANY(%s) ORDER BY 1", (ids[key],))
            rows = [plain(row) for row in cursor.fetchall()]
            history.write_rows(table, columns.split(", "), rows)

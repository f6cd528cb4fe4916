"""The service as its clients see it: requests, crowds, rows held by strangers, and the proxy in front of Postgres."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import psycopg2
from prometheus_client.parser import text_string_to_metric_families

from db.audit import audit
from db.database import Database
from tests.harness import Rows, Service, bearer, clean_environment, run_cli

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id", "retryable", "charged"}
AWAY_CODES = {"overloaded", "draining", "database-down", "lock-store-down", "charge-unknown"}
STATUSES = {
    "invalid-request": 400,
    "unauthenticated": 401,
    "insufficient-coupons": 402,
    "forbidden": 403,
    "name-reserved": 403,
    "illegal-request": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "appointment-not-open": 409,
    "charge-in-progress": 409,
    "reference-reused": 409,
    "lock-busy": 409,
    "lock-free": 404,
    "holder-changed": 409,
    "lease-lost": 410,
    "too-large": 413,
    "too-many-requests": 429,
    "overloaded": 503,
    "draining": 503,
    "database-down": 503,
    "lock-store-down": 503,
    "charge-unknown": 503,
}
RETRYABLE = AWAY_CODES | {"charge-in-progress", "lock-busy", "too-many-requests"}
TABLES = (
    "appointment_info",
    "appointment_action",
    "user_coupon",
    "coupon_grant",
    "user_consume",
    "lock_audit",
    "coupon_price",
    "spent_token",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    took_s: float = 0.0

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """A problem's code."""
        code = self.json["code"]
        assert isinstance(code, str)
        return code


class Api:
    """One request a connection, so that every worker gets its share."""

    def __init__(self, url: str) -> None:
        self.url = url
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self.host, self.port = address.hostname, address.port

    def connection(self) -> http.client.HTTPConnection:
        """A connection of one's own, kept alive."""
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def connection_closing(self) -> closing[http.client.HTTPConnection]:
        """The same, closed at the block's end."""
        return closing(self.connection())

    def call(
        self,
        method: str,
        path: str,
        *,
        user: int | None = None,
        scope: str = "",
        body: bytes | str | None = None,
        send: object = None,
        form: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        on: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """One request: `send` goes as JSON, `form` urlencoded, `body` as it is."""
        all_headers = dict(bearer(user, scope)) if user is not None else {}
        if send is not None:
            body, all_headers["Content-Type"] = json.dumps(send), "application/json"
        if form is not None:
            body, all_headers["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        connection = on or self.connection()
        started_at_s = time.monotonic()
        try:
            connection.request(method, path, body, {**all_headers, **(headers or {})})
            return answer_of(connection.getresponse(), started_at_s)
        finally:
            if on is None:
                connection.close()

    def get(self, path: str, **more: Any) -> Answer:
        """GET."""
        return self.call("GET", path, **more)

    def post(self, path: str, **more: Any) -> Answer:
        """POST."""
        return self.call("POST", path, **more)

    def enter(self, appointment_id: object, user: int, **more: Any) -> Answer:
        """The main job."""
        return self.call("POST", f"/v1/appointments/{appointment_id}/entries", user=user, **more)

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of /metrics by its name and labels."""
        text = self.get("/metrics").body.decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def every_worker_says(self, dependency: str, state: str) -> bool:
        """Whether each of two workers says that a dependency is up, or down; the kernel spreads the connections."""
        says: dict[str, str] = {}
        for _ in range(30):
            members = self.get("/readyz").json
            says[members["instance"]] = members["dependencies"][dependency]
        return len(says) == 2 and set(says.values()) == {state}

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics."""
        return self.metrics()[f"chargeonce_{name}", tuple(sorted(labels.items()))]


def answer_of(response: http.client.HTTPResponse, started_at_s: float = 0.0) -> Answer:
    """The whole response."""
    body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body, time.monotonic() - started_at_s)


# Words of servers and their drivers, with their addresses and users: for the log alone.
_SERVERS_WORDS = re.compile(r"server at|port \d|FATAL|ERROR|canceling|terminating|connection to|psycopg|relation ")


def problem(answer: Answer, code: str) -> dict[str, Any]:
    """Asserts that the answer is this refusal, with all that section 3.5 promises of it; its members."""
    assert answer.status == STATUSES[code], answer
    assert answer.headers["content-type"] == "application/problem+json"
    members = answer.json
    assert isinstance(members, dict)
    assert members.keys() >= PROBLEM_MEMBERS
    assert members["code"] == code, members
    assert members["status"] == answer.status
    assert members["request_id"] == answer.headers["x-request-id"]
    assert members["charged"] == ("unknown" if code == "charge-unknown" else False)
    assert members["retryable"] is (code in RETRYABLE)
    assert all(isinstance(members[name], str) and members[name] for name in ("type", "title", "detail"))
    assert _SERVERS_WORDS.search(members["detail"]) is None, members
    if code in RETRYABLE:
        assert int(answer.headers["retry-after"]) >= 1
    if code == "unauthenticated":
        assert answer.headers["www-authenticate"].startswith("Bearer")
    return members


def crowd(url: str, entries: Iterable[tuple[int, int]], *, at_once: int = 200) -> list[Answer | None]:
    """Enters (appointment id, user id) each, as many at once as may; None where the connection broke."""

    async def enter_all() -> list[Answer | None]:
        headers = {user_id: bearer(user_id) for user_id in {user_id for _, user_id in wanted}}
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=at_once)) as client:

            async def enter(appointment_id: int, user_id: int) -> Answer | None:
                started_at_s = time.monotonic()
                try:
                    path = f"/v1/appointments/{appointment_id}/entries"
                    async with client.post(path, headers=headers[user_id]) as response:
                        body = await response.read()
                except (aiohttp.ClientError, OSError):
                    return None
                names = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, names, body, time.monotonic() - started_at_s)

            return list(await asyncio.gather(*(enter(*each) for each in wanted)))

    wanted = list(entries)
    return asyncio.run(enter_all())


def statuses(answers: Sequence[Answer | None]) -> Counter[int | None]:
    """How many of each status."""
    return Counter(answer.status if answer else None for answer in answers)


@contextmanager
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    """Runs calls in threads, which are over when the block is."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit


@contextmanager
def held_row(database_url: str, appointment_id: int) -> Iterator[Callable[[], None]]:
    """A stranger's session holds the appointment's row until the function is called, or to the block's end."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM appointment_info WHERE id = %s FOR UPDATE", (appointment_id,))
            assert cursor.rowcount == 1
        yield connection.rollback
    finally:
        connection.close()


def waits_for_row(rows: Rows, *, sessions: int = 1) -> bool:
    """Whether so many of the service's sessions wait for a row lock in this database."""
    return sessions <= rows.number(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND application_name LIKE 'chargeonce%%'"
    )


def everything(rows: Rows) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables: what a refused entry must leave as it was."""
    return {table: rows.run(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}


def entry_rows(rows: Rows, appointment_id: int) -> int:
    """How many ENTER rows there are."""
    return rows.number("SELECT count(*) FROM appointment_action WHERE type = 1 AND appointment_id = %s", appointment_id)


def charge_rows(rows: Rows, appointment_id: int) -> int:
    """How many charges there are, which had better be one at most."""
    return rows.number("SELECT count(*) FROM user_consume WHERE appointment_id = %s", appointment_id)


def price(rows: Rows, other_user_id: int, count: int) -> None:
    """Meeting this user costs so many coupons."""
    rows.run("INSERT INTO coupon_price (other_user_id, count) VALUES (%s, %s)", other_user_id, count)


def assert_books_right(database_url: str) -> None:
    """Every invariant of section 5 holds."""
    database = Database(database_url)
    try:
        report = audit(database)
    finally:
        database.close()
    assert report.holds, [invariant for invariant in report.invariants if not invariant.holds]


def assert_audit_passes(database_url: str) -> None:
    """The same by `chargeonce audit`, as an operator would."""
    ended = run_cli("audit", "--json", environment=clean_environment(database_url=database_url))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["holds"] is True


def fresh_reference() -> str:
    """A reference that nobody has used."""
    return uuid.uuid4().hex


def worker_behind(service: Service, connection: http.client.HTTPConnection) -> int | None:
    """The pid of the worker that serves this connection; None before one has accepted it."""
    assert connection.sock is not None
    host, port = connection.sock.getsockname()[:2]
    address = "".join(f"{int(part):02X}" for part in reversed(host.split("."))) + f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = {f"socket:[{line.split()[9]}]" for line in lines if line.split()[2] == address}
    for pid in service.worker_pids():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(descriptor.readlink()) in sockets:
                    return pid
            except FileNotFoundError:
                continue
    return None

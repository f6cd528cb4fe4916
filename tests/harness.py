"""Real processes for tests: the service over sockets, a Redis to stop and start, and waiting for conditions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
import redis
import sqlalchemy as sa

from db.database import Database
from service.callers import sign_token
from tests.servers.processes import unused_port

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a secret for tests, longer than 32 bytes"
APP_ID = "970CA35de60c44645bbae8a215061b33"
APP_CERTIFICATE = "5CFd2fd1755d40ecb72977518be15d3b"
# In front of a command: a process namespace of its own, in which everybody else's pids are not alive.
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child")
PATIENCE_S = 60.0  # an upper bound for what ends much sooner; a slow machine needs it

_ADDRESS = re.compile(r"on (http://\S+) with")


def clean_environment(**settings: str) -> dict[str, str]:
    """Our environment without any CHARGEONCE_ setting but these (named without the prefix, in lower case)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEONCE_")}
    return environment | {f"CHARGEONCE_{name.upper()}": value for name, value in settings.items()}


def driver_url(url: str) -> sa.URL:
    """The URL for an engine of SQLAlchemy's own, with the driver written out."""
    return sa.make_url(url).set(drivername="postgresql+psycopg2")


def wait_until(condition: Callable[[], object], *, patience_s: float = PATIENCE_S, what: str = "") -> None:
    """Returns once the condition holds; fails the test when it does not within a generous time."""
    give_up_at = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {patience_s} s in vain for {what or condition}"
        time.sleep(0.01)


async def wait_until_async(
    condition: Callable[[], Awaitable[object]], *, patience_s: float = PATIENCE_S, what: str = ""
) -> None:
    """The same on an event loop."""
    give_up_at = time.monotonic() + patience_s
    while not await condition():
        assert time.monotonic() < give_up_at, f"waited {patience_s} s in vain for {what or condition}"
        await asyncio.sleep(0.01)


def wait_for_lock_waiters(database: Database, count: int = 1) -> None:
    """Returns once so many sessions of this database wait for a row or an advisory lock."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def enough_wait() -> bool:
        return bool(database.transaction(lambda connection: connection.execute(waiting).scalar_one()) >= count)

    wait_until(enough_wait, what=f"{count} sessions that wait for a lock")


def token(user_id: int, scope: str = "", *, ttl_s: float = 600) -> str:
    """A valid access token."""
    return sign_token(SECRET, user_id=user_id, scopes=scope.split(), ttl_s=ttl_s, now=time.time())


def bearer(user_id: int, scope: str = "") -> dict[str, str]:
    """Headers of a caller."""
    return {"Authorization": f"Bearer {token(user_id, scope)}"}


def skip_where_no_namespace_may_be_made() -> None:
    """For tests that start something ELSEWHERE."""
    if shutil.which("unshare") is None or subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode != 0:
        pytest.skip("may not make a process namespace (unshare --pid)")


@dataclass(slots=True)
class Service:
    """A running `chargeonce serve`."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    environment: Mapping[str, str]

    def worker_pids(self) -> list[int]:
        """The pids of its worker processes that live now."""
        pids = []
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone since
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if b"worker" in words:
                    pids.append(int(child))
        return pids

    def stop(self) -> int:
        """Drains it, as a terminal's Ctrl-C does; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)

    def logged(self) -> str:
        """All that it has logged."""
        return self.log.read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How `chargeonce serve` is started; what it logs goes to a file of its own where no `stderr` is given, and
    without `settings` it is given the tests' secrets.
    """

    command: Sequence[str] = (sys.executable, "-m", "service", "serve")
    cwd: Path = ROOT
    stderr: int | None = None
    settings: Mapping[str, str] | None = None


@contextmanager
def service(folder: Path, start: Start | None = None, /, *, workers: int = 2, **settings: str) -> Iterator[Service]:
    """`chargeonce serve` on a free port with these settings; gone, with all its workers, afterwards."""
    start = start or Start()
    defaults = {
        "jwt_secret": SECRET,
        "agora_app_id": APP_ID,
        "agora_app_certificate": APP_CERTIFICATE,
        "data_dir": str(folder / "data"),
        "audit_interval_s": "0",
    }
    environment = clean_environment(**{**(defaults if start.settings is None else start.settings), **settings})
    log = folder / f"service-{time.monotonic_ns()}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*start.command, "--port", "0", "--workers", str(workers)],
            env=environment,
            cwd=start.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors if start.stderr is None else start.stderr,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        found = _ADDRESS.search(process.stdout.readline())
        assert found, f"the service did not start: {log.read_text()}"
        yield Service(process, found[1], log, environment)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def run_cli(
    *words: str, environment: Mapping[str, str], patience_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """`chargeonce WORDS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *words],
        env=dict(environment),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience_s,
        check=False,
    )


class OwnRedis:
    """A Valkey of the test's own, to be stopped, frozen, and started again on the same port, empty."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self.port = unused_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        command = [
            str(self._binary),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self.process = subprocess.Popen(
            command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, what="Valkey")

    def kill(self) -> None:
        """Gone at once, with all its data; harmless twice."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def flush(self) -> None:
        """Empties it, as an operator's FLUSHALL does."""
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            client.flushall()

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP freezes it, SIGCONT lets it go on."""
        assert self.process is not None
        self.process.send_signal(number)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "Valkey did not start"
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Rows:
    """The tables, seen and filled from outside the product."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def run(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """One statement's rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *values: object) -> object:
        """One statement's only value."""
        return self.run(statement, *values)[0][0]

    def number(self, statement: str, *values: object) -> int:
        """One statement's only value, a number."""
        value = self.one(statement, *values)
        assert isinstance(value, int)
        return value

    def appointment(self, user_id: int, invitee_user_id: int) -> int:
        """A new open appointment's id."""
        return self.number(
            "INSERT INTO appointment_info (user_id, invitee_user_id) VALUES (%s, %s) RETURNING id",
            user_id,
            invitee_user_id,
        )

    def grant(self, user_id: int, count: int) -> None:
        """Coupons with their grant, so that the audit adds up."""
        self.run(
            "INSERT INTO coupon_grant (user_id, coupon_id, count, reference)"
            " VALUES (%s, 1, %s, gen_random_uuid()::text)",
            user_id,
            count,
        )
        self.run(
            "INSERT INTO user_coupon (user_id, coupon_id, count) VALUES (%s, 1, %s)"
            " ON CONFLICT (user_id, coupon_id) DO UPDATE SET count = user_coupon.count + excluded.count",
            user_id,
            count,
        )

    def balance(self, user_id: int) -> int:
        """The user's coupons."""
        return self.number("SELECT coalesce(sum(count), 0)::bigint FROM user_coupon WHERE user_id = %s", user_id)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

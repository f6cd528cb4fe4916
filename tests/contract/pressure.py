"""Servers slow, silent or frozen, locks held by strangers; what a worker holds of its machine, and whether it lied."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis
from redis_lock import Lock

from locks.keys import keys_of
from tests.contract.api import Answer, Api, charge_rows, entry_rows, problem
from tests.contract.conftest import World
from tests.harness import Rows, Service, wait_until
from tests.proxy import Proxy, Way

FOREIGN_LEASE_S = 200
# Pools start a thread, a connection, or a library its file, when first needed; what grows with the requests is more.
SPARE_THREADS = 5
SPARE_FILES = 10
CLOSE_WAIT = "08"  # the states of /proc/net/tcp
ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a worker process holds of its machine."""

    threads: int
    files: int


def footprints(service: Service) -> dict[int, Footprint]:
    """Of each worker, by its pid."""
    return {pid: Footprint(_entries_of(pid, "task"), _entries_of(pid, "fd")) for pid in service.worker_pids()}


def _entries_of(pid: int, folder: str) -> int:
    return len(os.listdir(f"/proc/{pid}/{folder}"))


def wait_until_not_grown(service: Service, before: dict[int, Footprint]) -> None:
    """Returns once every worker has shrunk to what it held before; fails when one does not."""

    def has_not_grown() -> bool:
        now = footprints(service)
        assert now.keys() == before.keys(), "a worker has died"
        return all(
            now[pid].threads <= before[pid].threads + SPARE_THREADS
            and now[pid].files <= before[pid].files + SPARE_FILES
            for pid in now
        )

    wait_until(has_not_grown, patience_s=20, what=f"{footprints(service)} to be no more than {before}")


def assert_no_more_threads(service: Service, before: dict[int, Footprint]) -> None:
    """For a moment at which nothing is about to end: no worker has more threads than before."""
    now = footprints(service)
    assert now.keys() == before.keys(), "a worker has died"
    for pid, footprint in now.items():
        assert footprint.threads <= before[pid].threads + SPARE_THREADS, (before, now)


def assert_truthful(world: World, entries: Sequence[tuple[int, int]], answers: Sequence[Answer]) -> None:
    """What each of these entries, one for each appointment, was told of its charge is so in the tables.

    Whoever was told of no charge is charged by the next try; whoever was told of one is not. Nothing of a refused
    entry was written, not even late. For the time when the servers are well again; everybody has entered afterwards.
    """
    expected_entries = {}
    for (id_, user_id), told in zip(entries, answers, strict=True):
        knows, last = let_in_at_last(world.api, id_, user_id)
        knows = knows and (told.status < 300 or told.json["charged"] != "unknown")
        if knows:
            assert last.status == (200 if told.status < 300 else 201), (id_, told.status, told.body, last.status)
            expected_entries[id_] = 1 + (told.status < 300)
        [[charge_id]] = world.rows.run("SELECT id FROM user_consume WHERE appointment_id = %s", id_)
        for answer in (told, last):
            assert answer.status >= 300 or answer.json["charge"]["id"] == charge_id
    wait_until(lambda: is_quiet(world.rows), what="the end of all transactions")
    assert {id_: entry_rows(world.rows, id_) for id_ in expected_entries} == expected_entries


def assert_each_charged_once(world: World, meetings: Sequence[tuple[int, int, int]], answers: Sequence[Answer]) -> None:
    let_in = [answer.json for answer in answers if answer.status in (200, 201)]
    assert sum(answer.status == 201 for answer in answers) == len(meetings)
    for id_, *pair in meetings:
        ours = [answer for answer in let_in if answer["appointment_id"] == id_]
        assert charge_rows(world.rows, id_) == 1
        assert len({answer["charge"]["id"] for answer in ours}) == 1
        assert len(ours) == entry_rows(world.rows, id_)
        assert sum(world.rows.balance(person) for person in pair) == 9


def let_in_at_last(api: Api, appointment_id: int, user_id: int) -> tuple[bool, Answer]:
    """Tries until it is let in; the answer, and whether none of the tries before may have charged."""
    tries: list[Answer] = []

    def is_let_in() -> bool:
        tries.append(api.enter(appointment_id, user_id))
        return tries[-1].status in (200, 201)

    wait_until(is_let_in, what="an entry that is let in")
    return all(answer.json["charged"] is False for answer in tries[:-1]), tries[-1]


def assert_refused_honestly(answer: Answer, *codes: str) -> None:
    """One of these refusals, with all that the contract promises of it."""
    assert answer.status >= 400, answer
    assert answer.code in codes, answer.json
    problem(answer, answer.code)


def is_quiet(rows: Rows) -> bool:
    """Whether no session of the service is in a transaction in this database."""
    return not rows.one(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state <> 'idle' AND application_name LIKE 'chargeonce%%' AND pid <> pg_backend_pid()"
    )


@contextmanager
def frozen_postgres(rows: Rows) -> Iterator[None]:
    """All Postgres processes that serve the service are stopped, as if its disk hung; thawed afterwards."""
    wait_until(lambda: is_quiet(rows), what="a moment without transactions")
    pids = [
        int(str(pid))
        for (pid,) in rows.run(
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'chargeonce%%'"
        )
    ]
    assert pids
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def silent(proxy: Proxy) -> Iterator[None]:
    """Nothing arrives any more on either side, and nobody is told; all of it arrives afterwards."""
    for way in Way:
        proxy.hold(way)
    try:
        yield
    finally:
        for way in Way:
            proxy.let_through(way)


@contextmanager
def swallowed(proxy: Proxy) -> Iterator[None]:
    """A black hole: nothing arrives any more, and never will; afterwards the connections are found broken."""
    for way in Way:
        proxy.swallow(way)
    try:
        yield
    finally:
        # First cut: a connection that goes on with bytes missing is not TCP.
        proxy.go_away()
        for way in Way:
            proxy.let_through(way)
        proxy.come_back()


@contextmanager
def slow(proxy: Proxy, *, each_way_s: float) -> Iterator[None]:
    """Whatever is said arrives so much later."""
    for way in Way:
        proxy.delay(way, delay_s=each_way_s)
    try:
        yield
    finally:
        for way in Way:
            proxy.delay(way, delay_s=0)


def redis_proxy(url: str) -> tuple[Proxy, str]:
    """A proxy before the Redis of this redis:// URL, and the URL that leads through it."""
    parts = urlsplit(url)
    assert parts.scheme == "redis", "the proxy speaks for one server, in plain text"
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or 6379)
    signed_in = parts.netloc.rpartition("@")[0]
    place = f"127.0.0.1:{proxy.port}"
    return proxy, parts._replace(netloc=f"{signed_in}@{place}" if signed_in else place).geturl()


def lock_name(appointment_id: int) -> str:
    """The lock in front of an appointment, as python-redis-lock knows it."""
    return f"{{appointment:{appointment_id}}}"


@contextmanager
def held_lock(client: redis.Redis, appointment_id: int) -> Iterator[Callable[[], None]]:
    """A python-redis-lock program holds the appointment's lock until the function is called, or to the block's end."""
    lock = Lock(client, lock_name(appointment_id), expire=FOREIGN_LEASE_S)
    assert lock.acquire()
    is_held = True

    def release() -> None:
        nonlocal is_held
        if is_held:
            is_held = False
            lock.release()

    try:
        yield release
    finally:
        release()


def processes_in_line(client: redis.Redis, appointment_id: int) -> int:
    """How many processes wait in Redis for the appointment's lock."""
    count = client.zcard(keys_of(f"appointment:{appointment_id}").queue)
    assert isinstance(count, int)
    return count


def waiter_count(api: Api) -> int:
    """How many callers wait for an appointment's lock, in all workers."""
    return int(api.metric("lock_waiters", resource="appointment"))


def is_free(client: redis.Redis, appointment_id: int) -> bool:
    """Whether nobody holds the appointment's lock."""
    return not client.exists(keys_of(f"appointment:{appointment_id}").lock)


def connection_count(api: Api) -> int:
    """How many connections to the service are open at its end."""
    return sum(state == ESTABLISHED for _, state in _service_ends(api))


def has_hung_up(api: Api, client_port: int) -> bool:
    """Whether the service has closed its end of the connection from this port."""
    return (client_port, CLOSE_WAIT) not in _service_ends(api) and (client_port, ESTABLISHED) not in _service_ends(api)


def _service_ends(api: Api) -> list[tuple[int, str]]:
    """The client's port and the state of each connection, seen from the service."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        (int(remote.partition(":")[2], 16), state)
        for _, local, remote, state, *_ in lines
        if int(local.partition(":")[2], 16) == api.port and state != "0A"
    ]

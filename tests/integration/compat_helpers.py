"""What the tests of SafeLock share: clients, the original, and work in another thread or program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
import redis_lock

from locks.compat import client as stated_client
from tests.harness import PATIENCE_S, ROOT, wait_until
from tests.proxy import Proxy

SOON_S = 20.0  # far below the waits that a trap costs, far above what is needed


def through(proxy: Proxy, **limits: Any) -> redis.Redis:
    return stated_client(f"redis://127.0.0.1:{proxy.port}/0", **limits)


def original(client: redis.Redis, name: str, *, expire: float | None = 20, **words: Any) -> redis_lock.Lock:
    return redis_lock.Lock(client, f"{{{name}}}", expire=expire, **words)


@contextmanager
def doing(work: Callable[[], object]) -> Iterator[threading.Event]:
    """Does it in a thread; the event is set once it has returned. What it raised comes out at the end."""
    returned = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        returned.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield returned
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextmanager
def program(
    source: str, *arguments: object, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Another Python program; gone afterwards, and whatever it forked. environment: beside this process' own."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def blocked(client: redis.Redis) -> bool:
    """Whether anybody waits in a BLPOP on this server."""
    return bool(client.info("clients")["blocked_clients"])


def wait_for_no_threads() -> None:
    # But for the one that sends what is owed: an earlier test's server may be gone for good.
    names = ("safe-lock-keeper", "safe-lock-renewal", "safe-lock-on-lost")
    wait_until(
        lambda: not any(thread.name in names for thread in threading.enumerate()),
        what="the end of every thread",
    )

"""Synchronous programs with the original python-redis-lock, on the same locks as the instances.

Now and then one dies while it holds a lock, and another takes its place.
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

import redis
import redis_lock

from tests.chaos.history import History, now_ns
from tests.chaos.workload.config import Config
from tests.chaos.workload.people import front_in

PROGRAMS = 2
LOOK_S = 0.1
EXPIRE_S = 1
WAIT_S = 1
LAST_TURN_S = 5.0
HOLDS_S = (0.002, 0.02)
PAUSE_S = (0.05, 0.25)
DIES = 0.02
AHEAD = 3  # crowds that come next


def keep_running(config_path: Path) -> None:
    """PROGRAMS of them, until standard input ends."""
    config = Config.load(config_path)
    running = {_forked(config, number): number for number in range(1, PROGRAMS + 1)}
    while not select.select([0], [], [], LOOK_S)[0]:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid:
            number = running.pop(pid)
            running[_forked(config, number)] = number
    # Each ends its turn first: a lock that nobody is known to hold would lie idle until its end.
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    give_up_at_s = time.monotonic() + LAST_TURN_S
    for pid in running:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= give_up_at_s:
                os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK_S)


def _forked(config: Config, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _run(config, number)
        finally:
            os._exit(1)
    return pid


def _run(config: Config, number: int) -> None:
    history = History(Path(config.history))
    rng = random.Random(f"{config.seed}/sync/{number}/{os.getpid()}")
    assert config.redis_url is not None
    # No time-out in the client: python-redis-lock has its own, and a BLPOP that is broken off loses its signal.
    client = redis.Redis.from_url(config.redis_url, socket_timeout=None, socket_connect_timeout=1)
    hot = config.appointments.hot
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with front_in(Path(config.front)) as front:
        while not stopping.wait(rng.uniform(*PAUSE_S)):
            appointment_id = hot[(front.get() + rng.randrange(AHEAD)) % len(hot)]
            try:
                _turn(client, history, rng, number, f"appointment:{appointment_id}")
            except (redis.RedisError, redis_lock.LockError):
                continue


def _turn(client: redis.Redis, history: History, rng: random.Random, number: int, name: str) -> None:
    who: dict[str, Any] = {"i": f"sync-{number}", "life": os.getpid()}
    lock = redis_lock.Lock(client, f"{{{name}}}", expire=EXPIRE_S)
    asked_at = now_ns()
    if not lock.acquire(timeout=WAIT_S):
        return
    history.write("point", p="acquired", **who, name=name, until=asked_at + EXPIRE_S * 1_000_000_000)
    if rng.random() < DIES:
        history.write("died", i=who["i"], life=who["life"], pid=os.getpid(), how="killed", held=[])
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(rng.uniform(*HOLDS_S))
    history.write("point", p="releasing", **who, name=name)
    try:
        lock.release()
    except redis_lock.NotAcquired:
        history.write("point", p="lost", **who, name=name, reason="not acquired")

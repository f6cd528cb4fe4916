"""A synchronous program with the original python-redis-lock, on the same locks as the instances.

`python -m tests.chaos.workload.sync_program CONFIG NUMBER`, until SIGTERM; now and then it dies while it holds a lock.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import redis
import redis_lock

from tests.chaos.history import History, now_ns
from tests.chaos.workload.config import Config
from tests.chaos.workload.people import front_in

EXPIRE_S = 1
WAIT_S = 1
HOLDS_S = (0.002, 0.02)
PAUSE_S = (0.05, 0.25)
DIES = 0.02
AHEAD = 3  # crowds that come next


def main() -> None:
    """One program."""
    config, number = Config.load(Path(sys.argv[1])), int(sys.argv[2])
    history = History(Path(config.history))
    rng = random.Random(f"{config.seed}/sync/{number}/{os.getpid()}")
    signal.signal(signal.SIGTERM, _leave)
    assert config.redis_url is not None
    # No time-out in the client: python-redis-lock has its own, and a BLPOP that is broken off loses its signal.
    client = redis.Redis.from_url(config.redis_url, socket_timeout=None, socket_connect_timeout=1)
    with front_in(Path(config.front)) as front:
        while True:
            time.sleep(rng.uniform(*PAUSE_S))
            try:
                _turn(client, history, rng, number, f"appointment:{front.get() + rng.randrange(AHEAD)}")
            except (redis.RedisError, redis_lock.LockError):
                continue


def _turn(client: redis.Redis, history: History, rng: random.Random, number: int, name: str) -> None:
    who = {"i": f"sync-{number}", "life": os.getpid()}
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


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # what it holds runs out by itself


if __name__ == "__main__":
    main()

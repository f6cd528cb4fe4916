"""Servers that refuse every lock command for a while, each in its own words, and are well again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.harness import wait_until
from tests.servers.redis_server import RedisServer
from tests.servers.wire import ErrorReply


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a server comes to refuse, and to take commands again. `settings`: what it is started with for that."""

    word: str
    begin: Callable[[RedisServer], None]
    end: Callable[[RedisServer], None]
    settings: Sequence[str] = ()


def _fail_to_save(server: RedisServer) -> None:
    (server.folder / "blocked.rdb").mkdir(exist_ok=True)  # so that no file can be put in its place
    server.ask("BGSAVE")
    wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err", what="a save that fails")


def _keep_busy(server: RedisServer) -> None:
    """A script that runs until it is killed."""

    def run() -> None:
        with server.connect(answer_wait_s=60) as wire, contextlib.suppress(ErrorReply):
            wire.ask("EVAL", "while true do redis.call('PING') end", 0)

    threading.Thread(target=run, daemon=True).start()
    wait_until(lambda: _is_busy(server), what="a busy server")


def _is_busy(server: RedisServer) -> bool:
    try:
        server.ask("PING")
    except ErrorReply as error:
        return str(error).startswith("BUSY")
    return False


def _end_of_busy(server: RedisServer) -> None:
    server.ask("SCRIPT", "KILL")
    wait_until(lambda: not _is_busy(server), what="a server at rest")


def _ask(*words: str | int) -> Callable[[RedisServer], None]:
    def ask(server: RedisServer) -> None:
        server.ask(*words)

    return ask


MISCONF = Refusal(
    "MISCONF",
    _fail_to_save,
    _ask("CONFIG", "SET", "stop-writes-on-bgsave-error", "no"),
    settings=("save 3600 1000000", "dbfilename blocked.rdb"),
)
NOREPLICAS = Refusal(
    "NOREPLICAS",
    _ask("CONFIG", "SET", "min-replicas-to-write", 1),
    _ask("CONFIG", "SET", "min-replicas-to-write", 0),
)
READONLY = Refusal("READONLY", _ask("REPLICAOF", "127.0.0.1", 1), _ask("REPLICAOF", "NO", "ONE"))
NOPERM = Refusal(
    "NOPERM",
    _ask("ACL", "SETUSER", "default", "-evalsha"),
    _ask("ACL", "SETUSER", "default", "+evalsha"),
)
OOM = Refusal("OOM", _ask("CONFIG", "SET", "maxmemory", 1), _ask("CONFIG", "SET", "maxmemory", 0))
BUSY = Refusal("BUSY", _keep_busy, _end_of_busy, settings=("lua-time-limit 1",))
EVERY = (MISCONF, NOREPLICAS, READONLY, NOPERM, BUSY)

"""What a comparison of random commands cannot mix in: a server that loads, one that evicts, a full tracking table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hiredis
import pytest

from tests.harness import wait_until
from tests.servers.kinds import server_binary
from tests.servers.redis_server import RedisServer
from tests.servers.wire import ErrorReply, Wire
from tests.sim.redis import DIALECTS, Model, Refusal

KEYS = ("lock:{a}", "lock:{b}", "lock:{c}")


class SlowServer(RedisServer):
    """One that has a dataset to load, and takes its time for it; it has started when it says so."""

    def answers(self) -> bool:
        try:
            return super().answers() or self.ask("PING") == "PONG"
        except ErrorReply as error:
            return str(error).startswith("LOADING")
        except OSError:
            return False


@pytest.mark.parametrize("kind", DIALECTS)
def test_a_server_that_loads_refuses_what_the_model_refuses(kind: str, tmp_path: Path) -> None:
    settings = ["enable-debug-command local", "key-load-delay 5000", "loading-process-events-interval-bytes 1024"]
    server = SlowServer(server_binary(kind), tmp_path, settings=settings)
    model = Model(DIALECTS[kind])
    model.refuses = Refusal.LOADING
    client = model.connect(lambda told: None)
    try:
        server.start()
        server.ask("DEBUG", "POPULATE", 3000, "key", 100)
        server.ask("SAVE")
        server.restart()
        with server.connect() as wire:
            for text in (
                *("PING", "GET x", "SET x 1", "DEL x", "BLPOP x 1", "PUBLISH x y", "CLIENT TRACKING OFF", "ROLE"),
                *("CLUSTER MYID", "SELECT 0", "SCRIPT LOAD x", f"EVALSHA {'0' * 40} 0", "CLIENT CACHING YES"),
                *("MGET x", "LPUSH x y", "PEXPIRE x 1", "SUBSCRIBE x"),
            ):
                command = text.split()
                said = model.execute(client, [word.encode() for word in command], 0)
                assert _said(wire, *command) == _parsed(said), text
    finally:
        server.kill()


@pytest.mark.parametrize("kind", DIALECTS)
def test_an_evicted_key_is_told_of_as_a_changed_one(kind: str, tmp_path: Path) -> None:
    server = RedisServer(server_binary(kind), tmp_path, settings=["maxmemory-policy allkeys-random"])
    model = Model(DIALECTS[kind])
    try:
        server.start()
        with server.connect() as reader, server.connect() as listener:
            _watch(reader, listener)
            server.ask("CONFIG", "SET", "maxmemory", 1)
            wait_until(lambda: server.ask("DBSIZE") == 0, what="keys that are evicted")
            told = [listener.hear() for _ in KEYS]
    finally:
        server.kill()
    heard = _watched_in(model)
    for key in KEYS:
        model.evict(key.encode(), 0)
    assert sorted(told) == sorted(_parsed(each) for each in heard)


@pytest.mark.parametrize("kind", DIALECTS)
def test_what_a_full_tracking_table_forgets_is_told_of_as_changed(kind: str, tmp_path: Path) -> None:
    """A real server keeps as much as there is room for; the model, which is for the worst, keeps nothing."""
    server = RedisServer(server_binary(kind), tmp_path)
    model = Model(DIALECTS[kind])
    try:
        server.start()
        with server.connect() as reader, server.connect() as listener:
            _watch(reader, listener)
            server.ask("CONFIG", "SET", "tracking-table-max-keys", 1)
            reader.ask("PING")
            told = [listener.hear() for _ in KEYS[1:]]
    finally:
        server.kill()
    heard = _watched_in(model)
    model.forgets_tracking()
    assert len(heard) == len(KEYS)
    assert all(each in [_parsed(raw) for raw in heard] for each in told)


def _watch(reader: Wire, listener: Wire) -> None:
    """The reader watches all keys, and the listener is to be told."""
    number = listener.ask("CLIENT", "ID")
    listener.ask("SUBSCRIBE", "__redis__:invalidate")
    reader.ask("CLIENT", "TRACKING", "ON", "REDIRECT", number, "OPTIN")
    for key in KEYS:
        reader.ask("SET", key, "id")
        reader.ask("CLIENT", "CACHING", "YES")
        reader.ask("GET", key)


def _watched_in(model: Model) -> list[bytes]:
    """The same in the model; what the listener is told stands in the list."""
    heard: list[bytes] = []
    listener, reader = model.connect(heard.append), model.connect(lambda told: None)
    model.execute(listener, [b"SUBSCRIBE", b"__redis__:invalidate"], 0)
    model.execute(reader, [b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", b"%d" % listener.number, b"OPTIN"], 0)
    for key in KEYS:
        model.execute(reader, [b"SET", key.encode(), b"id"], 0)
        model.execute(reader, [b"CLIENT", b"CACHING", b"YES"], 0)
        model.execute(reader, [b"GET", key.encode()], 0)
    return heard


def _said(wire: Wire, *command: str) -> Any:
    try:
        return wire.ask(*command)
    except ErrorReply as error:
        return str(error)


def _parsed(raw: bytes) -> Any:
    reader = hiredis.Reader(encoding="utf-8")
    reader.feed(raw)
    reply = reader.gets()
    return str(reply) if isinstance(reply, hiredis.ReplyError) else reply

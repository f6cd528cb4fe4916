"""The model's own promises: what no comparison with a real server can show, and the plainest of what one does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import hiredis
import pytest

from tests.harness import ROOT
from tests.sim.redis import DIALECTS, Client, Model, Refusal

NOW_US = 1_800_000_000_000_000
LOCK = b"lock:{a}"


class Connection:
    """A client of the model, with what it was told."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._told = hiredis.Reader()
        self.client: Client = model.connect(self._told.feed)

    def ask(self, *words: bytes | str | int, at_ms: int = 0) -> Any:
        """The reply, at_ms after the beginning; None for a nil, and for what blocks."""
        command = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        reader = hiredis.Reader()
        reader.feed(self.model.execute(self.client, command, NOW_US + at_ms * 1000))
        reply = reader.gets()
        return None if reply is False else reply

    def told(self) -> list[Any]:
        """What has been pushed since the last time."""
        found = []
        while (each := self._told.gets()) is not False:
            found.append(each)
        return found


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def one(model: Model) -> Connection:
    return Connection(model)


def watching(model: Model) -> tuple[Connection, Connection]:
    """A client that tracks what it reads, and the one that is told."""
    reader, listener = Connection(model), Connection(model)
    listener.ask("SUBSCRIBE", "__redis__:invalidate")
    assert reader.ask("CLIENT", "TRACKING", "ON", "REDIRECT", listener.client.number, "OPTIN") == b"OK"
    return reader, listener


def test_a_key_is_there_to_the_end_of_its_last_millisecond(one: Connection) -> None:
    one.ask("SET", LOCK, "id", "PX", 100)
    assert one.ask("GET", LOCK, at_ms=100) == b"id"
    assert one.ask("GET", LOCK, at_ms=101) is None


def test_a_key_whose_end_has_passed_stays_gone_when_the_clock_goes_back(one: Connection) -> None:
    one.ask("SET", LOCK, "id", "PX", 100)
    one.ask("GET", LOCK, at_ms=101)
    assert one.ask("GET", LOCK, at_ms=0) is None


def test_a_key_that_nobody_touched_is_there_again_when_the_clock_goes_back(one: Connection) -> None:
    one.ask("SET", LOCK, "id", "PX", 100)
    one.ask("PING", at_ms=5000)
    assert one.ask("PTTL", LOCK, at_ms=0) == 100


def test_expire_removes_and_tells_without_being_asked(model: Model, one: Connection) -> None:
    reader, listener = watching(model)
    one.ask("SET", LOCK, "id", "PX", 100)
    reader.ask("CLIENT", "CACHING", "YES")
    reader.ask("GET", LOCK)
    listener.told()
    model.expire(NOW_US + 101_000)
    assert listener.told() == [[b"message", b"__redis__:invalidate", [LOCK]]]
    assert model.snapshot().values == {}


def test_on_lock_hears_of_each_holder_and_why(model: Model, one: Connection) -> None:
    heard: list[tuple[bytes | None, bytes | None, str]] = []
    model.on_lock = lambda key, old, new, why: heard.append((old, new, why))
    one.ask("SET", LOCK, "a", "NX", "PX", 100)
    one.ask("DEL", LOCK)
    one.ask("EVAL", "redis.call('SET', KEYS[1], 'b', 'PX', 100) redis.call('SET', KEYS[1], 'c', 'PX', 100)", 1, LOCK)
    one.ask("EXISTS", LOCK, at_ms=101)
    one.ask("SET", LOCK, "d")
    model.evict(LOCK, NOW_US)
    one.ask("SET", LOCK, "e")
    before = model.snapshot()
    model.flush_all(NOW_US)
    model.restore(before, NOW_US)
    assert heard == [
        (None, b"a", "set"),
        (b"a", None, "deleted"),
        (None, b"b", "script"),
        (b"b", b"c", "script"),
        (b"c", None, "expired"),
        (None, b"d", "set"),
        (b"d", None, "evicted"),
        (None, b"e", "set"),
        (b"e", None, "flush"),
        (None, b"e", "restart"),
    ]


def test_a_snapshot_is_not_changed_by_what_comes_later(model: Model, one: Connection) -> None:
    one.ask("HSET", "hash", "field", 1)
    one.ask("ZADD", "set", 1, "member")
    before = model.snapshot()
    one.ask("HSET", "hash", "field", 2)
    one.ask("ZADD", "set", 2, "member")
    model.restore(before, NOW_US)
    again = Connection(model)
    assert again.ask("HGET", "hash", "field") == b"1"
    assert again.ask("ZRANGE", "set", 0, -1, "WITHSCORES") == [b"member", b"1"]


def test_a_restart_forgets_clients_scripts_and_watches(model: Model) -> None:
    reader, listener = watching(model)
    sha = reader.ask("SCRIPT", "LOAD", "return 1")
    reader.ask("CLIENT", "CACHING", "YES")
    reader.ask("GET", LOCK)
    model.restore(model.snapshot(), NOW_US)
    one = Connection(model)
    one.ask("SET", LOCK, "id")
    assert listener.told() == []
    assert str(one.ask("EVALSHA", sha, 0)) == "NOSCRIPT No matching script."
    model.disconnect(reader.client)  # the world may find out later
    assert one.ask("GET", LOCK) == b"id"


def test_a_watch_is_for_one_change_and_only_after_caching_yes(model: Model, one: Connection) -> None:
    reader, listener = watching(model)
    reader.ask("GET", LOCK)
    one.ask("SET", LOCK, "a")
    assert listener.told() == []
    reader.ask("CLIENT", "CACHING", "YES")
    reader.ask("GET", LOCK)
    one.ask("SET", LOCK, "b")
    one.ask("SET", LOCK, "c")
    assert listener.told() == [[b"message", b"__redis__:invalidate", [LOCK]]]


def test_nobody_is_told_where_the_listener_is_gone(model: Model, one: Connection) -> None:
    reader, listener = watching(model)
    reader.ask("CLIENT", "CACHING", "YES")
    reader.ask("GET", LOCK)
    model.disconnect(listener.client)
    one.ask("SET", LOCK, "a")
    assert listener.told() == []
    words = str(reader.ask("CLIENT", "TRACKING", "ON", "REDIRECT", listener.client.number, "OPTIN"))
    assert words == "ERR The client ID you want redirect to does not exist"


def test_a_full_tracking_table_tells_of_all_as_changed(model: Model, one: Connection) -> None:
    reader, listener = watching(model)
    for key in ("lock:{b}", "lock:{a}"):
        reader.ask("CLIENT", "CACHING", "YES")
        reader.ask("GET", key)
    model.forgets_tracking()
    model.forgets_tracking()
    assert [keys for _, _, keys in listener.told()] == [[b"lock:{b}"], [b"lock:{a}"]]


def test_a_blocked_client_is_served_in_turn_by_a_script_and_then_does_what_it_sent_meanwhile(model: Model) -> None:
    first, second, pusher = Connection(model), Connection(model), Connection(model)
    assert first.ask("BLPOP", "signal", 1) is None
    assert second.ask("BLPOP", "signal", 0) is None
    assert first.ask("PING") is None
    pusher.ask("EVAL", "redis.call('LPUSH', KEYS[1], 'x') redis.call('PEXPIRE', KEYS[1], 1000)", 1, "signal")
    assert first.told() == [[b"signal", b"x"], b"PONG"]
    assert second.told() == []
    model.expire(NOW_US + 10**12)
    assert second.told() == []
    assert pusher.ask("EXISTS", "signal") == 0


def test_a_wait_ends_after_its_time(model: Model, one: Connection) -> None:
    one.ask("BLPOP", "signal", "0.05")
    model.expire(NOW_US + 50_999)
    assert one.told() == []
    model.expire(NOW_US + 51_000)
    assert one.told() == [None]


def test_two_models_and_edited_scripts_do_not_disturb_each_other() -> None:
    right, wrong = Connection(Model()), Connection(Model())
    right_sha = right.ask("SCRIPT", "LOAD", "local n = 1 redis.call('SET', 'key', n) return n")
    wrong_sha = wrong.ask("SCRIPT", "LOAD", "local n = 2 redis.call('SET', 'key', n) return n")
    assert (right.ask("EVALSHA", right_sha, 0), wrong.ask("EVALSHA", wrong_sha, 0)) == (1, 2)
    assert (right.ask("GET", "key"), wrong.ask("GET", "key")) == (b"1", b"2")
    assert str(right.ask("EVALSHA", wrong_sha, 0)).startswith("NOSCRIPT")


@pytest.mark.parametrize(
    ("script", "reply"),
    [
        ("return {1, 2.9, -2.9, 'x', false, true, {ok = 'fine'}, nil, 4}", [1, 2, -2, b"x", None, 1, b"fine"]),
        ("return 2^53 * 1000", 2**53 * 1000),
        ("return redis.call('GET', 'none')", None),
        ("return type(redis.call('GET', 'none'))", b"boolean"),
        ("return redis.call('SET', 'key', 1).ok", b"OK"),
        ("redis.call('SET', 'key', 10) return redis.call('GET', 'key')", b"10"),
        ("redis.call('SET', 'key', 0.1) return redis.call('GET', 'key')", b"0.1"),
        ("return redis.call('ZRANGE', 'none', 0, 0, 'WITHSCORES')[1] == nil", 1),
        ("return tostring(1800000000000000)", b"1.8e+15"),
        ("redis.call('SET', 'key', 1) return string.sub(redis.pcall('HGET', 'key', 'f').err, 1, 9)", b"WRONGTYPE"),
        ('return cjson.encode({at = 1.5, name = \'a/"\'}) == \'{"at":1.5,"name":"a\\\\/\\\\""}\'', 1),
        ('return cjson.decode(\'[["SET","1"]]\')', [[b"SET", b"1"]]),
    ],
)
def test_lua_and_replies(one: Connection, script: str, reply: Any) -> None:
    assert one.ask("EVAL", script, 0) == reply


@pytest.mark.parametrize("kind", DIALECTS)
def test_a_script_that_fails_says_where_and_leaves_what_it_has_done(kind: str) -> None:
    one = Connection(Model(DIALECTS[kind]))
    script = "redis.call('SET', 'first', 1)\nredis.call('HSET', 'first', 'a', 1)\nredis.call('SET', 'third', 1)"
    sha = hashlib.sha1(script.encode()).hexdigest()
    where = "on @user_script:2." if kind == "valkey" else f"{sha}, on @user_script:2."
    words = f"WRONGTYPE Operation against a key holding the wrong kind of value script: {where}"
    assert str(one.ask("EVAL", script, 0)) == words
    assert one.ask("EXISTS", "first", "third") == 1
    assert str(one.ask("EVAL", "return nothing", 0)).startswith(
        "ERR user_script:1: Script attempted to access nonexistent global variable 'nothing' script: "
    )


@pytest.mark.parametrize("refusal", [Refusal.OOM, Refusal.MISCONF, Refusal.READONLY, Refusal.NOREPLICAS])
def test_a_server_that_refuses_writes_does_so_at_the_first_one_of_a_script(model: Model, refusal: Refusal) -> None:
    one = Connection(model)
    one.ask("SET", "key", "before")
    model.refuses = refusal
    script = "local old = redis.call('GET', 'key') redis.call('SET', 'key', 'after') return old"
    assert str(one.ask("EVAL", script, 0)).startswith(f"{refusal} ")
    assert str(one.ask("SET", "key", "after")).startswith(f"{refusal} ")
    assert one.ask("EVAL", "return redis.call('GET', 'key')", 0) == b"before"
    model.refuses = None
    assert one.ask("EVAL", script, 0) == b"before"


def test_a_script_that_has_begun_to_write_goes_on_without_memory(model: Model, one: Connection) -> None:
    model.refuses = Refusal.OOM
    assert one.ask("EVAL", "redis.call('DEL', 'none') return redis.call('SET', 'key', 1)", 0) == b"OK"


def test_a_replica_hides_keys_whose_end_has_passed_and_removes_none(model: Model, one: Connection) -> None:
    one.ask("SET", LOCK, "id", "PX", 100)
    model.refuses = Refusal.READONLY
    assert one.ask("GET", LOCK, at_ms=101) is None
    model.expire(NOW_US + 101_000)
    assert LOCK in model.snapshot().values


def test_the_same_steps_give_the_same_bytes_under_any_hash_seed() -> None:
    program = (
        "import hashlib\n"
        "from tests.sim.conformance.episodes import Episode\n"
        "from tests.sim.conformance.modelled import ModelSide\n"
        "from tests.sim.redis import VALKEY_9\n"
        "side, seen = ModelSide(VALKEY_9), hashlib.sha256()\n"
        "episode = Episode('7', side)\n"
        "side.begin(episode.begin_us)\n"
        "for step in episode.steps():\n"
        "    if side.can_take(step):\n"
        "        found = side.take(step)\n"
        "        episode.last_reply = found.reply\n"
        "        seen.update(repr((found.reply, found.heard, found.keys)).encode())\n"
        "print(seen.hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(digests) == 1

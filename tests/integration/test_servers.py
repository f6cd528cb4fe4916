"""The servers and faults that other tests rely on do what they promise."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.connection import Connection
from redis.exceptions import AskError, MovedError, NoPermissionError
from redis.sentinel import Sentinel

from tests.harness import wait_until
from tests.proxy import Proxy, Way
from tests.servers.clock import ShiftedClockServer
from tests.servers.cluster import Cluster, ClusterNode
from tests.servers.fixtures import StartLockProcess, StartRedis
from tests.servers.kinds import KINDS, Kind, server_binary
from tests.servers.redis_server import RedisServer
from tests.servers.sentinel import SentinelGroup
from tests.servers.wire import ErrorReply, Wire

SILENCE_S = 0.1
NEAR_S = 0.2


def stays_silent(wire: Wire, *words: str) -> None:
    """Asserts that a request is not answered soon; what is answered later can still be heard."""
    wire.say(*words)
    with pytest.raises(TimeoutError):
        wire.hear(answer_wait_s=SILENCE_S)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_kind_runs_at_its_version_and_restarts_empty_on_its_port(kind: Kind, start_redis: StartRedis) -> None:
    server = start_redis(kind.name)
    assert server.version().startswith(kind.version)
    server.ask("SET", "key", "value")
    server.restart()
    assert server.ask("GET", "key") is None
    server.stop()
    assert server.process is None


def test_a_frozen_server_keeps_its_connections_and_answers_once_thawed(redis_server: RedisServer) -> None:
    with redis_server.connect() as wire:
        redis_server.freeze()
        stays_silent(wire, "PING")
        redis_server.thaw()
        assert wire.hear() == "PONG"


def test_the_tls_server_is_reached_by_its_url_and_by_nobody_who_does_not_know_its_authority(
    tls_server: RedisServer,
) -> None:
    with redis.Redis.from_url(tls_server.url) as client:
        assert client.ping()
    with pytest.raises(ssl.SSLCertVerificationError):
        Wire(tls_server.port, tls=ssl.create_default_context())
    with Wire(tls_server.port) as plain, pytest.raises(OSError, match=r"closed|reset"):
        plain.ask("PING")


def test_a_password_and_a_user_are_in_the_url_and_nobody_enters_without(
    password_server: RedisServer, acl_server: RedisServer
) -> None:
    for server in (password_server, acl_server):
        with redis.Redis.from_url(server.url) as client:
            assert client.set("lock:a", "value")
        with Wire(server.port) as stranger, pytest.raises(ErrorReply, match="NOAUTH"):
            stranger.ask("GET", "lock:a")
    with redis.Redis.from_url(acl_server.url) as client, pytest.raises(NoPermissionError):
        client.set("other", "value")


def test_a_servers_time_and_expiry_follow_the_clock_that_the_test_moves(
    shifted_clock_server: ShiftedClockServer,
) -> None:
    server = shifted_clock_server
    for offset_s in (-3600.0, 0.5, 0.0):
        server.shift_clock(offset_s=offset_s)
        asked_at_s = time.time()
        told_s = server.time_s() - offset_s
        assert asked_at_s - NEAR_S <= told_s <= time.time() + NEAR_S
    server.ask("SET", "key", "value", "PX", 60_000)
    server.shift_clock(offset_s=61)
    assert server.ask("GET", "key") is None


def test_sentinels_put_the_replica_in_a_killed_masters_place(sentinel_group: SentinelGroup) -> None:
    group = sentinel_group
    finder = Sentinel([("127.0.0.1", sentinel.port) for sentinel in group.sentinels])  # type: ignore[no-untyped-call]
    old = group.kill_master()
    port = group.wait_for_new_master(instead_of=old)
    assert port != old.port
    assert finder.discover_master(group.name)[1] == port  # type: ignore[no-untyped-call]
    group.data_node(port).ask("SET", "key", "value")
    for sentinel in finder.sentinels:
        sentinel.close()


def test_a_master_frozen_through_a_failover_becomes_a_replica_and_passwords_hold(tmp_path: Path) -> None:
    with SentinelGroup(server_binary("valkey"), tmp_path, password="data", sentinel_password="watch") as group:
        assert group.url.startswith("redis+sentinel://:data@127.0.0.1:")
        old = group.freeze_master()
        group.wait_for_new_master(instead_of=old)
        old.thaw()
        group.wait_for_replicas()
        assert old.ask("ROLE")[0] == "slave"
        with pytest.raises(ErrorReply, match="NOAUTH"), Wire(group.sentinels[0].port) as stranger:
            stranger.ask("SENTINEL", "MASTER", group.name)


def test_a_slot_on_its_way_is_answered_with_ask_and_then_with_moved(shared_lock_cluster: Cluster) -> None:
    cluster = shared_lock_cluster
    source = cluster.node_of("{slot}")
    target = cluster.other_master(source)
    source.ask("SET", "{slot}here", "value")
    slot = cluster.slot_of("{slot}")

    move = cluster.begin_move(slot, to=target)
    assert _asked(source, "GET", "{slot}here") == b"value"
    with pytest.raises(AskError) as asked:
        _asked(source, "GET", "{slot}new")
    assert asked.value.port == target.port

    move.move_keys()
    with pytest.raises(AskError):
        _asked(source, "GET", "{slot}here")
    with pytest.raises(MovedError):
        _asked(target, "GET", "{slot}here")

    move.finish()
    with pytest.raises(MovedError) as moved:
        _asked(source, "GET", "{slot}here")
    assert moved.value.port == target.port
    assert _asked(target, "GET", "{slot}here") == b"value"
    assert cluster.node_of("{slot}") is target


def test_a_replica_takes_over_from_a_killed_master_of_the_cluster(lock_cluster: Cluster) -> None:
    slot = lock_cluster.slot_of("key")
    lock_cluster.master_of(slot).ask("SET", "key", "value")
    lock_cluster.master_of(slot).ask("WAIT", 1, 5000)
    old = lock_cluster.kill_master_of(slot)
    new = lock_cluster.wait_for_takeover(slot, instead_of=old)
    assert new is not old
    assert new.ask("GET", "key") == "value"


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy) -> Iterator[Wire]:
    """A connection through the proxy."""
    with Wire(proxy.port) as wire:
        assert wire.ask("PING") == "PONG"
        yield wire


def test_held_requests_arrive_when_let_through(redis_server: RedisServer, proxy: Proxy, through: Wire) -> None:
    proxy.hold(Way.REQUESTS)
    stays_silent(through, "INCR", "count")
    assert redis_server.ask("GET", "count") is None
    proxy.let_through(Way.REQUESTS)
    assert through.hear() == 1


def test_a_held_request_arrives_although_its_client_is_gone(
    redis_server: RedisServer, proxy: Proxy, through: Wire
) -> None:
    with redis_server.connect() as waiter:
        proxy.hold(Way.REQUESTS)
        stays_silent(through, "LPUSH", "list", "late")
        through.close()
        proxy.let_through(Way.REQUESTS)
        assert waiter.ask("BLPOP", "list", 4) == ["list", "late"]


def test_held_replies_are_of_requests_done(redis_server: RedisServer, proxy: Proxy, through: Wire) -> None:
    proxy.hold(Way.REPLIES)
    stays_silent(through, "INCR", "count")
    wait_until(lambda: redis_server.ask("GET", "count") == "1")
    proxy.let_through(Way.REPLIES)
    assert through.hear() == 1


def test_swallowed_bytes_never_arrive_and_the_connection_lives(
    redis_server: RedisServer, proxy: Proxy, through: Wire
) -> None:
    proxy.swallow(Way.REQUESTS)
    stays_silent(through, "INCR", "count")
    proxy.let_through(Way.REQUESTS)
    assert through.ask("GET", "count") is None

    proxy.swallow(Way.REPLIES)
    stays_silent(through, "INCR", "count")
    wait_until(lambda: redis_server.ask("GET", "count") == "1")
    proxy.let_through(Way.REPLIES)
    assert through.ask("GET", "count") == "1"


@pytest.mark.parametrize("way", Way)
def test_a_delay_makes_one_way_longer_and_keeps_the_order(proxy: Proxy, way: Way) -> None:
    with Wire(proxy.port) as wire:
        proxy.delay(way, delay_s=0.1)
        began_s = time.monotonic()
        wire.say("INCR", "count")
        wire.say("INCR", "count")
        assert [wire.hear(), wire.hear()] == [1, 2]
        assert time.monotonic() - began_s >= 0.1
        proxy.delay(way, delay_s=0)
        assert wire.ask("INCR", "count") == 3


def test_an_eaten_reply_is_of_a_request_done_on_a_connection_that_stays_open(
    redis_server: RedisServer, proxy: Proxy, through: Wire
) -> None:
    proxy.eat_reply_once(at=b"INCR")
    assert through.ask("PING") == "PONG"
    stays_silent(through, "INCR", "count")
    assert proxy.reply_eaten.wait(5)
    stays_silent(through, "INCR", "count")
    wait_until(lambda: redis_server.ask("GET", "count") == "2")
    with Wire(proxy.port) as another:
        assert another.ask("INCR", "count") == 3


def test_lock_processes_tell_who_acquired_and_when_also_after_a_kill(
    redis_server: RedisServer, lock_process: StartLockProcess
) -> None:
    holder, waiter = lock_process(redis_server.url, instance_id="a"), lock_process(redis_server.url, instance_id="b")
    held = holder.acquire("lock-name", lease_ttl_s=0.5, keep_extended=True)
    first = holder.wait_for(held, "acquired")
    busy = waiter.acquire("lock-name", wait_s=0)
    assert waiter.wait_for(busy, "refused")["error"] == "LockBusy"

    waiting = waiter.hold("lock-name", lease_ttl_s=0.5)
    waiter.wait_for_emitted("Waiting", name="lock-name")
    holder.kill()
    second = waiter.wait_for(waiting, "acquired")
    assert second["fencing_token"] > first["fencing_token"]
    assert first["asked_at_s"] < first["at_s"] < second["at_s"] < time.monotonic()
    waiter.release(waiting)
    assert waiter.wait_for(waiting, "released")["still_ours"]


def test_a_frozen_holder_learns_of_its_loss_when_it_goes_on(
    redis_server: RedisServer, lock_process: StartLockProcess
) -> None:
    holder, waiter = lock_process(redis_server.url, instance_id="a"), lock_process(redis_server.url, instance_id="b")
    held = holder.hold("lock-name", lease_ttl_s=0.3)
    holder.wait_for(held, "acquired")
    holder.freeze()
    taken = waiter.wait_for(waiter.acquire("lock-name"), "acquired")
    holder.thaw()
    lost = holder.wait_for(held, "lost")
    assert lost["at_s"] > taken["at_s"]
    assert lost["reason"]


def test_a_cancelled_waiter_leaves_and_a_process_ends_with_its_input(
    redis_server: RedisServer, lock_process: StartLockProcess
) -> None:
    process = lock_process(redis_server.url)
    process.wait_for(process.acquire("lock-name"), "acquired")
    waiting = process.acquire("lock-name")
    process.cancel(waiting)
    assert process.wait_for(waiting, "cancelled")["name"] == "lock-name"
    process.leave()
    assert [event["event"] for event in process.events_of(waiting)] == ["cancelled"]


def _asked(node: ClusterNode, *words: str) -> object:
    """What redis-py makes of the node's answer, on a connection that follows nobody."""
    connection = Connection(host="127.0.0.1", port=node.port, socket_timeout=5, protocol=2)  # type: ignore[no-untyped-call]
    try:
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        return connection.read_response()
    finally:
        connection.disconnect()  # type: ignore[no-untyped-call]

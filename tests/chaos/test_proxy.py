"""The proxy against a real Valkey, on both kinds of event loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from tests.chaos.proxy import ChaosProxy, Way
from tests.conftest import ReportFigures
from tests.harness import PATIENCE_S, wait_until_async
from tests.servers.fixtures import StartRedis
from tests.servers.redis_server import RedisServer

Run = Callable[[Coroutine[Any, Any, None]], None]
SILENCE_S = 0.1
PINGS = 300


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scene on a loop of this kind."""

    def run_scene(scene: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(scene, PATIENCE_S))

    return run_scene


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, command: str) -> bytes:
        """The first line of the answer. Raises ConnectionError."""
        self.say(command)
        return await self.hear()

    def say(self, command: str) -> None:
        """Sends it."""
        self.writer.write(f"{command}\r\n".encode())

    async def hear(self) -> bytes:
        """The next line. Raises ConnectionError."""
        line = await self.reader.readline()
        if not line:
            raise ConnectionAbortedError("ended in order")
        return line.strip()

    async def hears_nothing(self) -> bool:
        """Whether there is silence for a while; asked before anything is heard."""
        try:
            async with asyncio.timeout(SILENCE_S):
                await self.reader.readexactly(1)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[ChaosProxy]:
    """A proxy, closed afterwards."""
    proxy = await ChaosProxy.start("127.0.0.1", port)
    try:
        yield proxy
    finally:
        await proxy.close()


@asynccontextmanager
async def client_of(proxy: ChaosProxy) -> AsyncIterator[Client]:
    """A client that has had its first answer."""
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    try:
        assert await client.ask("PING") == b"+PONG"
        yield client
    finally:
        client.writer.close()


@asynccontextmanager
async def proxied(server: RedisServer) -> AsyncIterator[tuple[ChaosProxy, Client]]:
    """A proxy to this server with one client."""
    async with proxy_to(server.port) as proxy, client_of(proxy) as client:
        yield proxy, client


def client_ports(server: RedisServer) -> set[int]:
    """The ports by which the server knows its clients, but the one that asks."""
    with server.connect() as wire:
        own_id = f"id={wire.ask('CLIENT', 'ID')}"
        lines = [line.split() for line in str(wire.ask("CLIENT", "LIST")).splitlines()]
    return {int(words[1].rpartition(":")[2]) for words in lines if words[0] != own_id}


async def in_thread(work: Callable[[], object]) -> object:
    """Blocking work beside the loop."""
    return await asyncio.to_thread(work)


def until(condition: Callable[[], object]) -> Awaitable[None]:
    """Waits for a blocking condition."""
    return wait_until_async(lambda: in_thread(condition))


def test_megabytes_arrive_as_they_were_sent(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        value = bytes(range(1, 256)).replace(b"\n", b"").replace(b"\r", b"") * 20_000
        async with proxied(redis_server) as (_, client):
            client.writer.write(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n%s\r\n" % (len(value), value))
            assert await client.hear() == b"+OK"
            assert await client.ask("GET big") == b"$%d" % len(value)
            assert await client.reader.readexactly(len(value)) == value

    run(scene())


def test_a_sender_waits_while_nobody_reads_and_then_everything_arrives(run: Run) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        payload = b"0123456789abcdef" * (1 << 21)  # more than the proxy and all buffers of the kernel keep
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            async with proxy_to(listener.getsockname()[1]) as proxy:
                with socket.socket() as client:
                    client.setblocking(False)
                    await loop.sock_connect(client, ("127.0.0.1", proxy.port))
                    server, _ = await loop.sock_accept(listener)
                    with server:
                        sending = loop.create_task(loop.sock_sendall(client, payload))
                        done, _ = await asyncio.wait({sending}, timeout=0.5)
                        assert not done
                        received = bytearray()
                        while len(received) < len(payload):
                            received += await loop.sock_recv(server, 1 << 20)
                        await sending
                        assert received == payload

    run(scene())


def test_a_delay_is_kept_each_way_and_keeps_the_order(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            for way in Way:
                proxy.delay(way, 0.05)
            begun_at_s = time.monotonic()
            for number in range(20):
                client.say(f"ECHO {number}")
                await asyncio.sleep(0.001)
            heard = [(await client.hear(), await client.hear())[1] for _ in range(20)]
            assert heard == [b"%d" % number for number in range(20)]
            assert time.monotonic() - begun_at_s > 0.1
            for way in Way:
                proxy.delay(way, 0.0)
            assert await client.ask("PING") == b"+PONG"

    run(scene())


def test_held_requests_do_not_reach_the_server_until_let_through(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            proxy.hold(Way.REQUESTS)
            client.say("SET key value")
            assert await client.hears_nothing()
            assert await in_thread(lambda: redis_server.ask("GET", "key")) is None
            proxy.let_through(Way.REQUESTS)
            assert await client.hear() == b"+OK"
            assert await in_thread(lambda: redis_server.ask("GET", "key")) == "value"

    run(scene())


def test_held_replies_are_of_requests_that_are_done(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            proxy.hold(Way.REPLIES)
            client.say("SET key value")
            await until(lambda: redis_server.ask("GET", "key") == "value")
            assert await client.hears_nothing()
            proxy.let_through(Way.REPLIES)
            assert await client.hear() == b"+OK"

    run(scene())


def test_the_end_of_a_connection_waits_behind_what_is_held(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            proxy.hold(Way.REQUESTS)
            client.say("SET key value")
            client.writer.close()
            await client.writer.wait_closed()
            await asyncio.sleep(SILENCE_S)
            assert await in_thread(lambda: client_ports(redis_server)) == set(proxy.upstream_ports())
            assert proxy.connection_count() == 1
            proxy.let_through(Way.REQUESTS)
            await until(lambda: not client_ports(redis_server))
            assert await in_thread(lambda: redis_server.ask("GET", "key")) == "value"
            await wait_until_async(lambda: asyncio.sleep(0, proxy.connection_count() == 0))

    run(scene())


def test_a_cut_resets_both_ends(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client), client_of(proxy) as other:
            assert proxy.cut() == 2
            for each in (client, other):
                with pytest.raises(ConnectionResetError):
                    await each.hear()
            await until(lambda: not client_ports(redis_server))
            assert (proxy.connection_count(), proxy.counts.cut) == (0, 2)
            async with client_of(proxy):
                assert proxy.connection_count() == 1

    run(scene())


def test_while_it_refuses_the_kernel_refuses_and_old_connections_live(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await client.ask("PING") == b"+PONG"
            proxy.accept()
            async with client_of(proxy) as other:
                assert await other.ask("PING") == b"+PONG"

    run(scene())


def test_a_lost_reply_is_of_a_request_that_is_done(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            lost = proxy.lose_reply_once(at=b"INCR")
            assert await client.ask("ECHO 1") == b"$1"
            assert await client.hear() == b"1"
            with pytest.raises(ConnectionResetError):
                await client.ask("INCR counter")
            await lost
            assert await in_thread(lambda: redis_server.ask("GET", "counter")) == "1"
            async with client_of(proxy) as other:
                assert await other.ask("INCR counter") == b":2"
            assert (proxy.counts.lost_replies, proxy.counts.lost_requests, proxy.counts.cut) == (1, 0, 1)

    run(scene())


def test_a_reply_is_lost_only_when_all_that_was_asked_before_is_answered(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            lost = proxy.lose_reply_once(at=b"INCR last")
            client.writer.write(b"INCR first\r\n" * 100)
            client.say("INCR last")
            await lost
            assert await in_thread(lambda: redis_server.ask("GET", "first")) == "100"
            assert await in_thread(lambda: redis_server.ask("GET", "last")) == "1"

    run(scene())


def test_a_lost_request_never_reaches_the_server(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            lost = proxy.lose_request_once(at=b"INCR")
            with pytest.raises(ConnectionResetError):
                await client.ask("INCR counter")
            await lost
            await until(lambda: not client_ports(redis_server))
            assert await in_thread(lambda: redis_server.ask("GET", "counter")) is None
            assert (proxy.counts.lost_replies, proxy.counts.lost_requests, proxy.counts.cut) == (0, 1, 1)

    run(scene())


def test_a_cancelled_trap_is_no_trap(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            proxy.lose_request_once(at=b"PING").cancel()
            assert await client.ask("PING") == b"+PONG"

    run(scene())


def test_new_connections_follow_where_it_points(run: Run, start_redis: StartRedis) -> None:
    here, there = start_redis(), start_redis()

    async def scene() -> None:
        async with proxied(here) as (proxy, client):
            proxy.point_at("127.0.0.1", there.port)
            async with client_of(proxy) as other:
                await client.ask("SET key here")
                await other.ask("SET key there")
            assert await in_thread(lambda: (here.ask("GET", "key"), there.ask("GET", "key"))) == ("here", "there")

    run(scene())


def test_the_server_knows_its_connections_by_their_upstream_ports(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, _), client_of(proxy):
            assert len(proxy.upstream_ports()) == 2
            assert await in_thread(lambda: client_ports(redis_server)) == set(proxy.upstream_ports())

    run(scene())


def test_a_client_is_reset_when_nobody_listens_behind(run: Run, redis_server: RedisServer) -> None:
    redis_server.kill()

    async def scene() -> None:
        async with proxy_to(redis_server.port) as proxy:
            with pytest.raises(ConnectionResetError):
                await Client(*await asyncio.open_connection("127.0.0.1", proxy.port)).ask("PING")
            assert (proxy.counts.refused, proxy.counts.connections) == (1, 0)

    run(scene())


def test_the_end_of_the_server_reaches_the_client(run: Run, redis_server: RedisServer) -> None:
    async def scene() -> None:
        async with proxied(redis_server) as (proxy, client):
            await in_thread(redis_server.kill)
            with pytest.raises(ConnectionError):
                await client.hear()
            client.writer.close()
            await wait_until_async(lambda: asyncio.sleep(0, proxy.connection_count() == 0))

    run(scene())


def test_what_a_round_trip_costs(redis_server: RedisServer, report_figures: ReportFigures) -> None:
    async def round_trips_ms(port: int) -> list[float]:
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        figures_ms = []
        for _ in range(PINGS):
            begun_at_s = time.perf_counter()
            await client.ask("PING")
            figures_ms.append((time.perf_counter() - begun_at_s) * 1000)
        client.writer.close()
        return figures_ms

    async def scene() -> None:
        async with proxy_to(redis_server.port) as proxy:
            report_figures("PING, direct", await round_trips_ms(redis_server.port))
            report_figures("PING through the proxy, same loop", await round_trips_ms(proxy.port))

    uvloop.run(scene())

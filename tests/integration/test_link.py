"""One connection for many callers: replies in order, one write a tick, and a connection that comes back by itself."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import hiredis
import pytest
import redis

from locks import LockStoreDown
from locks.address import Address
from locks.clock import SYSTEM
from locks.link import LONGEST_BACKOFF_S, Link
from tests.harness import PATIENCE_S, OwnRedis, wait_until_async
from tests.proxy import Cut, Proxy
from tests.servers.processes import unused_port

TRANSPORT_WRITE = "asyncio.selector_events._SelectorSocketTransport.write"


@asynccontextmanager
async def linked(url: str, *, command_timeout_s: float = PATIENCE_S) -> AsyncIterator[Link]:
    """A link that is up, or at least tries to be."""
    link = Link(Address.from_url(url), command_timeout_s=command_timeout_s, clock=SYSTEM)
    link.open()
    try:
        await link.up_within(5)
        yield link
    finally:
        await link.close()


@pytest.fixture
def proxied_url(own_redis: OwnRedis) -> Iterator[tuple[Proxy, str]]:
    with Proxy("127.0.0.1", own_redis.port) as proxy:
        yield proxy, f"redis://127.0.0.1:{proxy.port}/0"


async def test_every_caller_gets_its_own_reply(redis_url: str) -> None:
    async with linked(redis_url) as link:

        async def echo(number: int) -> None:
            for round_ in range(10):
                assert await link.call("ECHO", f"{number}/{round_}") == f"{number}/{round_}".encode()
                await asyncio.sleep(0)

        await asyncio.gather(*[echo(number) for number in range(100)])


@pytest.mark.parametrize("seed", range(5))
async def test_callers_who_are_cancelled_shift_nobodys_reply(redis_url: str, seed: int) -> None:
    choices = random.Random(seed)
    async with linked(redis_url) as link:

        async def echo(number: int) -> object:
            return await link.call("ECHO", number)

        tasks = []
        for number in range(500):
            tasks.append(asyncio.create_task(echo(number)))
            if choices.random() < 0.3:
                await asyncio.sleep(0)  # some go out with their neighbours, some before them
            if choices.random() < 0.5:
                choices.choice(tasks).cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)

    cancelled = [reply for reply in replies if isinstance(reply, asyncio.CancelledError)]
    assert 0 < len(cancelled) < len(replies)
    for number, reply in enumerate(replies):
        assert isinstance(reply, asyncio.CancelledError) or reply == str(number).encode()


async def test_the_commands_of_one_tick_leave_in_one_write(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(redis_url) as link:
        written: list[bytes] = []
        monkeypatch.setattr(TRANSPORT_WRITE, _recording(written))

        replies = await asyncio.gather(*[link.call("ECHO", number) for number in range(50)])
        assert await link.call("ECHO", "alone") == b"alone"

    assert replies == [str(number).encode() for number in range(50)]
    assert written == [
        b"".join(packed("ECHO", str(number)) for number in range(50)),
        packed("ECHO", "alone"),
    ]


async def test_an_error_reply_is_a_value_and_not_the_links_end(redis_url: str) -> None:
    async with linked(redis_url) as link:
        error, pong = await asyncio.gather(link.call("NO-SUCH-COMMAND"), link.call("PING"))

    assert isinstance(error, hiredis.ReplyError)
    assert pong == b"PONG"


async def test_a_large_reply_and_a_large_command_pass(redis_url: str) -> None:
    text = "x" * 3_000_000
    async with linked(redis_url) as link:
        assert await link.call("ECHO", text) == text.encode()


# Down, and up again


async def test_before_the_first_connection_every_call_fails_at_once() -> None:
    link = Link(Address.from_url(f"redis://127.0.0.1:{unused_port()}"), command_timeout_s=1, clock=SYSTEM)
    with pytest.raises(LockStoreDown):
        link.call("PING")
    link.open()
    assert not await link.up_within(0.05)
    assert not link.is_up
    await link.close()


async def test_it_connects_again_by_itself_when_the_server_comes_back(own_redis: OwnRedis) -> None:
    async with linked(own_redis.url) as link:
        in_flight = [link.call("BLPOP", f"nothing-{number}", 0) for number in range(3)]
        await link_has_sent(link)
        own_redis.kill()
        for outcome in await asyncio.gather(*in_flight, return_exceptions=True):
            assert isinstance(outcome, LockStoreDown)
        assert not link.is_up
        with pytest.raises(LockStoreDown):
            await link.call("PING")

        own_redis.start()

        assert await link.up_within(PATIENCE_S)
        assert await link.call("PING") == b"PONG"


async def test_a_killed_client_connects_again(own_redis: OwnRedis) -> None:
    async with linked(own_redis.url) as link:
        number = await link.call("CLIENT", "ID")
        with redis.Redis(port=own_redis.port) as client:
            client.client_kill_filter(_id=number)
        with pytest.raises(LockStoreDown):
            await link.call("BLPOP", "nothing", 0)

        assert await link.up_within(PATIENCE_S)
        assert await link.call("CLIENT", "ID") != number


async def test_a_reply_that_is_lost_fails_its_caller_and_nobody_later(proxied_url: tuple[Proxy, str]) -> None:
    proxy, url = proxied_url
    async with linked(url) as link:
        proxy.cut_once(Cut.AFTER_ANSWERED, at=b"INCR")
        with pytest.raises(LockStoreDown):
            await link.call("INCR", "counter")

        assert await link.up_within(PATIENCE_S)
        assert await link.call("GET", "counter") == b"1"


async def test_a_server_that_stops_answering_is_down_in_time_and_up_when_it_answers(own_redis: OwnRedis) -> None:
    async with linked(own_redis.url, command_timeout_s=0.2) as link:
        own_redis.signal(signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        called_at_s = loop.time()
        with pytest.raises(LockStoreDown, match="no answer"):
            await link.call("PING")
        assert 0.15 <= loop.time() - called_at_s < 10

        own_redis.signal(signal.SIGCONT)

        assert await link.up_within(PATIENCE_S)
        assert await link.call("PING") == b"PONG"


async def test_a_server_that_stops_answering_is_noticed_although_nobody_asks(own_redis: OwnRedis) -> None:
    lost = asyncio.Event()
    link = Link(Address.from_url(own_redis.url), command_timeout_s=0.1, clock=SYSTEM, on_lost=lambda reason: lost.set())
    link.open()
    assert await link.up_within(5)

    own_redis.signal(signal.SIGSTOP)

    await asyncio.wait_for(lost.wait(), PATIENCE_S)
    own_redis.signal(signal.SIGCONT)
    await link.close()


async def test_after_a_quiet_time_a_slow_answer_still_has_its_whole_time(own_redis: OwnRedis) -> None:
    async with linked(own_redis.url, command_timeout_s=0.8) as link:
        with redis.Redis(port=own_redis.port) as client:
            # Quiet for six looks of 0.2 s; the eighth would send a sign of life.
            await asyncio.sleep(1.3)
            client.client_pause(300, all=True)

            assert await link.call("PING") == b"PONG"


async def test_a_wait_for_a_connection_that_went_long_ago_says_no_at_once() -> None:
    link = Link(Address.from_url(f"redis://127.0.0.1:{unused_port()}"), command_timeout_s=1, clock=SYSTEM)
    link.open()
    wait_s = 1.5
    assert not await link.up_within(wait_s)
    loop = asyncio.get_running_loop()
    asked_at_s = loop.time()

    assert not await link.up_within(wait_s)

    assert loop.time() - asked_at_s < wait_s
    await link.close()


@contextmanager
def talking(says: bytes) -> Iterator[int]:
    """A server's port; it says this to its first client, and listens to nobody."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def talk() -> None:
            with closing(listener.accept()[0]) as client:
                client.sendall(says)
                client.recv(1000)

        talker = threading.Thread(target=talk)
        talker.start()
        yield listener.getsockname()[1]
        talker.join()


async def test_a_server_of_another_kind_is_down() -> None:
    with talking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        link = Link(Address.from_url(f"redis://127.0.0.1:{port}"), command_timeout_s=1, clock=SYSTEM)
        link.open()
        assert not await link.up_within(0.3)
        assert "not a Redis server" in link.last_error
        await link.close()


@pytest.mark.parametrize("says", [b"-ERR max number of clients reached\r\n", b"+PONG\r\n"])
async def test_a_server_that_answers_what_it_was_not_asked_is_down(says: bytes) -> None:
    failed: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    with talking(100 * says) as port:
        link = Link(Address.from_url(f"redis://127.0.0.1:{port}"), command_timeout_s=1, clock=SYSTEM)
        link.open()
        assert not await link.up_within(0.3)
        assert re.search("unasked|max number of clients", link.last_error)
        await link.close()
    assert failed == []


async def test_a_server_that_takes_connections_and_is_the_wrong_one_is_not_asked_without_a_pause(
    own_redis: OwnRedis,
) -> None:
    enough, ups, loop = asyncio.Event(), 0, asyncio.get_running_loop()

    def came_up() -> None:
        nonlocal ups
        ups += 1
        if ups == 12:
            enough.set()
        link.drop("it is the wrong one")

    link = Link(Address.from_url(own_redis.url), command_timeout_s=PATIENCE_S, clock=SYSTEM, on_up=came_up)
    begun_at_s = loop.time()
    link.open()
    await asyncio.wait_for(enough.wait(), PATIENCE_S)
    await link.close()
    assert loop.time() - begun_at_s > 2 * LONGEST_BACKOFF_S


# Closing


async def test_a_close_while_it_is_found_out_whether_the_server_has_moved_leaves_no_connection(
    own_redis: OwnRedis,
) -> None:
    asked = asyncio.Event()

    async def has_moved(address: Address) -> bool:
        asked.set()
        await asyncio.sleep(PATIENCE_S)
        return False

    async def locate() -> Address:
        return address

    address = Address.from_url(own_redis.url)
    link = Link(address, command_timeout_s=PATIENCE_S, clock=SYSTEM, locate=locate, has_moved=has_moved)
    with redis.Redis(port=own_redis.port) as client:
        link.open()
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        assert len(client.client_list()) == 2
        await link.close()
        await wait_until_async(_only(client), what="a closed connection")


async def test_what_was_sent_before_the_close_still_arrives(own_redis: OwnRedis) -> None:
    async with linked(own_redis.url) as link:
        link.call("SET", "said", "goodbye")
    with redis.Redis(port=own_redis.port) as client:
        assert client.get("said") == b"goodbye"


async def test_a_close_fails_those_who_still_wait_for_a_reply(redis_url: str) -> None:
    async with linked(redis_url) as link:
        reply = link.call("BLPOP", "a list that nobody fills", 0)
        await link_has_sent(link)
    done, _ = await asyncio.wait([reply], timeout=5)
    assert done, "a caller was left waiting for ever"
    with pytest.raises(LockStoreDown, match="closed"):
        await reply
    assert not link.is_up
    with pytest.raises(LockStoreDown):
        await link.call("PING")


async def test_a_close_leaves_no_timer_behind(redis_url: str) -> None:
    loop = asyncio.get_running_loop()
    async with linked(redis_url, command_timeout_s=0.1) as link:
        assert await link.call("PING") == b"PONG"
    await asyncio.sleep(0)
    pending = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert [handle for handle in pending if "_look" in repr(handle)] == []


async def test_a_close_before_the_first_connection_is_harmless() -> None:
    link = Link(Address.from_url(f"redis://127.0.0.1:{unused_port()}"), command_timeout_s=1, clock=SYSTEM)
    link.open()
    await link.close()
    await link.close()


# Addresses


@pytest.mark.parametrize(
    ("url", "host", "port", "database", "credentials"),
    [
        ("redis://localhost", "localhost", 6379, 0, ()),
        ("redis://cache:7000/5", "cache", 7000, 5, ()),
        ("redis://:pass%40word@cache", "cache", 6379, 0, ("pass@word",)),
        ("redis://user:word@cache:1/2", "cache", 1, 2, ("user", "word")),
        ("redis://[::1]:7000", "::1", 7000, 0, ()),
    ],
)
def test_an_address_is_read(url: str, host: str, port: int, database: int, credentials: tuple[str, ...]) -> None:
    address = Address.from_url(url)

    assert (address.host, address.port, address.database, address.credentials) == (host, port, database, credentials)
    assert address.tls is None


def test_a_secure_address_is_checked_unless_it_says_otherwise() -> None:
    checked, trusting = Address.from_url("rediss://cache"), Address.from_url("rediss://cache?ssl_cert_reqs=none")

    assert checked.tls is not None
    assert checked.tls.context().check_hostname
    assert trusting.tls is not None
    assert not trusting.tls.context().check_hostname


@pytest.mark.parametrize("url", ["http://cache", "cache:6379", "redis+sentinel://h:1/s", "unix:///tmp/redis.sock", ""])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        Address.from_url(url)


def test_an_address_shows_no_password() -> None:
    assert "hunter2" not in repr(Address.from_url("redis://user:hunter2@cache"))


# Helpers


async def link_has_sent(link: Link) -> None:
    """Once this tick's commands are out."""
    await asyncio.sleep(0.05)


def _only(client: redis.Redis) -> Callable[[], Coroutine[object, object, bool]]:
    async def is_alone() -> bool:
        return len(client.client_list()) == 1

    return is_alone


def packed(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def _recording(written: list[bytes]) -> object:
    from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]

    write = _SelectorSocketTransport.write

    def recording_write(self: asyncio.WriteTransport, data: bytes) -> None:
        written.append(bytes(data))
        write(self, data)

    return recording_write


@pytest.mark.parametrize("sentinels_answer", [True, False])
async def test_a_server_that_was_replaced_while_it_was_greeted_is_not_used(
    redis_url: str, sentinels_answer: bool
) -> None:
    """It stood still, and has answered at last: then whoever located it is asked once more."""
    asked = 0
    asked_when_up: list[int] = []

    async def locate() -> Address:
        return Address.from_url(redis_url)

    async def has_moved(address: Address) -> bool:
        nonlocal asked
        asked += 1
        if not sentinels_answer:
            raise LockStoreDown("no Sentinel answers")
        return asked == 1

    link = Link(
        Address.from_url(redis_url),
        command_timeout_s=PATIENCE_S,
        clock=SYSTEM,
        locate=locate,
        has_moved=has_moved,
        on_up=lambda: asked_when_up.append(asked),
    )
    link.open()
    try:
        assert await link.up_within(PATIENCE_S)
        assert asked_when_up == [2 if sentinels_answer else 1]
    finally:
        await link.close()

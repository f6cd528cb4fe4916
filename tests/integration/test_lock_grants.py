"""A grant is its lease id and its fencing token: no late message or command is taken for one of the grant of now."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, Literal, cast

import hiredis
import pytest

from locks import LeaseLost, Locker, LockStoreDown, LossReason
from locks.address import Address, place_of
from locks.events import Lost
from locks.keys import packed_keys
from locks.node import Node
from locks.store import QueueLimits, Scripts
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_contract import answered
from tests.integration.lock_faults import LONG_MS, stand
from tests.integration.test_locker import Heard, Keys, locking
from tests.proxy import Proxy, Way

LONG_S = 60.0
ID, OTHER_ID = "a" * 32, "b" * 32


@pytest.fixture
def keys(redis_url: str, name: str) -> Iterator[Keys]:
    keys = Keys(redis_url, name)
    yield keys
    keys.client.close()


class Commands:
    """The scripts as an old connection would carry them out late: straight to the server, past every Locker."""

    def __init__(self, keys: Keys) -> None:
        self.scripts = Scripts(QueueLimits(), holder="i\th\t1")
        self.node = cast(Node, SimpleNamespace(channel="lock-wake:nobody:0000"))
        self.keys, self._client = packed_keys(keys.name), cast(Any, keys.client)
        for command in self.scripts.greeting:
            self._client.execute_command(*command)

    def run(self, command: str) -> Any:
        """The answer to a packed command."""
        reader = hiredis.Reader(encoding="utf-8")
        reader.feed(command.encode())
        return self._client.execute_command(*reader.gets())

    def acquire(self, lease_id: str, *, lease_ms: int) -> int:
        """The token of a look that gets the lock."""
        look = self.scripts.acquire_or_queue(
            self.node,
            self.keys,
            lease_id,
            lease_ms=lease_ms,
            seen_fence=0,
            age_us=0,
            later="",
            waiter_count=1,
            stood=False,
            for_whom="",
        )
        fencing_token = self.run(look)
        assert isinstance(fencing_token, int)
        return fencing_token

    def release(self, lease_id: str, *, grant_fence: int) -> Any:
        command = self.scripts.release(
            self.node, self.keys, lease_id, grant_fence=grant_fence, fencing_token=grant_fence
        )
        return self.run(command)

    def extend(self, lease_id: str, *, fencing_token: int, lease_ms: int) -> Any:
        command = self.scripts.extend(
            self.keys, lease_id, grant_fence=fencing_token, lease_ms=lease_ms, fencing_token=fencing_token
        )
        return self.run(command)


@pytest.fixture
def commands(keys: Keys) -> Commands:
    return Commands(keys)


def granted_again(keys: Keys, commands: Commands, lease_id: str) -> int:
    """The lock was lost, another had it meanwhile, and an old acquire takes it under the same id; the new token."""
    keys.client.delete(keys.lock)
    commands.release(OTHER_ID, grant_fence=commands.acquire(OTHER_ID, lease_ms=LONG_MS))
    return commands.acquire(lease_id, lease_ms=LONG_MS)


class LateMessages:
    """A locker's message connection, from which nothing is read until it is let through."""

    def __init__(self, locker: Locker) -> None:
        (node,) = locker._servers.nodes()
        wire = node.messages._wire
        assert wire is not None
        assert wire._on_message is not None
        self._wire, self._read = wire, wire._on_message
        self.waiting: list[tuple[bytes, Any]] = []
        wire._on_message = lambda channel, payload: self.waiting.append((channel, payload))

    def has(self, word: bytes) -> bool:
        return any(isinstance(payload, bytes) and payload.startswith(word) for _, payload in self.waiting)

    def let_through(self) -> None:
        self._wire._on_message = self._read
        for channel, payload in self.waiting:
            self._read(channel, payload)


async def test_a_granted_message_that_is_late_begins_no_body_beside_another(
    redis_url: str, name: str, keys: Keys
) -> None:
    """Its claim has ended, its process stands in line again, and another has the lock."""
    inside: list[str] = []
    beside: list[list[str]] = []
    may_end = asyncio.Event()
    async with (
        locking(redis_url) as holder,
        locking(redis_url) as late,
        locking(redis_url) as other,
    ):

        async def body(locker: Locker, who: str, lease_ttl_s: float) -> int:
            async with locker.hold(name, lease_ttl_s=lease_ttl_s) as lease:
                inside.append(who)
                beside.append(list(inside))
                if who == "other":
                    await may_end.wait()
                inside.remove(who)
                return lease.fencing_token

        messages = LateMessages(late)
        lease = await holder.acquire(name, lease_ttl_s=LONG_S)
        waiting = asyncio.create_task(body(late, "late", 1.0))
        await stand(keys, 1)
        others = asyncio.create_task(body(other, "other", LONG_S))
        await stand(keys, 2)
        await lease.release()
        await wait_until_async(_true(lambda: messages.has(b"granted")), what="a handoff that is not heard of")
        await wait_until_async(_true(lambda: inside == ["other"]), what="the other's turn, when the claim is over")
        await stand(keys, 1)
        await answered(late, name)
        messages.let_through()
        await answered(late, name)
        await stand(keys, 1)
        may_end.set()
        tokens = await asyncio.wait_for(asyncio.gather(waiting, others), PATIENCE_S)
    assert beside == [["other"], ["late"]]
    assert tokens[0] > tokens[1] > lease.fencing_token


@pytest.mark.parametrize("ask", ["extend", "finish", "release"])
async def test_a_lease_is_over_where_the_lock_was_taken_again_under_its_id(
    redis_url: str, name: str, keys: Keys, commands: Commands, ask: str
) -> None:
    heard = Heard()
    async with locking(redis_url, heard=heard) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LONG_S)
        assert granted_again(keys, commands, lease.lease_id) > lease.fencing_token
        if ask == "extend":
            with pytest.raises(LeaseLost) as caught:
                await lease.extend(LONG_S)
            assert caught.value.reason is LossReason.TAKEN
        elif ask == "release":
            assert not await lease.release()
        else:
            lease.finish()
        await keys.gone()  # what an old command took is nobody's, and is given back


async def test_a_handoff_to_the_id_of_a_held_lease_tells_its_holder_that_it_was_over(
    redis_url: str, name: str, keys: Keys, commands: Commands
) -> None:
    async with locking(redis_url) as locker:
        async with locker.hold(name, lease_ttl_s=LONG_S) as first:
            pass
        with pytest.raises(LeaseLost) as caught:  # noqa: PT012
            async with locker.hold(name, lease_ttl_s=LONG_S) as lease:
                (node,) = locker._servers.nodes()
                keys.client.publish(node.channel, f"granted {lease.lease_id} {lease.fencing_token} 1 {name}")
                keys.client.publish(node.channel, f"granted {first.lease_id} {first.fencing_token} 1 {name}")
                await lease.extend(LONG_S)  # its own grant, and one of before, told of once more: nothing
                later = granted_again(keys, commands, lease.lease_id)
                keys.client.publish(node.channel, f"granted {lease.lease_id} {later} 1 {name}")
                await asyncio.sleep(PATIENCE_S)
        assert caught.value.reason is LossReason.TAKEN
        await keys.gone()


def test_a_turn_of_an_older_grant_of_the_same_id_changes_nothing(keys: Keys, commands: Commands) -> None:
    first = commands.acquire(ID, lease_ms=LONG_MS)
    later = granted_again(keys, commands, ID)
    scripts, node, packed = commands.scripts, commands.node, commands.keys
    turn = scripts.turn(
        node, packed, ID, next_lease_id=OTHER_ID, lease_ms=LONG_MS, last_fence=first, turns_left=0, for_whom=""
    )
    adopt = scripts.adopt(
        node, packed, ID, new_id=OTHER_ID, fencing_token=first, grant_fence=first, lease_ms=LONG_MS, for_whom=""
    )
    assert [commands.run(command) for command in (turn, adopt)] == ["taken", "taken"]
    assert commands.run(scripts.finish(packed, ID, grant_fence=first, fencing_token=first)) == 0
    assert commands.release(ID, grant_fence=first) == 0
    assert (keys.holder(), keys.fence()) == (ID, later)
    assert commands.release(ID, grant_fence=later) == 1


def test_what_is_carried_out_late_takes_no_time_away(keys: Keys, commands: Commands) -> None:
    token = commands.acquire(ID, lease_ms=LONG_MS)
    commands.acquire(ID, lease_ms=300)
    commands.extend(ID, fencing_token=token, lease_ms=300)
    assert keys.client.pttl(keys.lock) > LONG_MS / 2
    commands.extend(ID, fencing_token=token, lease_ms=2 * LONG_MS)
    assert keys.client.pttl(keys.lock) > LONG_MS


SHORT_S = 1.0


class Leaving:
    """Two wait in one process: the first, for a short lease, leaves at a certain moment; the second gets the lock."""

    def __init__(self, locker: Locker, keys: Keys) -> None:
        self._locker, self._keys = locker, keys
        self.begun = asyncio.Event()

    async def join(self, *, stands: bool = True) -> None:
        self.first = asyncio.create_task(self._hold(SHORT_S))
        await stand(self._keys, 1 if stands else 0)
        self.second = asyncio.create_task(self._hold(LONG_S))
        await wait_until_async(_true(lambda: self._locker.waiter_count == 2), what="two who wait")
        await answered(self._locker, self._keys.name)

    async def _hold(self, lease_ttl_s: float) -> None:
        async with self._locker.hold(self._keys.name, lease_ttl_s=lease_ttl_s) as lease:
            self.in_redis_ms = int(self._keys.client.pttl(self._keys.lock))
            self.remaining_s = lease.remaining_s()
            self.begun.set()
            await asyncio.sleep(0)

    async def check(self) -> None:
        """The second has had no lease that is longer than what the server gave."""
        await asyncio.wait_for(self.second, PATIENCE_S)
        assert self.first.cancelled()
        assert 1000 * self.remaining_s <= self.in_redis_ms
        await self._keys.gone()


async def test_a_lease_that_another_asked_for_who_has_left_is_not_taken_for_a_longer_one(
    redis_url: str, keys: Keys
) -> None:
    async with locking(redis_url) as locker:
        leaving = Leaving(locker, keys)
        keys.client.set(keys.lock, "another", px=LONG_MS)
        await leaving.join()
        line = locker._lines.by_name[keys.name]
        keys.client.delete(keys.lock)
        async with asyncio.timeout(PATIENCE_S):
            while line.asked is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        leaving.first.cancel()
        await leaving.check()


async def test_nor_is_one_that_a_release_of_the_same_process_has_brought(
    redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("locks.line.LAZY_S", LONG_S)  # nobody asks before the release brings the lock
    async with locking(redis_url) as locker:
        leaving = Leaving(locker, keys)
        lease = await locker.acquire(keys.name, lease_ttl_s=LONG_S)
        await leaving.join(stands=False)
        releasing = asyncio.create_task(lease.release())
        await asyncio.sleep(0)  # it is on its way
        leaving.first.cancel()
        assert await releasing
        await leaving.check()


async def test_nor_is_the_claim_of_a_handoff(redis_url: str, keys: Keys) -> None:
    with Proxy(*_place(redis_url)) as proxy:
        through = redis_url.replace(f":{_place(redis_url)[1]}", f":{proxy.port}")
        async with (
            locking(redis_url, claim_ms=5000) as other,
            locking(through, alive_ms=LONG_MS, claim_ms=5000) as locker,
        ):
            leaving = Leaving(locker, keys)
            lease = await other.acquire(keys.name, lease_ttl_s=LONG_S)
            await leaving.join()
            proxy.hold(Way.REQUESTS)  # the server does not hear that the first has left, nor is any claim confirmed
            leaving.first.cancel()
            await lease.release()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.begun.wait(), SHORT_S)
            proxy.let_through(Way.REQUESTS)
            await leaving.check()


async def test_nor_is_a_turn_that_follows_one_with_a_shorter_lease(redis_url: str, keys: Keys) -> None:
    with Proxy(*_place(redis_url)) as proxy:
        through = redis_url.replace(f":{_place(redis_url)[1]}", f":{proxy.port}")
        async with locking(through, run_ms=5000) as locker:
            before = await locker.acquire(keys.name, lease_ttl_s=LONG_S)
            waiting = []
            for lease_ttl_s in (LONG_S, SHORT_S, LONG_S):
                waiting.append(asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=lease_ttl_s)))
                await wait_until_async(_true(lambda: locker.waiter_count == len(waiting)), what="one more who waits")
            await before.release()
            await (await waiting[0]).release()
            short = await waiting[1]
            await short.extend(SHORT_S)  # the server knows by now whose turn it is
            proxy.hold(Way.REQUESTS)
            releasing = asyncio.create_task(short.release())
            last = await waiting[2]
            in_redis_ms = int(cast(Any, keys.client).pttl(keys.lock))
            assert 1000 * last.remaining_s() <= in_redis_ms
            proxy.let_through(Way.REQUESTS)
            assert await releasing
            assert await last.release()


async def test_a_lease_that_redis_keeps_for_longer_than_its_holder_counts_is_given_back_at_its_end(
    redis_url: str, keys: Keys
) -> None:
    async with locking(redis_url) as locker:
        lease = await locker.acquire(keys.name, lease_ttl_s=LONG_S)
        await lease.extend(0.3)
        await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)
        await keys.gone()

        keys.client.set(keys.lock, "another", px=LONG_MS)
        first = asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=LONG_S))
        await stand(keys, 1)
        second = asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=0.3))
        await wait_until_async(_true(lambda: locker.waiter_count == 2), what="two who wait")
        line = locker._lines.by_name[keys.name]
        await answered(locker, keys.name)
        keys.client.delete(keys.lock)
        async with asyncio.timeout(PATIENCE_S):
            while line.asked is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        first.cancel()
        lease = await asyncio.wait_for(second, PATIENCE_S)
        await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)
        await keys.gone()


@pytest.mark.parametrize("end", ["extend", "release", "finish"])
async def test_a_turn_of_which_the_server_never_heard_is_held_and_given_back_all_the_same(
    redis_url: str, keys: Keys, end: str
) -> None:
    with Proxy(*_place(redis_url)) as proxy:
        through = redis_url.replace(f":{_place(redis_url)[1]}", f":{proxy.port}")
        async with locking(through, command_timeout_s=0.5) as locker:
            before = await locker.acquire(keys.name, lease_ttl_s=LONG_S)
            waiting = []
            for _ in range(2):
                waiting.append(asyncio.create_task(locker.acquire(keys.name, lease_ttl_s=LONG_S)))
                await wait_until_async(_true(lambda: locker.waiter_count == len(waiting)), what="one more who waits")
            await before.release()
            first = await waiting[0]
            proxy.swallow(Way.REQUESTS)
            assert await first.release()  # passes the lock on here, and says so to nobody
            second = await waiting[1]
            holder = keys.holder()
            (node,) = locker._servers.nodes()
            await wait_until_async(_true(lambda: not node.commands.is_up), what="a connection that is given up")
            await asyncio.sleep(1.0)  # telling it again is given up, too
            proxy.go_away()
            proxy.let_through(Way.REQUESTS)
            proxy.come_back()
            assert await locker.up_within(PATIENCE_S)
            assert keys.holder() == holder != second.lease_id
            if end == "extend":
                await second.extend(LONG_S)
                assert not second.is_lost
            if end == "finish":
                second.finish()
            else:
                assert await second.release()
            await keys.gone()


async def test_a_body_does_not_begin_under_a_lease_that_was_forced_in_the_moment_of_the_handoff(
    redis_url: str, keys: Keys
) -> None:
    bodies = 0
    async with locking(redis_url) as other, locking(redis_url) as locker:

        async def body() -> None:
            nonlocal bodies
            async with locker.hold(keys.name, lease_ttl_s=LONG_S):
                bodies += 1
                await asyncio.sleep(PATIENCE_S)

        messages = LateMessages(locker)
        lease = await other.acquire(keys.name, lease_ttl_s=LONG_S)
        waiting = asyncio.create_task(body())
        await stand(keys, 1)
        await answered(locker, keys.name)
        await lease.release()
        await wait_until_async(_true(lambda: messages.has(b"granted")), what="a handoff that is not heard of")
        assert await other.force_release(keys.name, fencing_token=keys.fence())
        await wait_until_async(_true(lambda: messages.has(b"forced")), what="the end that is not heard of")
        messages.let_through()
        with pytest.raises(LeaseLost) as caught:
            await asyncio.wait_for(waiting, PATIENCE_S)
        assert (bodies, caught.value.reason) == (0, LossReason.FORCED)


class Unread:
    """A connection of a locker, from which nothing is read until it is let through."""

    def __init__(self, locker: Locker, connection: Literal["commands", "messages"]) -> None:
        (node,) = locker._servers.nodes()
        wire = getattr(node, connection)._wire
        assert wire is not None
        transport = wire._transport
        assert transport is not None
        self._transport = transport
        transport.pause_reading()

    def let_through(self) -> None:
        self._transport.resume_reading()


async def forced_unheard(locker: Locker, keys: Keys, *, by: Locker) -> int:
    """The lock is ended by force, which the locker hears of before the answer that gave it; the token."""
    messages, token = LateMessages(locker), keys.fence()
    assert await by.force_release(keys.name, fencing_token=token)
    await wait_until_async(_true(lambda: messages.has(b"forced")), what="the end of what nobody has heard of")
    messages.let_through()
    return token


@pytest.mark.parametrize("wait_s", [None, 0.0], ids=["patient", "at once"])
async def test_a_lease_that_was_forced_before_it_was_heard_of_begins_no_body(
    redis_url: str, keys: Keys, wait_s: float | None
) -> None:
    bodies = 0
    async with locking(redis_url) as other, locking(redis_url) as locker:

        async def body() -> None:
            nonlocal bodies
            async with locker.hold(keys.name, lease_ttl_s=LONG_S, wait_s=wait_s):
                bodies += 1
                await asyncio.sleep(PATIENCE_S)

        await locker.inspect(keys.name)
        answers = Unread(locker, "commands")
        asking = asyncio.create_task(body())
        await wait_until_async(_true(lambda: keys.holder() is not None), what="a grant that is not heard of")
        await forced_unheard(locker, keys, by=other)
        answers.let_through()
        with pytest.raises(LeaseLost) as caught:
            await asyncio.wait_for(asking, PATIENCE_S)
        assert (bodies, caught.value.reason) == (0, LossReason.FORCED)


async def test_force_that_ended_an_earlier_grant_under_a_leases_id_ends_no_later_one(
    redis_url: str, keys: Keys
) -> None:
    """Its process had looked again before it heard of the force, and has the lock once more."""
    async with locking(redis_url) as locker:
        lease = await locker.acquire(keys.name, lease_ttl_s=LONG_S)
        told = f"forced {lease.lease_id} {keys.name} "
        locker._on_message(f"{told}{lease.fencing_token - 1}".encode())
        assert not lease.is_lost
        locker._on_message(f"{told}{lease.fencing_token}".encode())
        assert lease.loss_reason is LossReason.FORCED


async def test_a_waiter_does_not_begin_under_what_was_forced_before_it_was_heard_of(redis_url: str, keys: Keys) -> None:
    """Whoever forces has looked: it is the waiter's lease that is ended, and the waiter asks again."""
    async with locking(redis_url) as other, locking(redis_url) as locker:

        async def body() -> int:
            async with locker.hold(keys.name, lease_ttl_s=LONG_S) as lease:
                return lease.fencing_token

        first = await locker.acquire(keys.name, lease_ttl_s=LONG_S)
        waiting = asyncio.create_task(body())
        await stand(keys, 1)
        await answered(locker, keys.name)
        answers = Unread(locker, "commands")
        releasing = asyncio.create_task(first.release())
        await wait_until_async(_true(lambda: keys.fence() > first.fencing_token), what="a handoff that is not heard of")
        forced = await forced_unheard(locker, keys, by=other)
        answers.let_through()
        assert await releasing
        assert await asyncio.wait_for(waiting, PATIENCE_S) > forced
        await keys.gone()


@pytest.mark.parametrize("connection", ["commands", "messages"])
async def test_nobody_begins_while_the_connections_are_being_closed(
    redis_url: str, keys: Keys, connection: Literal["commands", "messages"]
) -> None:
    """What was granted is heard of too late: whoever closes has left the line, and given it back."""
    bodies = 0
    async with locking(redis_url) as other, locking(redis_url) as locker:

        async def body() -> None:
            nonlocal bodies
            async with locker.hold(keys.name, lease_ttl_s=LONG_S):
                bodies += 1
                await asyncio.sleep(PATIENCE_S)

        await locker.inspect(keys.name)
        held = await other.acquire(keys.name, lease_ttl_s=LONG_S)
        if connection == "commands":
            await held.release()
            unread = Unread(locker, connection)
            waiting = asyncio.create_task(body())
            await wait_until_async(_true(lambda: keys.fence() > held.fencing_token), what="a grant")
        else:
            waiting = asyncio.create_task(body())
            await stand(keys, 1)
            await answered(locker, keys.name)
            unread = Unread(locker, connection)
            await held.release()
        unread.let_through()
        await locker.close()
        with pytest.raises(LockStoreDown):
            await asyncio.wait_for(waiting, PATIENCE_S)
        assert bodies == 0
        await keys.gone()


async def test_a_cancelled_adoption_takes_nothing_from_who_adopts_elsewhere(redis_url: str, keys: Keys) -> None:
    with Proxy(*_place(redis_url)) as proxy:
        through = redis_url.replace(f":{_place(redis_url)[1]}", f":{proxy.port}")
        async with locking(redis_url) as here, locking(through) as slow:
            text = (await here.acquire(keys.name, lease_ttl_s=LONG_S)).export()
            proxy.hold(Way.REQUESTS)
            adopting = asyncio.create_task(slow.adopt(text))
            await asyncio.sleep(0.01)
            adopting.cancel()
            await asyncio.wait([adopting])
            lease = await here.adopt(text)
            proxy.let_through(Way.REQUESTS)
            await slow.inspect(keys.name)  # answered after all that it has asked for
            await lease.extend(LONG_S)
            assert await lease.release()


async def test_a_loss_that_is_found_when_the_body_is_over_cancels_nobody(redis_url: str, keys: Keys) -> None:
    """The body has kept its loop from looking for longer than the lease of its claim."""
    async with locking(redis_url) as other, locking(redis_url) as locker:
        lease = await other.acquire(keys.name, lease_ttl_s=LONG_S)

        async def body() -> None:
            async with locker.hold(keys.name, lease_ttl_s=0.3):
                time.sleep(0.6)  # noqa: ASYNC251

        ending = asyncio.create_task(_outcome(body()))
        await stand(keys, 1)
        await lease.release()
        assert await asyncio.wait_for(ending, PATIENCE_S) == "lost"


async def test_nor_does_one_that_is_found_while_the_leases_of_a_body_that_is_over_are_released(
    redis_url: str, keys: Keys
) -> None:
    with Proxy(*_place(redis_url)) as proxy:
        through = redis_url.replace(f":{_place(redis_url)[1]}", f":{proxy.port}")
        heard = Heard()
        async with locking(through, heard=heard) as locker:

            async def body() -> None:
                async with locker.hold_many([keys.name, f"{keys.name}/2"], lease_ttl_s=0.3):
                    proxy.hold(Way.REPLIES)

            ending = asyncio.create_task(_outcome(body()))
            await heard.count(Lost, 1)  # the first release is on its way, and the second lease ends meanwhile
            proxy.let_through(Way.REPLIES)
            assert await asyncio.wait_for(ending, PATIENCE_S) == "done"


async def _outcome(body: Coroutine[Any, Any, None]) -> str:
    task, outcome = asyncio.current_task(), "done"
    assert task is not None
    try:
        await body
    except LeaseLost:
        outcome = "lost"
    except asyncio.CancelledError:
        return "cancelled by nobody"
    await asyncio.sleep(0.01)
    return outcome if task.cancelling() == 0 else f"{outcome}, and to be cancelled"


def _place(url: str) -> tuple[str, int]:
    address = place_of(url)
    assert isinstance(address, Address)
    return address.host, address.port


def _true(look: Callable[[], bool]) -> Callable[[], Any]:
    async def looked() -> bool:
        return look()

    return looked

"""A Locker has its times, its random numbers and its pid from the Clock that it is given, and from nowhere else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from locks import LeaseLost, Locker
from locks.clock import SYSTEM, Clock
from locks.contention import Contention
from locks.publishing import Publisher
from locks.seen import Seen
from tests.harness import PATIENCE_S, wait_until_async
from tests.integration.lock_faults import keys_at
from tests.servers.processes import unused_port

LEASE_TTL_S = 600.0  # no timer of it comes within PATIENCE_S
PID, WALL_S = 4242, 1_000_000.0


class OwnTime:
    """Stands still between two moves."""

    def __init__(self) -> None:
        self.now_s = 5000.0

    @property
    def clock(self) -> Clock:
        return replace(SYSTEM, monotonic_s=lambda: self.now_s, timers_s=lambda: 0.0)


async def test_leases_and_loans_end_by_their_lockers_clock(redis_url: str, name: str) -> None:
    time = OwnTime()
    async with Locker.connect(redis_url, instance_id="own", clock=time.clock) as locker:
        lease = await locker.acquire(name, lease_ttl_s=LEASE_TTL_S)
        loan = await locker.lending.lend(f"{name}/lent", lease_ttl_s=LEASE_TTL_S, wait_s=0, request_id="")
        (lent,) = locker.lending.all
        left_s = lease.remaining_s()
        assert (lease.held_s, lent.held_s, loan.ends_in_s()) == (0.0, 0.0, LEASE_TTL_S)

        time.now_s += 1.0
        assert lease.remaining_s() == pytest.approx(left_s - 1.0)
        assert (lease.held_s, lent.held_s, loan.ends_in_s()) == (1.0, 1.0, LEASE_TTL_S - 1.0)

        time.now_s += LEASE_TTL_S
        assert lease.is_lost
        await asyncio.wait_for(lease.lost.wait(), PATIENCE_S)


async def test_a_body_is_cancelled_once_its_lease_is_over_by_its_lockers_clock(redis_url: str, name: str) -> None:
    time = OwnTime()
    async with Locker.connect(redis_url, instance_id="own", clock=time.clock) as locker:

        async def body() -> None:
            async with locker.hold(name, lease_ttl_s=LEASE_TTL_S):
                time.now_s += LEASE_TTL_S
                await asyncio.sleep(PATIENCE_S)
                pytest.fail("the body was not cancelled")

        with pytest.raises(LeaseLost):
            await body()


async def test_ids_are_made_of_the_clocks_random_bytes(redis_url: str, name: str) -> None:
    clock = replace(SYSTEM, random_bytes=lambda count: b"\x07" * count)
    async with Locker.connect(redis_url, instance_id="own", clock=clock) as locker, locker.hold(name):
        with keys_at(redis_url, name) as keys:
            assert keys.holder() == "07" * 16
            assert f"lock-wake:{'07' * 8}:0000" in str(keys.client.get(keys.grant))


async def test_the_pid_is_the_clocks_wherever_it_is_shown(redis_url: str, name: str) -> None:
    clock = replace(SYSTEM, pid=lambda: PID)
    async with Locker.connect(redis_url, instance_id=name, clock=clock) as locker, locker.hold(name):
        view = await locker.inspect(name)
        publisher = Publisher(locker, Seen(clock), version="1")
        await publisher.start()
        snapshot = await Contention(locker).snapshot()
        await publisher.stop()

    assert view is not None
    assert view.holder is not None
    assert view.holder.pid == PID
    assert [seen.picture.pid for seen in snapshot.instances if seen.picture.instance_id == name] == [PID]


async def test_the_length_of_a_pause_is_drawn_from_the_clock() -> None:
    asked: list[tuple[float, float]] = []

    def shortest(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    async def has_tried() -> bool:
        return len(asked) >= 2

    clock = replace(SYSTEM, uniform=shortest)
    locker = Locker(f"redis://127.0.0.1:{unused_port()}", instance_id="own", clock=clock)
    await locker.open()
    await wait_until_async(has_tried, what="two tries to connect")
    await locker.close()


def test_incidents_are_noted_at_the_clocks_time() -> None:
    seen = Seen(replace(SYSTEM, wall_s=lambda: WALL_S))
    seen.note("forced", "appointment:42")
    assert [incident.at_s for incident in seen.take().incidents] == [WALL_S]

"""What a kind of fault is, what it may lay hands on, and what many of them share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

from tests.chaos.ground import Ground
from tests.chaos.proxy import ChaosProxy

Fault = Mapping[str, Any]  # as it stands in the schedule
Draw = Callable[[Random, float], dict[str, Any]]

TURN_WAIT_S = 0.15  # less than a lease: whoever stands still at a point is not to lose it by our waiting
_Result = TypeVar("_Result")


class FaultMissed(Exception):
    """The fault could not be fired; the message says why."""


class InstanceHandle(Protocol):
    """One instance of the product, whichever process it is at the time."""

    @property
    def number(self) -> int:
        """From 1 on."""

    @property
    def pid(self) -> int:
        """Of the process that it is now."""

    @property
    def database(self) -> ChaosProxy:
        """What it reaches Postgres by."""

    @property
    def redis(self) -> ChaosProxy:
        """What it reaches Redis by."""

    async def kill(self) -> None:
        """SIGKILL; the next life serves when this returns."""

    async def somebody_waits(self, *, within_s: float) -> bool:
        """Whether somebody stands in line, within this time, for a lock that it holds."""

    async def drain(self) -> None:
        """SIGTERM; the next life serves when this returns."""

    def freeze(self) -> None:
        """SIGSTOP."""

    def thaw(self) -> None:
        """SIGCONT; harmless when it is not frozen."""


class World(Protocol):
    """What faults may lay hands on."""

    @property
    def ground(self) -> Ground:
        """The servers."""

    @property
    def lease_ttl_s(self) -> float:
        """Of the instances' locks."""

    @property
    def instances(self) -> Mapping[int, InstanceHandle]:
        """By number."""

    @property
    def rng(self) -> Random:
        """For what is not worth a line in the schedule."""

    def hot_appointments(self) -> list[int]:
        """Those that crowds enter now or next."""


class Run(Protocol):
    """Begins the fault, lasts as long as it says, heals, and returns. Raises FaultMissed.

    It heals also when it is cancelled.
    """

    def __call__(self, world: Any, fault: Fault, target: Any, /) -> Awaitable[None]:
        """`world` is a World; `target` is the InstanceHandle of the fault's instance."""


def draw_nothing(rng: Random, lease_ttl_s: float) -> dict[str, Any]:
    """For a kind that has no parameters."""
    return {}


def draw_lasting(shortest_s: float, longest_s: float) -> Draw:
    """How long it lasts, between these."""
    return lambda rng, lease_ttl_s: {"lasts_s": round(rng.uniform(shortest_s, longest_s), 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """A kind of fault. `scope`: what it may harm, '<i>' for its instance; `needs`: why it cannot run here, or None.

    `forgets`: whether the lock store can lose by it what it had told, or its clock be moved: nothing else may take a
    lock from its holder.

    A targeted one is fired while its instance stands still at a point; one that `lets_go` is begun there, and goes on
    beside the instance from its first wait on. An ambient one is fired by time.
    """

    name: str
    scope: str
    does: str
    run: Run
    draw: Draw = draw_nothing
    targeted: bool = False
    ambient: bool = False
    lets_go: bool = False
    forgets: bool = False
    needs: str | None = None


async def to_its_end(work: Awaitable[_Result]) -> _Result:
    """What the work returns; when we are cancelled meanwhile, only once it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def in_thread(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Blocking work, beside the loop and always to its end."""
    return await to_its_end(asyncio.to_thread(work, *arguments))


@asynccontextmanager
async def alone_with(world: World, server: str) -> AsyncIterator[None]:
    """No other fault has this server, 'redis' or 'postgres', meanwhile. Raises FaultMissed."""
    turn = world.ground.turns.setdefault(server, asyncio.Lock())
    try:
        async with asyncio.timeout(TURN_WAIT_S):
            await turn.acquire()
    except TimeoutError:
        raise FaultMissed(f"another fault has {server} now") from None
    try:
        yield
    finally:
        turn.release()

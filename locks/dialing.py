"""How a server is reached by its name: at any address that the name has, each with a deadline of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from locks.errors import LockStoreDown
from locks.wire import retrieve

# An address that is silent for so long has the next one tried beside it: RFC 8305, section 8.
NEXT_AFTER_S = 0.25

Reached = TypeVar("Reached")


class Names:
    """Looks names up, each once at a time: a resolver that hangs holds one thread, however often it is asked."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def addresses_of(self, host: str) -> tuple[str, ...]:
        """The IP addresses that the name has now, in the order in which they are to be tried. Raises LockStoreDown."""
        if is_ip(host):
            return (host,)
        task = self._asked.get(host)
        if task is None:
            task = self._asked[host] = asyncio.create_task(_looked_up(host), name="lock-look-up")
            task.add_done_callback(lambda _: self._asked.pop(host))
            task.add_done_callback(retrieve)
        return await asyncio.shield(task)


def is_ip(host: str) -> bool:
    """Whether the host is an IP address as it stands, and no name."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


async def first_reached(
    ips: Sequence[str], attempt: Callable[[str], Coroutine[Any, Any, Reached]], *, next_after_s: float = NEXT_AFTER_S
) -> Reached:
    """What `attempt` gives for the first address at which it succeeds.

    The next address is tried as soon as one has failed, and beside one that is silent. Raises LockStoreDown with what
    all attempts said.
    """
    left = list(ips)
    running: set[asyncio.Task[Reached]] = set()
    errors: list[str] = []
    try:
        while left or running:
            if left:
                task = asyncio.create_task(attempt(left.pop(0)), name="lock-dial")
                task.add_done_callback(retrieve)  # of several that end at once the first one is waited for
                running.add(task)
            wait_s = next_after_s if left else None
            done, running = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    return task.result()
                except LockStoreDown as error:
                    errors.append(str(error))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    raise LockStoreDown("; ".join(dict.fromkeys(errors)))


async def _looked_up(host: str) -> tuple[str, ...]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LockStoreDown(f"the name {host} cannot be looked up: {error}") from error
    if not found:
        raise LockStoreDown(f"the name {host} has no address")
    return tuple(dict.fromkeys(_ip(*address) for *_, address in found))


def _ip(host: str, port: int, flow: int = 0, scope: int = 0) -> str:
    return f"{host}%{scope}" if scope else host

"""Calls under way at once, with the order in which they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.contract.api import Answer
from tests.harness import bearer, wait_until

CLIENT_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    method: str
    path: str
    user_id: int


@dataclass(slots=True)
class UnderWay:
    """Calls that have been sent, each on a connection of its own, and the answers so far in their order."""

    calls: Sequence[Call]
    answered: list[tuple[int, Answer]] = field(default_factory=list)  # index into calls, answer
    broken: list[int] = field(default_factory=list)  # whose connection broke
    _sending: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None

    @property
    def answers(self) -> list[Answer]:
        """One for each call, in the order of the calls; for the time when all have come."""
        assert not self.broken, f"the connections of {self.broken} broke"
        by_index = dict(self.answered)
        return [by_index[index] for index in range(len(self.calls))]

    def so_far(self) -> list[Answer]:
        """The answers that have come, the first one first."""
        return [answer for _, answer in list(self.answered)]

    def wait_for_all(self) -> list[Answer]:
        """The answers, once all have come."""
        wait_until(self._is_complete, patience_s=CLIENT_PATIENCE_S + 5, what="all answers")
        return self.answers

    def _is_complete(self) -> bool:
        return len(self.answered) + len(self.broken) == len(self.calls)

    def give_up(self) -> None:
        """Hangs up on all that are not answered; harmless when all are."""
        if self._sending is not None:
            loop, task = self._sending
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)

    def run(self, url: str) -> None:
        """Sends them all at once, and returns when they are over."""
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._send_all(url))

    async def _send_all(self, url: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sending = asyncio.get_running_loop(), task
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        limit = aiohttp.ClientTimeout(total=CLIENT_PATIENCE_S)
        async with aiohttp.ClientSession(url, connector=connector, timeout=limit) as client:
            await asyncio.gather(*(self._send(client, index) for index in range(len(self.calls))))

    async def _send(self, client: aiohttp.ClientSession, index: int) -> None:
        call = self.calls[index]
        started_at_s = time.monotonic()
        try:
            async with client.request(call.method, call.path, headers=bearer(call.user_id)) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError):
            self.broken.append(index)
            return
        names = {name.lower(): value for name, value in response.headers.items()}
        self.answered.append((index, Answer(response.status, names, body, time.monotonic() - started_at_s)))


@contextmanager
def under_way(url: str, calls: Iterable[Call]) -> Iterator[UnderWay]:
    """Sends all of them and goes on; they are over when the block is, and hung up on when it fails."""
    sent = UnderWay(list(calls))
    sending = threading.Thread(target=sent.run, args=[url], name="calls under way")
    sending.start()
    try:
        yield sent
    except BaseException:
        sent.give_up()
        raise
    finally:
        sending.join()


def entering(url: str, entries: Iterable[tuple[int, int]]) -> AbstractContextManager[UnderWay]:
    """The same with entries: (appointment id, user id) each."""
    return under_way(url, [Call("POST", f"/v1/appointments/{id_}/entries", user_id) for id_, user_id in entries])

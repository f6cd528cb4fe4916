"""Who may enter an appointment, asked before somebody takes a turn with its lock: outsiders' turns cost others time.

The participants of an appointment never change, so that they are known once they were read. Whoever is not known as one
is looked up each time, in one question with all who come meanwhile: an outsider cannot tell by the time it takes
whether there is such an appointment, and one that was just made is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping

from db.charging import Charges
from db.decisions import ChargeRequest, IllegalRequest, Participants
from db.errors import DatabaseError

# The question locks nothing. A database that takes longer has others to answer, and then the lock's own way tells.
LOOK_WAIT_S = 0.5
# Whoever asks again and again is told so seldom that it costs others little; not all at once.
REFUSED_AFTER_S = (0.25, 0.5)

Found = Mapping[int, Participants]


class KnownParticipants:
    """Remembers those of the appointments read last, `size` at most."""

    def __init__(self, charges: Charges, *, size: int) -> None:
        self._charges = charges
        self._size = size
        self._known: dict[int, Participants] = {}
        self._refused: dict[int, None] = {}  # the users who were refused last, the newest at the end
        self._next: _Question | None = None  # what is asked next
        self._asking: asyncio.Task[None] | None = None

    def was_refused(self, user_id: int) -> bool:
        """Whether this user wanted to enter what is not theirs, and may be trying on."""
        return user_id in self._refused

    async def refuse_outsider(self, request: ChargeRequest) -> None:
        """Raises IllegalRequest where the request may not enter; returns as well where the database does not say."""
        known = self._known.get(request.appointment_id)
        if known is not None and known.allow(request):
            return
        try:
            async with asyncio.timeout(LOOK_WAIT_S):
                found = await asyncio.shield(self._ask(request.appointment_id))
        except TimeoutError:
            return
        if found is None:
            return
        participants = found.get(request.appointment_id)
        if participants is None or not participants.allow(request):
            raise IllegalRequest

    async def before_refusing(self, user_id: int) -> None:
        """Remembers who is refused, and takes its time, so that whoever asks again and again asks seldom."""
        self._refused.pop(user_id, None)
        self._refused[user_id] = None
        if len(self._refused) > self._size:
            del self._refused[next(iter(self._refused))]
        await asyncio.sleep(random.uniform(*REFUSED_AFTER_S))

    async def close(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    def _ask(self, appointment_id: int) -> asyncio.Future[Found | None]:
        """Never the question under way: the appointment may have been made since that was asked."""
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = _Question(loop)
        self._next.appointment_ids.add(appointment_id)
        if self._asking is None:
            self._asking = loop.create_task(self._ask_on(), name="participants")
        return self._next.answer

    async def _ask_on(self) -> None:
        """One question at a time."""
        try:
            while (question := self._next) is not None:
                self._next = None
                found = None
                try:
                    with contextlib.suppress(DatabaseError):
                        found = await self._charges.participants_of(question.appointment_ids)
                        self._remember(found)
                finally:
                    question.answer.set_result(found)
        finally:
            self._asking = None

    def _remember(self, found: Found) -> None:
        self._known.update(found)
        while len(self._known) > self._size:
            del self._known[next(iter(self._known))]


class _Question:
    """Whose participants are asked for, and the answer: None where the database has not given one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.appointment_ids: set[int] = set()
        self.answer: asyncio.Future[Found | None] = loop.create_future()

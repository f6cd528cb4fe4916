"""Long work on the event loop, a piece at a time, so that others have three quarters of the loop's time.

What is done on request shares one quarter, however many have asked. What a process does by itself waits for none of
them: an instance that tells nothing passes for gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar
from weakref import WeakKeyDictionary

from locks.clock import Clock

Item = TypeVar("Item")

# So many leases, locks or rows are worked off in half a millisecond or less.
PIECE = 50
# The loop is not kept for longer than this and a piece. Then it is others' for three times as long as was worked.
WORK_S = 0.0005
SHARE = 4
# Whoever waited for somebody else between two pieces has not worked all the time.
MOST_WORK_S = 0.002

# When the next piece on request may begin, whoever's it is.
_next_at_s: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


async def in_pieces(items: Iterable[Item], clock: Clock, *, on_request: bool) -> AsyncIterator[list[Item]]:
    """The items, PIECE at a time, with rests between; nothing may be added to or taken from them meanwhile."""
    iterator = iter(items)
    began_at_s = clock.monotonic_s()
    while piece := list(islice(iterator, PIECE)):
        yield piece
        worked_s = clock.monotonic_s() - began_at_s
        if worked_s >= WORK_S:
            needs_s = SHARE * min(worked_s, MOST_WORK_S)
            next_at_s = _after_all_others(began_at_s, needs_s) if on_request else began_at_s + needs_s
            await asyncio.sleep(next_at_s - clock.monotonic_s())
            began_at_s = clock.monotonic_s()


def _after_all_others(began_at_s: float, needs_s: float) -> float:
    loop = asyncio.get_running_loop()
    next_at_s = _next_at_s[loop] = max(_next_at_s.get(loop, began_at_s), began_at_s) + needs_s
    return next_at_s

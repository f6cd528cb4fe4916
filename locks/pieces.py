"""Long work on the event loop, a piece at a time: everybody else has their turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")

# So many leases, locks or rows are worked off within a millisecond or two.
PIECE = 500


async def in_pieces(items: Iterable[Item]) -> AsyncIterator[list[Item]]:
    """The items, PIECE at a time; nothing may be added to or taken from them meanwhile."""
    iterator = iter(items)
    while piece := list(islice(iterator, PIECE)):
        yield piece
        await asyncio.sleep(0)

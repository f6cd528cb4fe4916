"""Work that several may wait for, and that goes on when all of them have left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def shared_task(work: Coroutine[Any, Any, Result], *, name: str) -> asyncio.Task[Result]:
    """The work as a task, to be waited for through asyncio.shield; that it failed is told to nobody but who waits."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_look_at_how_it_ended)
    return task


def _look_at_how_it_ended(task: asyncio.Task[Any]) -> None:
    """So that nobody logs an exception which nobody has waited for."""
    if not task.cancelled():
        task.exception()

"""One question to several servers at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

from locks.errors import LockStoreDown

# How long the next one's answer is waited for, where more than one is wanted.
AGREE_WITHIN_S = 0.1

Found = TypeVar("Found")


async def first_answer(questions: Iterable[Coroutine[Any, Any, Found]]) -> Found:
    """Whoever answers first. Raises LockStoreDown with what all of them said."""
    async with contextlib.aclosing(answers_of(questions)) as answers:
        return await anext(answers)


async def answers_of(questions: Iterable[Coroutine[Any, Any, Found]]) -> AsyncGenerator[Found, None]:
    """The first answer and those that come within AGREE_WITHIN_S of one before them: who is frozen delays nobody.

    All are asked at once. Raises LockStoreDown with what all of them said where nobody answers.
    """
    asked = {asyncio.create_task(question) for question in questions}
    waiting, errors, wait_s = asked, list[str](), None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return
            for task in done:
                try:
                    yield task.result()
                    wait_s = AGREE_WITHIN_S
                except LockStoreDown as error:
                    errors.append(str(error))
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if wait_s is None:
        raise LockStoreDown("; ".join(dict.fromkeys(errors)) or "nobody to ask")

"""A child process whose copy of the product is a mutant, so that its parent's stays whole."""

from __future__ import annotations

import asyncio
import multiprocessing
import warnings
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.chaos.mutants.mutant import Mutant

PATIENCE_S = 120.0

Work = Callable[..., Awaitable[Any]]
_fork = multiprocessing.get_context("fork")


def in_child(mutant: Mutant | None, work: Work, *arguments: object) -> Any:
    """What `work` returns on an event loop of a child with this mutant, or with the whole product.

    `work` must open connections of its own. Raises RuntimeError with what it raises; fails where it takes too long.
    """
    ours, theirs = _fork.Pipe(duplex=False)
    child = _fork.Process(target=_run, args=(theirs, mutant, work, arguments))
    child.start()
    theirs.close()
    try:
        assert ours.poll(PATIENCE_S), "the child takes too long"
        found = ours.recv()
    finally:
        child.kill()
        child.join()
    if isinstance(found, BaseException):
        raise found
    return found


def _run(answer: Connection, mutant: Mutant | None, work: Work, arguments: tuple[object, ...]) -> None:
    warnings.resetwarnings()  # the test runner's are errors; a whole instance is started as it is outside of tests
    try:
        if mutant is not None:
            mutant.patch()
        answer.send(asyncio.run(_awaited(work, arguments)))
    except BaseException as error:
        answer.send(RuntimeError(f"{type(error).__name__}: {error}"))
        raise


async def _awaited(work: Work, arguments: tuple[object, ...]) -> Any:
    return await work(*arguments)

"""One Postgres connection that an event loop drives: a command's text goes out, its last statement's rows come back.

psycopg2's asynchronous mode under our own loop. Against threads it saves two hand-overs a statement and the fight for
the interpreter, and every wait has an end, also for a server that is frozen. SQLAlchemy's engine knows no such mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE, TRANSACTION_STATUS_INERROR

from db.answers import lost
from db.connecting import Connector
from db.errors import DatabaseDown

Row = tuple[Any, ...]


class Connection:
    """For one command at a time. Once a command has failed to come back the connection is closed."""

    def __init__(self, raw: Any, on_lost: Callable[[str], None]) -> None:
        """`on_lost` hears why, when the connection is lost."""
        self._raw = raw
        self._on_lost = on_lost
        self._cursor = raw.cursor()
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[None] | None = None
        self._writing = False
        self._fd: int = raw.fileno()
        self._loop.add_reader(self._fd, self._look)

    @classmethod
    async def open(
        cls, connector: Connector, *, script: str, on_lost: Callable[[str], None] = lambda reason: None
    ) -> Connection:
        """A connection that has run the script. Raises DatabaseDown."""
        # In a thread, since looking up a name blocks.
        connecting = asyncio.get_running_loop().run_in_executor(None, connector.connect_asynchronously, script)
        try:
            return cls(await asyncio.shield(connecting), on_lost)
        except psycopg2.Error as error:
            raise DatabaseDown(str(error).strip().split("\n", 1)[0]) from error
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_unwanted)
            raise

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._fd >= 0

    @property
    def has_failed_transaction(self) -> bool:
        """Whether a statement has failed in a transaction that is still there: a COMMIT behind it has not run."""
        return bool(self._raw.info.transaction_status == TRANSACTION_STATUS_INERROR)

    async def ask(self, command: str, *, within_s: float) -> list[Row]:
        """The rows of the command's last statement.

        Raises psycopg2.Error: with a pgcode it is the server's answer, without one the connection is lost. TimeoutError
        when there was no answer in time. After both of these, and when cancelled, the connection is closed.
        """
        if self._fd < 0:
            raise psycopg2.InterfaceError("the connection is closed")
        answer = self._answer = self._loop.create_future()
        deadline = self._loop.call_later(within_s, self._too_late)
        try:
            self._cursor.execute(command)
            self._look()
            await answer
        except psycopg2.Error as error:
            if self.is_open and (error.pgcode is None or self._raw.closed):
                self._lose(error)
            raise
        except BaseException:
            self.close()
            raise
        finally:
            deadline.cancel()
            self._answer = None
        return self._cursor.fetchall() if self._cursor.description else []

    def close(self) -> None:
        """Closes it; the server rolls back what was not committed."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._raw.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(psycopg2.InterfaceError("the connection was closed"))

    def _look(self) -> None:
        try:
            state = self._raw.poll()
        except psycopg2.Error as error:
            self._tell(error)
            if self._raw.closed or self._answer is None:
                self._lose(error)
            return
        if state == POLL_OK:
            self._tell(None)
        if (state == POLL_WRITE) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._fd, self._look)
            else:
                self._loop.remove_writer(self._fd)

    def _lose(self, error: psycopg2.Error) -> None:
        reason = lost(error, self._raw.notices)
        self.close()
        if reason is not None:
            self._on_lost(reason)

    def _too_late(self) -> None:
        self._tell(TimeoutError("no answer from Postgres in time"))

    def _tell(self, error: Exception | None) -> None:
        answer = self._answer
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)


def _close_unwanted(connecting: asyncio.Future[Any]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()

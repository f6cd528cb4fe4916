"""chargeonce locks list / show / release: what the HTTP API says of the locks, for a terminal.

Exit status: 0 done; 1 refused, since the lease with the given fencing token is not the current one; 2 could not look;
3 nobody holds the lock, whatever else was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import io
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from service.settings import Settings, SettingsError, load_settings, take_out_libpq_variables

if TYPE_CHECKING:
    from db.database import Database
    from locks import Locker, LockView
    from locks.listing import ListedLock

# What a command needs is imported when it runs, as in __main__.

REFUSED, COULD_NOT_LOOK, FREE = 1, 2, 3
COMMAND_TIMEOUT_S = 2.0

Result = TypeVar("Result")

locks = typer.Typer(no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="as one JSON object, as the HTTP API answers")]
Name = Annotated[str, typer.Argument(help="the lock's name: appointment:42")]


@locks.callback()
def show_what_can_be_shown() -> None:
    """Who holds which lock; and force release."""
    # An owner may have letters that this terminal has not.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Sort(StrEnum):
    """How the list is sorted."""

    WAITERS = "waiters"
    HELD = "held"
    NAME = "name"


@locks.command("list")
def list_locks(
    sort: Annotated[Sort, typer.Option(help="most waiters, or held longest, or first name first")] = Sort.WAITERS,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    search: Annotated[str, typer.Option(help="a part of the name")] = "",
    as_json: AsJson = False,
) -> None:
    """The locks that are held, over all instances: a table on a terminal, else a line each with tabs between."""
    from locks.contention import Contention
    from service.dashboard.formatting import plural
    from service.handlers.contention import locks_answer

    page = _with_locker(
        _settings(), lambda locker: Contention(locker).locks(sort=sort.value, limit=limit, search=search)
    )
    answer = locks_answer(page)
    if as_json:
        print(answer.model_dump_json(ensure_ascii=True))
    else:
        _print_table([lock for lock in page.locks if lock.is_held])
        if page.next_cursor is not None:
            print(f"chargeonce: {plural(answer.total, 'lock')} in all; --limit shows more", file=sys.stderr)


@locks.command("show")
def show_lock(name: Name, as_json: AsJson = False) -> None:
    """Who holds the lock, and who waits, in order. Exit status: 0 shown; 2 could not look; 3 nobody holds it."""
    from service.handlers.contention import lock_answer

    _check(name)
    view = _with_locker(_settings(), lambda locker: locker.inspect(name))
    if view is None or not view.is_held:
        _fail(f"nobody holds the lock {name!r}", FREE)
    print(lock_answer(view).model_dump_json(ensure_ascii=True) if as_json else "\n".join(_lines(view)))


@locks.command("release")
def release_lock(
    name: Name,
    reason: Annotated[str, typer.Option(help="why; it is written to lock_audit")],
    fencing_token: Annotated[
        int | None,
        typer.Option(min=0, help="release only this lease; 0 is a python-redis-lock program's. Else the current one"),
    ] = None,
) -> None:
    """Ends the lease, whoever holds it.

    Exit status:
    0 it is over
    1 the lease with --fencing-token is not the current one: nothing was released
    2 could not look, or not write it down: nothing was released
    3 nobody holds the lock
    """
    from db.errors import DatabaseError
    from locks import HolderChanged

    settings = _settings()
    _check(name)
    reason = _readable(reason)
    with _database(settings) as database:
        try:
            token = _with_locker(settings, lambda locker: _release(locker, database, name, reason, fencing_token))
        except HolderChanged as error:
            _fail(f"{error}; nothing was released", REFUSED)
        except DatabaseError as error:
            _fail(f"nothing was released, for it could not be written to lock_audit: {error}", COULD_NOT_LOOK)
    if token is None:
        _fail(f"nobody holds the lock {name!r}", FREE)
    print(f"released (fencing token {token})")


async def _release(locker: Locker, database: Database, name: str, reason: str, fencing_token: int | None) -> int | None:
    """The token of the lease that was ended; None where nobody holds the lock."""
    from service.forcing import Forcing, HolderGone
    from service.holder_words import holder_words, told_words
    from service.shares import OURSELVES

    view = await locker.inspect(name)
    if view is None or not view.is_held:
        return None
    print(f"{name} is held by {holder_words(view.holder)}, for {_seconds(view.held_s)}")
    if fencing_token is None:
        fencing_token = view.fencing_token or 0
    forcing = Forcing(locker, _Threads(database))
    try:
        forced = await forcing.force_release(
            name, fencing_token=fencing_token, reason=reason, actor=f"cli:{_user()}", caller=OURSELVES
        )
    except HolderGone:  # since we looked
        return None
    print(told_words(forced.holder))
    return fencing_token


class _Threads:
    """Runs database work in a thread; nobody else is there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, work: Callable[[Database], Result], *, caller: int) -> Result:
        """What `work` returns."""
        return await asyncio.to_thread(work, self._database)


def _with_locker(settings: Settings, work: Callable[[Locker], Awaitable[Result]]) -> Result:
    """What `work` returns, with a locker on the lock store of the settings."""
    from locks import Locker, LockStoreDown

    url = settings.redis_url.get_secret_value() if settings.redis_url else _running(settings, "redis_url")
    instance_id = f"cli-{socket.gethostname()}-{os.getpid()}"

    async def run() -> Result:
        async with Locker.connect(url, instance_id=instance_id, command_timeout_s=COMMAND_TIMEOUT_S) as locker:
            return await work(locker)

    try:
        return asyncio.run(run())
    except LockStoreDown as error:
        _fail(f"the lock store is out of reach: {error}", COULD_NOT_LOOK)


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    from db.database import Database

    if beside := take_out_libpq_variables(settings):
        print(f"chargeonce: {beside}", file=sys.stderr)
    url = settings.database_url.get_secret_value() if settings.database_url else _running(settings, "database_url")
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def _running(settings: Settings, which: str) -> str:
    """The address of a server that somebody else runs; we start none, since locks are of those who run."""
    from service.embedded import EmbeddedError, running_addresses

    try:
        addresses = running_addresses(settings.data_dir)
    except EmbeddedError as error:
        _fail(str(error), COULD_NOT_LOOK)
    url = getattr(addresses, which, None)
    if not isinstance(url, str):
        _fail(f"no service runs on CHARGEONCE_DATA_DIR ({settings.data_dir}), so there are no locks", COULD_NOT_LOOK)
    return url


def _check(name: str) -> None:
    from locks.keys import check_name

    try:
        check_name(name)
    except ValueError as error:
        _fail(str(error), COULD_NOT_LOOK)


def _print_table(listed: Sequence[ListedLock]) -> None:
    from service.holder_words import holder_words

    titles = ("name", "holder", "held", "expires in", "waiters", "fencing token")
    rows = [
        (
            lock.name,
            holder_words(lock.holder),
            _seconds(lock.held_s),
            _seconds(lock.expires_in_s),
            str(lock.waiters),
            str(lock.fencing_token or 0),
        )
        for lock in listed
    ]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in (titles, *rows)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    Console().print(table)


def _lines(lock: LockView) -> Iterator[str]:
    from service.holder_words import holder_words

    yield f"{lock.name} is held by {holder_words(lock.holder)}"
    yield f"for {_seconds(lock.held_s)}, expires in {_seconds(lock.expires_in_s)}"
    yield f"fencing token {lock.fencing_token or 0}"
    yield f"{lock.waiter_count} waiting"
    for number, waiter in enumerate(lock.waiters, 1):
        request = f", request {waiter.request_id}" if waiter.request_id else ""
        owner = f"“{waiter.owner}”, " if waiter.owner else ""
        place = f"{owner}{waiter.instance_id} (host {waiter.host}, pid {waiter.pid}{request})"
        yield f"{number:3}. {place} for {_seconds(waiter.waited_s)}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _readable(reason: str) -> str:
    from pydantic import ValidationError

    from service.models import ForceRelease

    try:
        return ForceRelease(reason=reason, fencing_token=0).reason
    except ValidationError as error:
        _fail(f"--reason: {error.errors()[0]['msg'].removeprefix('Value error, ')}", COULD_NOT_LOOK)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        _fail(str(error), COULD_NOT_LOOK)


def _fail(message: str, status: int) -> NoReturn:
    print(f"chargeonce: {message}", file=sys.stderr)
    raise SystemExit(status)

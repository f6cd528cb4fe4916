"""The command line: chargeonce, or python -m service."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, NoReturn

from service.command import prepare, run

if __name__ == "__main__":
    prepare()  # before the other imports: they take a second

import typer

from service.dashboard.formatting import plural
from service.locks_command import locks
from service.settings import (
    Settings,
    SettingsError,
    load_settings,
    take_out_libpq_variables,
)

# What a command needs is imported when it runs: `chargeonce token` need not load a web server.

app = typer.Typer(
    name="chargeonce",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(locks, name="locks")

COULD_NOT = 1
COULD_NOT_LOOK = 2


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"chargeonce {version('chargeonce')}")
        raise typer.Exit


@app.callback()
def chargeonce(
    is_version_asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Charges exactly once, however many clients race for one appointment."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="CHARGEONCE_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="CHARGEONCE_PORT; 0 takes a free one")] = None,
    workers: Annotated[int | None, typer.Option(help="CHARGEONCE_WORKERS")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="seed demo data, print a curl line to try")] = False,
) -> None:
    """The API: migrates embedded databases, serves until Ctrl-C or SIGTERM, then drains."""
    from service.output import protect_output

    protect_output()
    settings = _settings(host=host, port=port, workers=workers)
    # After the settings: a wrong one is told at once.
    from service.embedded import EmbeddedError
    from service.serving import serve as serve_until_stopped
    from service.workers import StartFailed

    try:
        raise typer.Exit(serve_until_stopped(settings, demo=demo))
    except SettingsError as error:
        _fail(str(error), COULD_NOT_LOOK)
    except EmbeddedError as error:
        _fail(f"{error} (CHARGEONCE_DATA_DIR is {settings.data_dir})", COULD_NOT)
    except StartFailed as error:
        _fail(str(error), COULD_NOT)


@app.command()
def migrate() -> None:
    """Brings the schema to head, and says what it did."""
    from db.errors import DatabaseError
    from db.migrate import migrate as bring_to_head

    with _database_url(_settings()) as url:
        try:
            report = bring_to_head(url)
        except DatabaseError as error:
            _fail(str(error), COULD_NOT)
    for revision in report.applied:
        print(f"applied {revision.revision}: {revision.title}")
    if not report.applied:
        print(f"nothing to do: the schema is at {report.to_revision}")


@app.command()
def seed(
    appointments: Annotated[int, typer.Option(min=0)] = 100,
    users: Annotated[int, typer.Option(min=0)] = 50,
    coupons: Annotated[int, typer.Option(min=0, help="for each user")] = 100,
) -> None:
    """Demo data; doing it again adds nothing but what is missing."""
    from db.database import Database
    from db.demo import check_counts
    from db.demo import seed as seed_demo
    from db.errors import DatabaseError
    from db.migrate import migrate as bring_to_head

    settings = _settings()
    try:
        check_counts(appointments=appointments, users=users, coupons=coupons)
    except ValueError as error:
        _fail(str(error), COULD_NOT)
    with _database_url(settings) as url:
        database = Database(url)
        try:
            if settings.embedded_database:
                bring_to_head(url)
            report = seed_demo(database, appointments=appointments, users=users, coupons=coupons)
        except DatabaseError as error:
            _fail(str(error), COULD_NOT)
        finally:
            database.close()
    print(
        f"added {plural(report.created_appointments, 'appointment')}, coupons for"
        f" {plural(report.granted_users, 'user')} and {plural(report.created_prices, 'price')};"
        f" demo appointments by now: {report.demo_appointments}"
    )


@app.command()
def token(
    user: Annotated[int, typer.Option(help="the user id")],
    scope: Annotated[str, typer.Option(help="space-separated: service, locks, locks:PREFIX, monitor, operator")] = "",
    ttl_s: Annotated[int, typer.Option("--ttl-s", min=1, help="seconds until it expires")] = 3600,
) -> None:
    """Prints a signed access token."""
    from service.callers import check_scope, sign_token
    from service.embedded import EmbeddedError
    from service.generated import with_generated_secrets

    settings = _settings()
    try:
        for each in scope.split():
            check_scope(each)
    except ValueError as error:
        _fail(f"--scope: {error}", COULD_NOT_LOOK)
    try:
        settings = with_generated_secrets(settings)
    except EmbeddedError as error:
        _fail(str(error), COULD_NOT)
    if settings.jwt_secret is None:
        _fail("CHARGEONCE_JWT_SECRET must be set: a public key verifies tokens, but cannot sign them", COULD_NOT_LOOK)
    try:
        print(
            sign_token(
                settings.jwt_secret.get_secret_value(),
                user_id=user,
                scopes=scope.split(),
                ttl_s=ttl_s,
                now=time.time(),
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
            )
        )
    except ValueError as error:
        _fail(f"--user: {error}", COULD_NOT_LOOK)


@app.command()
def audit(as_json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False) -> None:
    """Checks every invariant of the tables: exit 0 when all hold, 1 when one is broken, 2 when it could not look."""
    from db.audit import audit as look
    from db.database import Database
    from db.errors import DatabaseError

    with _database_url(_settings()) as url:
        database = Database(url)
        try:
            report = look(database)
        except DatabaseError as error:
            _fail(str(error), COULD_NOT_LOOK)
        finally:
            database.close()
    if as_json:
        print(json.dumps({"holds": report.holds, **asdict(report)}, default=str))
    else:
        for invariant in report.invariants:
            word = "holds" if invariant.holds else "BROKEN" if invariant.unknown is None else "unknown"
            print(f"{word:7} {invariant.sentence}")
            if invariant.unknown is not None:
                print(f"        {invariant.unknown}")
            for example in invariant.examples:
                print(f"        {example}")
        totals = asdict(report.totals).items()
        print("looked at " + ", ".join(_counted(count, many) for many, count in totals))
    raise typer.Exit(COULD_NOT if report.is_broken else 0 if report.holds else COULD_NOT_LOOK)


@app.command(hidden=True)
def worker(number: int, listening_fd: int, supervisor_fd: int) -> None:
    """One worker process; the supervisor starts it."""
    from service.observe import set_up_logs
    from service.output import protect_output
    from service.workers import work

    protect_output()
    settings = _settings()
    set_up_logs(settings.log_level, settings.log_format)
    work(settings, number=number, listening_fd=listening_fd, supervisor_fd=supervisor_fd)


def _counted(count: int | None, many: str) -> str:
    one = {"entries": "entry"}.get(many, many.removesuffix("s"))
    return f"unknown {many}" if count is None else plural(count, one, many)


def _settings(**flags: object) -> Settings:
    try:
        return load_settings(**flags)
    except SettingsError as error:
        _fail(str(error), COULD_NOT_LOOK)


@contextmanager
def _database_url(settings: Settings) -> Iterator[str]:
    """The database's URL; an embedded one is attached to where it runs, else started for the duration."""
    from service.embedded import EmbeddedError, open_servers

    if beside := take_out_libpq_variables(settings):
        print(f"chargeonce: {beside}", file=sys.stderr)
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    try:
        with open_servers(settings.data_dir, postgres=True, valkey=False) as addresses:
            assert addresses.database_url is not None
            yield addresses.database_url
    except EmbeddedError as error:
        _fail(str(error), COULD_NOT_LOOK)


def _fail(message: str, status: int) -> NoReturn:
    print(f"chargeonce: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    run(app)

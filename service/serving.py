"""chargeonce serve, from the settings to the exit status: bind, embedded servers, schema, workers, drain."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path

import structlog

from db.database import Database
from db.demo import next_open_appointment, seed
from db.errors import DatabaseDown, DatabaseError, MayNotLook, Unusable
from db.looking import looked
from db.migrate import migrate, schema_state
from db.sequences import sequences_behind
from service.app import callers
from service.callers import sign_token
from service.dashboard.formatting import plural
from service.descriptors import lowered_limits, raise_limit
from service.embedded import EmbeddedServers, ServerDied, ServerUpAgain
from service.generated import with_generated_secrets
from service.observe import set_up_logs
from service.port import who_has_the_port
from service.sessions import LOGIN_CODE_TTL_S, new_login_code
from service.settings import (
    Settings,
    SettingsError,
    key_settings,
    require_secrets,
    resolved,
    take_out_libpq_variables,
    unknown_settings,
)
from service.tracing import is_installed as tracing_is_installed
from service.workers import Listening, StartFailed, Supervisor, wait_politely

log = structlog.get_logger("chargeonce")

DEMO_APPOINTMENTS, DEMO_USERS, DEMO_COUPONS = 100, 50, 100
DEMO_TOKEN_TTL_S = 24 * 3600
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 for the banner, not for binding


def serve(settings: Settings, *, demo: bool) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status.

    Raises StartFailed, EmbeddedError or SettingsError, each with one clear line.
    """
    set_up_logs(settings.log_level, settings.log_format)
    for name in unknown_settings():
        log.warning("unknown setting ignored", name=name)
    if beside := take_out_libpq_variables(settings):
        log.warning("libpq variables are set", reason=beside)
    settings = _fitting(settings)
    wait_politely()
    with ExitStack() as stack:
        # The port first: a second start by mistake should fail before it touches anything.
        if (reason := who_has_the_port(settings.host, settings.port, settings.data_dir)) is not None:
            raise StartFailed(reason)
        listening = stack.enter_context(Listening(settings.host, settings.port, workers=settings.workers))
        settings = with_generated_secrets(settings)
        _check(settings)
        settings, servers = _with_servers(settings, stack, address=_address(settings, listening.port))
        _see_to_schema(settings, embedded=servers is not None and servers.addresses.database_url is not None)
        hints = _demo_hints(settings, listening.port) if demo else []
        log.info("starting workers", workers=settings.workers)
        supervisor = Supervisor(
            settings,
            listening,
            metrics_parent=settings.data_dir if servers else Path(tempfile.gettempdir()),
            look_after=_Reporter(servers),
        )
        return supervisor.run(lambda: _greet(settings, listening.port, hints))


def _fitting(settings: Settings) -> Settings:
    """The settings with limits that fit the open files that the system allows us, which is said where it is not so."""
    open_files = raise_limit()
    if lowered := lowered_limits(settings, open_files):
        log.warning("limits lowered to the files that a process may have open", open_files=open_files, **lowered)
    return settings.model_copy(update=lowered)


def _with_servers(settings: Settings, stack: ExitStack, *, address: str) -> tuple[Settings, EmbeddedServers | None]:
    if not (settings.embedded_database or settings.embedded_redis):
        return settings, None
    servers = stack.enter_context(
        EmbeddedServers.start(
            settings.data_dir,
            postgres=settings.embedded_database,
            valkey=settings.embedded_redis,
            address=address,
            say=log.info,
        )
    )
    addresses = servers.addresses
    return resolved(settings, database_url=addresses.database_url, redis_url=addresses.redis_url), servers


def _check(settings: Settings) -> None:
    """What can be found out before a server is started should be."""
    require_secrets(settings)
    if settings.tracing != "off" and not tracing_is_installed():
        raise SettingsError("CHARGEONCE_TRACING is set, but the extra is not installed: pip install 'chargeonce[otel]'")
    try:
        callers(settings)
    except ValueError as error:
        (name,) = key_settings(settings)
        raise SettingsError(f"CHARGEONCE_{name}: {error}") from None


def _see_to_schema(settings: Settings, *, embedded: bool) -> None:
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    try:
        if embedded:
            log.info("migrating")
            migrate(url)
        elif not (state := schema_state(url)).at_head:
            found = f"at {state.revision}, not at {state.head}" if state.revision else "not there yet"
            raise StartFailed(f"the schema is {found}: run chargeonce migrate first")
        _look_at_sequences(url)
    except Unusable as error:
        raise StartFailed(str(error)) from error
    except DatabaseDown as error:
        # It may come up later than we do; until then /readyz says so.
        log.warning("database out of reach at the start", reason=str(error))
    except DatabaseError as error:
        raise StartFailed(str(error)) from error


def _look_at_sequences(url: str) -> None:
    """Says which would give ids that are taken. No reason not to start: whatever needs no such id is served."""
    with closing(Database(url)) as database:
        try:
            found = database.read(lambda connection: looked(connection, sequences_behind))
        except MayNotLook as error:
            log.warning("could not look whether a sequence is behind its table", reason=str(error))
            return
    for behind in found:
        log.error("a sequence is behind its table: ids that it gives are taken", **behind._asdict())


class _Reporter:
    """Has dead embedded servers started again, and reports both."""

    def __init__(self, servers: EmbeddedServers | None) -> None:
        self._servers = servers

    def __call__(self) -> None:
        for event in self._servers.revive() if self._servers else ():
            match event:
                case ServerDied():
                    log.error("embedded server died", report=event.report)
                case ServerUpAgain():
                    log.info("embedded server up again", server=event.server)


def _demo_hints(settings: Settings, port: int) -> list[str]:
    """Seeds, and says what to try: the page, and a line that enters an appointment which is still to be charged."""
    address = _address(settings, port)
    curl = _demo_curl(settings, address)
    hints = _dashboard(settings, address)
    if curl is not None:
        hints += ["enter an appointment's room, charged once however often you paste it:", "", curl, ""]
    return hints


def _demo_curl(settings: Settings, address: str) -> str | None:
    assert settings.database_url is not None
    database = Database(settings.database_url.get_secret_value())
    log.info("seeding demo data")
    try:
        seed(database, appointments=DEMO_APPOINTMENTS, users=DEMO_USERS, coupons=DEMO_COUPONS)
        found = next_open_appointment(database, default_coupon_count=settings.default_coupon_count)
    except DatabaseError as error:
        raise StartFailed(f"cannot seed demo data: {error}") from error
    finally:
        database.close()
    if found is None or settings.jwt_secret is None:
        return None
    appointment_id, user_id = found
    token = sign_token(
        settings.jwt_secret.get_secret_value(),
        user_id=user_id,
        scopes=(),
        ttl_s=DEMO_TOKEN_TTL_S,
        now=time.time(),
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
    )
    return f"curl -sS -X POST {address}/v1/appointments/{appointment_id}/entries -H 'Authorization: Bearer {token}'"


def _greet(settings: Settings, port: int, hints: list[str]) -> None:
    address = _address(settings, port)
    line = f"chargeonce {version('chargeonce')} on {address} with {plural(settings.workers, 'worker')}; Ctrl-C stops it"
    print("\n".join([line, *hints]), flush=True)


def _dashboard(settings: Settings, address: str) -> list[str]:
    """An address that lets somebody look, once, where we can sign one; and how to do more than look."""
    if settings.jwt_secret is None:
        return [f"dashboard: {address}/dashboard"]
    code = new_login_code(settings.jwt_secret.get_secret_value(), now=time.time())
    minutes = LOGIN_CODE_TTL_S // 60
    return [
        f"dashboard: {address}/dashboard/login?code={code} (logs in once, within {minutes} minutes, to look)",
        f"to release locks by force, log in with what this prints: {_command()} token --user 1 --scope operator",
    ]


def _command() -> str:
    """What to type for `chargeonce` here: after `make run` it is in .venv/bin, which is not on the PATH."""
    beside = Path(sys.executable).with_name("chargeonce")
    return "chargeonce" if shutil.which("chargeonce") or not beside.exists() else os.path.relpath(beside)


def _address(settings: Settings, port: int) -> str:
    host = settings.host
    if host in ANY_ADDRESS:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

"""Builds the clients, the locker and the database of one instance, and hands them to the handlers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

import orjson
import structlog
from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Middleware
from prometheus_client import Histogram

from db.charging import ANSWER_GRACE_S, Charges
from db.database import Database, DatabaseLimits
from db.decisions import Payer, Rules
from db.waiting import bound_waits
from locks import Locker, LockStoreDown
from locks.contention import Contention
from locks.publishing import Publisher
from service.auditing import Auditing
from service.callers import Callers
from service.charged import ChargedAppointments
from service.charging import Charging
from service.dashboard.formatting import plural
from service.dashboard.looking import Looking
from service.entering import Entering, appointment_of, lock_name
from service.forcing import Forcing
from service.gauges import Sampling
from service.handlers.appointments import AppointmentHandlers
from service.handlers.contention import ContentionHandlers
from service.handlers.coupons import CouponHandlers
from service.handlers.dashboard import DashboardHandlers
from service.handlers.entries import EntryHandlers
from service.handlers.forcing import ForcingHandlers
from service.handlers.headers import header_of
from service.handlers.http import BODY_WAIT_S, IN_FLIGHT, MAX_FORM_FIELDS, USER_ID
from service.handlers.leases import LeaseHandlers
from service.handlers.running import RunningHandlers
from service.handlers.security_headers import secure
from service.health import Health
from service.jwt_keys import KeyFiles, Keys, OneKey, public_key, secret_key
from service.listeners import NOBODY, Listeners
from service.lists import Lists
from service.lock_store_health import LockStoreHealth
from service.observe import Metrics, Observer
from service.openapi import openapi, status_of_codes
from service.outage import OutageRule, ProceedOnRowLock, RefuseWithoutLock
from service.output import dropped_lines
from service.participants import KnownParticipants
from service.problems import is_bug, new_request_id, problem_answer, problem_of
from service.reading import Reading
from service.refusals import Draining, MethodNotAllowed, NotFound, TooLarge
from service.routes import ENTRIES, Route, routes
from service.rtc_token import RoomTokenMint
from service.scraping import ReadMetrics, no_metrics
from service.sessions import Sessions
from service.settings import Settings
from service.shares import ANYONE, Limit, callers_most
from service.spent import SpentTokens
from service.tracing import Tracing

log = structlog.get_logger("chargeonce.http")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
HEALTH_THREADS = SESSION_THREADS = 1

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Traffic:
    """What is under way, and whether new work is taken."""

    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # what would wait or go on for long ends with it


@dataclass(frozen=True, slots=True)
class Instance:
    """One running instance: its HTTP application, and what tells when it may stop."""

    app: web.Application
    traffic: Traffic

    async def drain(self, wait_s: float) -> bool:
        """Takes no new work and waits for what is under way; False when it took longer."""
        self.traffic.draining = True
        self.traffic.stopping.set()
        if self.traffic.in_flight == 0:
            return True
        self.traffic.idle.clear()
        try:
            await asyncio.wait_for(self.traffic.idle.wait(), wait_s)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def running_instance(
    settings: Settings, *, instance_id: str, listeners: Listeners = NOBODY, read_metrics: ReadMetrics = no_metrics
) -> AsyncIterator[Instance]:
    """An instance with everything it needs, from settings whose addresses and secrets are all there."""
    metrics = Metrics(status_of_codes())
    dropped_lines.tell(metrics.lines_dropped.inc)
    observer = Observer(metrics, max_resources=settings.max_metric_resources)
    # Threads and connections of their own for each kind of work, so that no kind can take those of another.
    database = _database(settings, connections=settings.read_threads + HEALTH_THREADS + SESSION_THREADS)
    health_threads = ThreadPoolExecutor(HEALTH_THREADS, "health")
    read_with = partial(
        Reading,
        database,
        max_waiting=settings.max_waiting_charges,
        caller_share=settings.caller_share,
        timeout_s=settings.charge_timeout_s,
    )
    reading = read_with(name="read", threads=settings.read_threads)
    reading_sessions = read_with(name="sessions", threads=SESSION_THREADS)
    all_listeners = listeners.after(Listeners(observer.on_lock_event, observer.on_charge_event))
    locker = _locker(settings, instance_id, all_listeners)
    bound_waits(settings.statement_timeout_s + ANSWER_GRACE_S)
    charges = _charges(settings, all_listeners)
    charging = _charging(settings, charges, observer)
    charged = _charged(settings, charges, locker, observer)
    participants = KnownParticipants(charges, size=settings.charged_cache_size)
    health = Health(database, health_threads, locker, metrics, interval_s=settings.health_interval_s)
    observer.on_store_lost = health.lock_store.lost
    database.on_lost = charges.on_lost = health.database_lost
    traffic = Traffic()
    tracing = None
    if settings.tracing != "off":
        tracing = Tracing(instance_id=instance_id, sample_ratio=settings.tracing_sample_ratio)
    publisher = Publisher(
        locker,
        observer.seen,
        version=version("chargeonce"),
        is_draining=lambda: traffic.draining,
        also_held=lambda: locker.lending.all,
    )
    contention = Contention(locker)
    await locker.open()
    await locker.up_within(settings.command_timeout_s)
    await health.start()
    await publisher.start()
    sampling = Sampling(metrics.sampled, locker, charging, reading, label_of=observer.resource_of, settings=settings)
    sampling.start()
    auditing = _auditing(settings, locker, metrics)
    auditing.start()
    try:
        entering = _entering(settings, locker, charging, charged, participants, observer)
        app = _application(
            settings,
            instance_id,
            traffic,
            entering,
            reading,
            SpentTokens(reading_sessions),
            health,
            observer,
            locker,
            contention,
            auditing,
            tracing,
            read_metrics,
        )
        yield Instance(app, traffic)
    finally:
        await sampling.stop()
        await auditing.stop()
        await health.stop()
        await publisher.stop()
        await locker.close()
        await charged.close()
        await participants.close()
        await charging.close()
        reading.close()
        reading_sessions.close()
        health_threads.shutdown(wait=False, cancel_futures=True)
        database.close()
        if tracing is not None:
            await tracing.close()


def callers(settings: Settings) -> Callers:
    """Who may call. Raises ValueError, in one line, for keys that cannot serve."""
    return Callers(
        _jwt_keys(settings),
        cache_size=settings.caller_cache_size,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        leeway_s=settings.jwt_leeway_s,
    )


def _jwt_keys(settings: Settings) -> Keys:
    if settings.jwt_public_keys is not None:
        return KeyFiles(settings.jwt_public_keys)
    if settings.jwt_public_key is not None:
        return OneKey(public_key(settings.jwt_public_key.get_secret_value()))
    assert settings.jwt_secret is not None
    return OneKey(secret_key(settings.jwt_secret.get_secret_value()))


def _jwt_secret(settings: Settings) -> str | None:
    return settings.jwt_secret.get_secret_value() if settings.jwt_secret else None


def _application(
    settings: Settings,
    instance_id: str,
    traffic: Traffic,
    entering: Entering,
    reading: Reading,
    spent: SpentTokens,
    health: Health,
    observer: Observer,
    locker: Locker,
    contention: Contention,
    auditing: Auditing,
    tracing: Tracing | None,
    read_metrics: ReadMetrics,
) -> web.Application:
    known_callers = callers(settings)
    assert settings.agora_app_id is not None
    running = RunningHandlers(
        health,
        read_metrics,
        instance_id=instance_id,
        needs_lock_store=settings.lock_outage == "refuse",
        is_draining=lambda: traffic.draining,
    )
    forcing = Forcing(locker, reading)
    lists = Lists(contention)
    limit = partial(Limit, caller_share=settings.caller_share)
    streams = limit("streams", settings.max_streams)
    table = routes(
        EntryHandlers(entering, known_callers, observer, app_id=settings.agora_app_id, tracing=tracing),
        AppointmentHandlers(reading, known_callers, entry_limit=settings.max_listed_entries),
        CouponHandlers(reading, known_callers),
        ContentionHandlers(contention, lists, locker, known_callers, streams=streams, stopping=traffic.stopping),
        LeaseHandlers(
            locker, known_callers, waits=limit("waits for leases", settings.lease_waits), stopping=traffic.stopping
        ),
        ForcingHandlers(forcing, known_callers),
        running,
    )
    dashboard = DashboardHandlers(
        Looking(
            contention,
            lists,
            locker,
            reading,
            audit=lambda: auditing.last,
            down_since=lambda: health.down_since,
            instance_id=instance_id,
            entry_limit=settings.max_listed_entries,
        ),
        Sessions(known_callers, spent, secret=_jwt_secret(settings)),
        forcing,
        streams=streams,
        exports=limit("exports", settings.max_exports),
        stopping=traffic.stopping,
    )
    pages = dashboard.routes()
    running.openapi_json = orjson.dumps(openapi([*table, dashboard.described()]))
    in_flight = limit("requests", settings.max_requests_in_flight)
    edge = _edge(traffic, in_flight, observer, health.lock_store, [*table, *pages], settings, tracing)
    app = web.Application(
        middlewares=[edge] if tracing is None else [_traced(tracing, table), edge],
        client_max_size=settings.max_body_bytes,
        client_max_fields=MAX_FORM_FIELDS,
    )
    app[IN_FLIGHT] = in_flight
    app[BODY_WAIT_S] = settings.body_wait_s
    app.on_response_prepare.append(secure)
    for route in (*table, *pages):
        # aiohttp's own pattern takes no braces: a name with one is malformed, and not a route that is missing.
        path = re.sub(r"{(\w+)}", r"{\1:[^/]+}", route.path)
        if route.method == "GET":
            app.router.add_get(path, route.handler, expect_handler=_expected)  # and HEAD
        else:
            app.router.add_route(route.method, path, route.handler, expect_handler=_expected)
    return app


def _edge(
    traffic: Traffic,
    in_flight: Limit,
    observer: Observer,
    lock_store: LockStoreHealth,
    table: Iterable[Route],
    settings: Settings,
    tracing: Tracing | None,
) -> Middleware:
    """The outermost layer: request ids, limits, draining, and refusals into problems."""
    public = {route.path for route in table if route.public}
    open_paths = {route.path for route in table if route.for_anyone}
    strangers = Limit("requests of nobody known", settings.max_unauthenticated, caller_share=1.0)
    metrics, tally = observer.metrics, observer.tally
    seen: dict[tuple[str, str, int], Histogram] = {}

    async def bounded(request: web.Request, handler: Next, path: str | None) -> web.StreamResponse:
        if (length := request.content_length) is not None and length > settings.max_body_bytes:
            raise TooLarge(f"the body is larger than {plural(settings.max_body_bytes, 'byte')}")
        if path is None or path in public:
            return await handler(request)
        if traffic.draining:
            raise Draining("this instance is about to stop")
        traffic.in_flight += 1
        try:
            return await (for_anyone(request, handler) if path in open_paths else handler(request))
        finally:
            if USER_ID in request:
                in_flight.leave(request[USER_ID])
            traffic.in_flight -= 1
            if traffic.in_flight == 0:
                traffic.idle.set()

    async def for_anyone(request: web.Request, handler: Next) -> web.StreamResponse:
        with strangers.place(ANYONE):
            return await handler(request)

    @web.middleware
    async def edge(request: web.Request, handler: Next) -> web.StreamResponse:
        started_at_s = time.perf_counter()
        request_id = request["id"] = _request_id(request)
        resource = request.match_info.route.resource
        path = None if resource is None else resource.canonical
        try:
            response = await bounded(request, handler, path)
        except Exception as error:
            if isinstance(error, LockStoreDown):
                lock_store.failed(error)
            response = _refused(_translated(error), request_id, request.method, path, tracing)
        response.headers["X-Request-Id"] = request_id
        if traffic.draining:
            response.force_close()
        # Only routes and methods that are ours become labels, not what a client makes up.
        labels = (request.method, path, response.status) if path else ("other", "other", response.status)
        series = seen.get(labels)
        if series is None:
            series = seen[labels] = metrics.request_seconds.labels(*labels)
        tally.observe(series, time.perf_counter() - started_at_s)
        return response

    for status in (200, 201):  # of the main job; every other series begins with its first use
        metrics.request_seconds.labels("POST", ENTRIES, status)
    return edge


def _traced(tracing: Tracing, table: Iterable[Route]) -> Middleware:
    """Around the edge: a span for each request of a route, but none for probes and scrapes."""
    public = {route.path for route in table if route.public}

    @web.middleware
    async def traced(request: web.Request, handler: Next) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is None or resource.canonical in public:
            return await handler(request)
        answer: web.StreamResponse = await tracing.request(
            request.method, resource.canonical, request.headers, lambda: handler(request)
        )
        return answer

    return traced


def _refused(error: Exception, request_id: str, method: str, path: str | None, tracing: Tracing | None) -> web.Response:
    problem = problem_of(error)
    if tracing is not None:
        tracing.refused(problem.code, problem.status)
    if is_bug(error):
        log.error("request failed", request_id=request_id, method=method, route=path, exc_info=error)
    return problem_answer(error, request_id)


def _translated(error: Exception) -> Exception:
    """aiohttp's own refusals in our words."""
    match error:
        case web.HTTPNotFound():
            return NotFound("there is no such route")
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowed(error.method, sorted(error.allowed_methods))
        case web.HTTPRequestEntityTooLarge():
            return TooLarge("the body is too large")
        case _:
            return error


async def _expected(request: web.Request) -> None:
    """Tells a client that waits for it to send its body; whatever else is expected is not refused, as aiohttp would."""
    if request.version == HttpVersion11 and request.headers["Expect"].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


def _request_id(request: web.Request) -> str:
    given = header_of(request, "X-Request-Id")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def _database(settings: Settings, *, connections: int) -> Database:
    assert settings.database_url is not None
    return Database(
        settings.database_url.get_secret_value(),
        limits=_database_limits(settings, connections=connections),
    )


def _database_limits(settings: Settings, *, connections: int) -> DatabaseLimits:
    return DatabaseLimits(
        pool_size=connections,
        connect_timeout_s=settings.database_connect_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        row_lock_timeout_s=settings.row_lock_timeout_s,
        idle_in_transaction_timeout_s=settings.idle_in_transaction_timeout_s,
    )


def _locker(settings: Settings, instance_id: str, listeners: Listeners) -> Locker:
    assert settings.redis_url is not None
    return Locker(
        settings.redis_url.get_secret_value(),
        instance_id=instance_id,
        command_timeout_s=settings.command_timeout_s,
        max_waiters=settings.max_waiters,
        max_waiters_per_lock=settings.max_waiters_per_lock,
        max_leases=settings.max_leases,
        max_leases_per_borrower=callers_most(settings.max_leases, settings.caller_share),
        listener=listeners.on_lock_event,
    )


def _auditing(settings: Settings, locker: Locker, metrics: Metrics) -> Auditing:
    assert settings.database_url is not None
    return Auditing(
        _database(settings, connections=1),
        locker,
        metrics.audit,
        database_url=settings.database_url.get_secret_value(),
        interval_s=settings.audit_interval_s,
        statement_timeout_s=settings.audit_statement_timeout_s,
    )


def _charges(settings: Settings, listeners: Listeners) -> Charges:
    assert settings.database_url is not None
    return Charges(
        settings.database_url.get_secret_value(),
        Rules(Payer(settings.payer), settings.default_coupon_count),
        limits=_database_limits(settings, connections=1),
        settle_within_s=settings.charge_timeout_s / 2,
        listener=listeners.on_charge_event,
    )


def _charging(settings: Settings, charges: Charges, observer: Observer) -> Charging:
    return Charging(
        charges,
        lanes=settings.charge_lanes,
        solo_lanes=settings.charge_solo_lanes,
        repeat_lanes=settings.charge_repeat_lanes,
        batch_size=settings.charge_batch_size,
        places=Limit("charges", settings.max_waiting_charges, caller_share=settings.caller_share),
        timeout_s=settings.charge_timeout_s,
        on_batch=observer.metrics.batch_size.observe,
        on_entries=observer.on_entries,
    )


def _charged(settings: Settings, charges: Charges, locker: Locker, observer: Observer) -> ChargedAppointments:
    charged = ChargedAppointments(
        charges,
        size=settings.charged_cache_size,
        on_found=lambda appointment_id: locker.dismiss(lock_name(appointment_id)),
    )

    def look(waited_for: str) -> None:
        appointment_id = appointment_of(waited_for)
        if appointment_id is not None:
            charged.look(appointment_id)

    observer.on_waiting = look
    return charged


def _entering(
    settings: Settings,
    locker: Locker,
    charging: Charging,
    charged: ChargedAppointments,
    participants: KnownParticipants,
    observer: Observer,
) -> Entering:
    assert settings.agora_app_id is not None
    assert settings.agora_app_certificate is not None
    outage: OutageRule = RefuseWithoutLock()
    if settings.lock_outage == "proceed":
        outage = ProceedOnRowLock(
            concurrent=settings.outage_charges, waiting=settings.outage_waiting, caller_share=settings.caller_share
        )
    mint = RoomTokenMint(
        settings.agora_app_id, settings.agora_app_certificate.get_secret_value(), settings.room_token_ttl_s
    )
    return Entering(
        locker,
        charging,
        charged,
        participants,
        mint,
        outage,
        lease_ttl_s=settings.lease_ttl_s,
        lock_wait_s=settings.lock_wait_s,
        on_stale_holder=observer.on_stale_holder,
    )

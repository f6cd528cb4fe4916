"""Lock and charge events to metrics and logs. A lock's name is never a label: `resource` is its part before the `:`."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import Counter as Multiset
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal, TextIO, TypeVar, cast

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from db.decisions import Outcome
from db.events import ChargeEvent, Committed, Settled
from locks import LossReason, events
from locks.events import LockEvent, WakeSource
from locks.keys import resource_of
from locks.seen import Seen
from service.gauges import AuditGauges, SampledGauges
from service.pending_charge import TimedEntry
from service.tally import Tally, observe_all

APPOINTMENT = "appointment"
OTHER = "other"
OWN = "chargeonce:"  # begins the names of the service's own locks, whose coming and going is no user's contention
LONGEST_RESOURCE = 64
DEPENDENCIES = ("database", "lock_store")
LAYERS = ("lock", "is_consume", "row_lock", "fence")
STAGES = ("lock", "queue", "transaction")
GAVE_UP_OUTCOMES = ("busy", "cancelled", "dismissed", "store-down")
ACQUIRE_OUTCOMES = ("acquired", *GAVE_UP_OUTCOMES)

_FINE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

log = structlog.get_logger("chargeonce")
trace_context: Callable[[], dict[str, str]] | None = None  # set where tracing is on: trace and span id for log lines


class Metrics:
    """The series that are told. There with 0 from the start is each label set that an alert or the shipped board asks
    for, and all of an appointment's lock; those that clients can make many of begin with their first use."""

    def __init__(self, refusal_codes: Iterable[str]) -> None:
        # Not registered anywhere: what /metrics shows is read from the files that all workers of this serve write.
        private = CollectorRegistry()
        self.charges = Counter("chargeonce_charges", "Entries by what became of them", ["outcome"], registry=private)
        self.charge_seconds = Histogram(
            "chargeonce_charge_seconds", "Time of an entry by stage", ["stage"], registry=private, buckets=_FINE_S
        )
        self.batch_size = Histogram(
            "chargeonce_charge_batch_size",
            "Charges that share a transaction",
            registry=private,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.duplicates_prevented = Counter(
            "chargeonce_duplicates_prevented",
            "Entries that found the appointment charged, by the layer that kept them from charging again",
            ["layer"],
            registry=private,
        )
        self.lock_acquire = Counter(
            "chargeonce_lock_acquire", "Ends of attempts to acquire", ["resource", "outcome"], registry=private
        )
        self.lock_wait_seconds = Histogram(
            "chargeonce_lock_wait_seconds",
            "Time until an attempt to acquire ended",
            ["resource", "outcome"],
            registry=private,
            buckets=_FINE_S,
        )
        self.lock_held_seconds = Histogram(
            "chargeonce_lock_held_seconds", "Time a lease was held", ["resource"], registry=private, buckets=_FINE_S
        )
        self.lock_handoff_seconds = Histogram(
            "chargeonce_lock_handoff_seconds",
            "Time from a handoff's message to its confirmed lease",
            registry=private,
            buckets=_FINE_S,
        )
        self.lock_waiters = Gauge(
            "chargeonce_lock_waiters", "Callers in a queue", ["resource"], registry=private, multiprocess_mode="livesum"
        )
        self.lock_holders = Gauge(
            "chargeonce_lock_holders", "Leases held", ["resource"], registry=private, multiprocess_mode="livesum"
        )
        self.leases_lost = Counter(
            "chargeonce_lock_leases_lost", "Leases lost", ["resource", "reason"], registry=private
        )
        self.takeovers = Counter(
            "chargeonce_lock_takeovers", "Leases acquired after their predecessor lapsed", registry=private
        )
        self.wakeups = Counter("chargeonce_lock_wakeups", "Waiters woken, by what", ["source"], registry=private)
        self.forced_releases = Counter(
            "chargeonce_lock_forced_releases", "Locks released by an operator", registry=private
        )
        self.dependency_up = Gauge(
            "chargeonce_dependency_up",
            "1 while every worker reaches it",
            ["dependency"],
            registry=private,
            multiprocess_mode="livemin",
        )
        self.transaction_seconds = Histogram(
            "chargeonce_db_transaction_seconds", "Time of a charging transaction", registry=private, buckets=_FINE_S
        )
        self.loop_lag_seconds = Histogram(
            "chargeonce_event_loop_lag_seconds", "How late the event loop was", registry=private, buckets=_FINE_S
        )
        self.request_seconds = Histogram(
            "chargeonce_http_server_request_duration_seconds",
            "Time of HTTP requests",
            ["http_request_method", "http_route", "http_response_status_code"],
            registry=private,
            buckets=_FINE_S,
        )
        self.fenced = Counter(
            "chargeonce_fencing_refused", "Charges refused: the row had seen a newer fencing token", registry=private
        )
        self.lines_dropped = log_lines_dropped(private)
        self.sampled = SampledGauges(private)
        self.audit = AuditGauges(private)
        self._show_all_from_the_start(refusal_codes)

    def _show_all_from_the_start(self, refusal_codes: Iterable[str]) -> None:
        for outcome in (*Outcome, *refusal_codes, "internal-error"):
            self.charges.labels(str(outcome))
        for stage in STAGES:
            self.charge_seconds.labels(stage)
        for layer in LAYERS:
            self.duplicates_prevented.labels(layer)
        for outcome in ACQUIRE_OUTCOMES:
            self.lock_acquire.labels(APPOINTMENT, outcome)
            self.lock_wait_seconds.labels(APPOINTMENT, outcome)
        self.lock_held_seconds.labels(APPOINTMENT)
        self.lock_waiters.labels(APPOINTMENT)
        self.lock_holders.labels(APPOINTMENT)
        for reason in LossReason:
            self.leases_lost.labels(APPOINTMENT, str(reason))
        for source in WakeSource:
            if source is not WakeSource.NONE:
                self.wakeups.labels(str(source))
        for dependency in DEPENDENCIES:
            self.dependency_up.labels(dependency)
        self.sampled.show_from_the_start(APPOINTMENT)


Series = TypeVar("Series")


class _ByOutcome(dict[str, Series]):
    """Series by outcome, each looked up once, and there from its first use."""

    def __init__(self, series_of: Callable[[str], Series]) -> None:
        self._series_of = series_of

    def __missing__(self, outcome: str) -> Series:
        series = self[outcome] = self._series_of(outcome)
        return series


class _ResourceSeries:
    """The series of one resource, looked up once: `labels()` costs more than counting does.

    Those that alerts compare are there from the resource's first event.
    """

    def __init__(self, metrics: Metrics, resource: str) -> None:
        self.resource = resource
        metrics.sampled.show_from_the_start(resource)
        self.ended = _ByOutcome(lambda outcome: metrics.lock_acquire.labels(resource, outcome))
        self.waited_s = _ByOutcome(lambda outcome: metrics.lock_wait_seconds.labels(resource, outcome))
        self.held_s = metrics.lock_held_seconds.labels(resource)
        self.holders = metrics.lock_holders.labels(resource)
        self.waiters = metrics.lock_waiters.labels(resource)
        self.lost = {reason: metrics.leases_lost.labels(resource, reason.value) for reason in LossReason}


class Observer:
    """Listens to locks/, db/ and the charging queue, counts, and logs what somebody may have to act on."""

    def __init__(self, metrics: Metrics, *, max_resources: int) -> None:
        """`max_resources`: how many have series of their own, each of up to a hundred lines."""
        self.metrics = metrics
        self._max_resources = max_resources
        self.on_waiting: Callable[[str], None] | None = (
            None  # hears the name of each lock that somebody has to wait for
        )
        self.on_store_lost: Callable[[str], None] | None = None  # hears that a connection to the lock store was lost
        self.tally = Tally()
        self.seen = Seen()
        self._by_resource = {APPOINTMENT: _ResourceSeries(metrics, APPOINTMENT)}
        self._entered = {outcome: metrics.charges.labels(outcome.value) for outcome in Outcome}
        self._stages = [metrics.charge_seconds.labels(stage) for stage in STAGES]
        self._duplicates = {layer: metrics.duplicates_prevented.labels(layer) for layer in LAYERS}

    def on_entries(self, entered: Sequence[TimedEntry]) -> None:
        """Entries of one batch that were let in; counted before their callers are answered."""
        for outcome, count in Multiset([timed.entry.outcome for timed in entered]).items():
            self._entered[outcome].inc(count)
            self.seen.count(f"charges:{outcome.value}", count)
        layers = [timed.guarded_by for timed in entered if timed.entry.outcome is Outcome.ALREADY_CHARGED]
        for layer, count in Multiset(layers).items():
            self._duplicates[layer].inc(count)
            self.seen.count(f"prevented:{layer}", count)
        seconds = zip(*[(timed.lock_wait_s, timed.queued_s, timed.transaction_s) for timed in entered], strict=True)
        for series, observed in zip(self._stages, seconds, strict=True):
            observe_all(series, observed)

    def on_refused(self, code: str, lock_name: str) -> None:
        """An entry was refused, by the problem's code."""
        self.metrics.charges.labels(code).inc()
        self.seen.count(f"charges:{code}")
        if code == "charge-unknown":
            self.seen.note("charge-unknown", lock_name)

    def on_stale_holder(self, lock_name: str, fencing_token: int | None) -> None:
        """A charge under this token was refused: the row had seen a newer one."""
        self.metrics.fenced.inc()
        self.seen.note("fenced", lock_name, fencing_token=fencing_token)

    def on_lock_event(self, event: LockEvent) -> None:
        """A listener for a Locker."""
        kind = event.__class__
        if kind is events.Acquired:  # the two that are nearly all, first
            acquired = cast(events.Acquired, event)
            if (series := self._series(acquired.name)) is not None:
                self._acquired(acquired, series)
                self.seen.on_acquired(acquired)
        elif kind is events.Released:
            released = cast(events.Released, event)
            if (series := self._series(released.name)) is not None:
                self._ended(released, series)
                self.seen.on_released(released)
        elif isinstance(event, events.Forced | events.StoreLost | events.StoreUp):
            self._told(event)
            self.seen.on_lock_event(event)
        elif kind is not events.Releasing and (series := self._series(event.name)) is not None:
            self._rare(event, series)
            self.seen.on_lock_event(event)

    def resource_of(self, name: str) -> str | None:
        """The label that a lock's events are counted under; None for the service's own."""
        series = self._series(name)
        return None if series is None else series.resource

    def _told(self, event: events.Forced | events.StoreLost | events.StoreUp) -> None:
        """What is told whichever lock it is about."""
        match event:
            case events.StoreLost():
                if self.on_store_lost is not None:
                    self.on_store_lost(event.reason)
            case events.Forced():
                self.metrics.forced_releases.inc()
                log.warning("lock released by force", lock=event.name, fencing_token=event.fencing_token)

    def _rare(self, event: LockEvent, series: _ResourceSeries) -> None:
        match event:
            case events.Waiting():
                self.tally.step(series.waiters)
                if self.on_waiting is not None:
                    self.on_waiting(event.name)
            case events.GaveUp():
                self._gave_up(event, series)
            case events.Lost():
                self._lost(event, series)
            case events.Unknown():
                log.warning("lease renewal unanswered", lock=event.name, fencing_token=event.fencing_token)
            case events.Exported():
                self._ended(event, series)
            case events.Adopted():
                self.tally.step(series.holders)

    def on_charge_event(self, event: ChargeEvent) -> None:
        """A listener for Charges."""
        match event:
            case Committed():
                self.metrics.transaction_seconds.observe(event.transaction_s)
            case Settled():
                log.warning(
                    "lost COMMIT settled", appointment_ids=event.appointment_ids, had_committed=event.had_committed
                )

    def _series(self, name: str) -> _ResourceSeries | None:
        """Where a lock's events are counted; None for the service's own, which are not."""
        resource = resource_of(name)
        series = self._by_resource.get(resource)
        if series is None:
            if name.startswith(OWN):
                return None
            # Clients make names up. Once there are so many, every new resource is "other", at each event of it alike;
            # one that is too long always is, and is not cut: two that begin alike would be one that nobody knows.
            is_one_too_many = len(self._by_resource) >= self._max_resources or len(resource) > LONGEST_RESOURCE
            if is_one_too_many and resource != OTHER:
                return self._series(OTHER)
            series = self._by_resource[resource] = _ResourceSeries(self.metrics, resource)
        return series

    def _acquired(self, event: events.Acquired, series: _ResourceSeries) -> None:
        tally = self.tally
        tally.step(series.ended["acquired"])
        tally.observe(series.waited_s["acquired"], event.waited_s)
        tally.step(series.holders)
        if event.queued:
            tally.step(series.waiters, -1)
        if event.wake_source is not WakeSource.NONE:
            tally.step(self.metrics.wakeups.labels(event.wake_source.value))
            if event.handoff_s is not None:
                tally.observe(self.metrics.lock_handoff_seconds, event.handoff_s)
        if event.takeover:
            self.metrics.takeovers.inc()
            log.warning("lock taken over", lock=event.name, fencing_token=event.fencing_token, waited_s=event.waited_s)

    def _ended(self, event: events.Released | events.Exported | events.Lost, series: _ResourceSeries) -> None:
        self.tally.step(series.holders, -1)
        self.tally.observe(series.held_s, event.held_s)

    def _gave_up(self, event: events.GaveUp, series: _ResourceSeries) -> None:
        self.tally.step(series.ended[event.outcome])
        self.tally.observe(series.waited_s[event.outcome], event.waited_s)
        if event.queued:
            self.tally.step(series.waiters, -1)

    def _lost(self, event: events.Lost, series: _ResourceSeries) -> None:
        series.lost[event.reason].inc()
        self._ended(event, series)
        log.warning(
            "lease lost",
            lock=event.name,
            fencing_token=event.fencing_token,
            reason=event.reason.value,
            held_s=event.held_s,
        )


def log_lines_dropped(registry: CollectorRegistry) -> Counter:
    """The series of lines that could not be written; the supervisor counts in it too."""
    return Counter(
        "chargeonce_log_lines_dropped", "Lines of output or log that could not be written", registry=registry
    )


class TickStream:
    """Writes the lines of one event loop tick at once; without a running loop, each line at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._lock = threading.Lock()

    def write(self, line: bytes) -> int:
        """Keeps the line until the tick ends."""
        with self._lock:
            self._lines.append(line)
            first = len(self._lines) == 1
        if first:
            try:
                asyncio.get_running_loop().call_soon(self._write_all)
            except RuntimeError:  # another thread, or no loop any more
                self._write_all()
        return len(line)

    def flush(self) -> None:
        """Nothing: the tick's end writes."""

    def _write_all(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        self._stream.write(b"".join(lines))
        self._stream.flush()


class EntryLog:
    """Logs what every entry logs: a line as structlog would make it, at a fifth of the price."""

    def info(self, event: str, **fields: Any) -> None:
        """A line with these fields."""
        if trace_context is not None and _json_lines is not None:
            fields |= trace_context()
        if _json_lines is None:
            log.info(event, **fields)
            return
        fields["event"], fields["level"], fields["timestamp"] = event, "info", datetime.now(UTC)
        _json_lines.write(orjson.dumps(fields, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))


_json_lines: TickStream | None = None  # where lines of level info go as JSON, where they do


def set_up_logs(level: str, format_: Literal["auto", "json", "console"], stream: TextIO | None = None) -> None:
    """One line an event on standard error, or on this stream: JSON when it is not a terminal."""
    global _json_lines
    stream = stream or sys.stderr
    as_json = format_ == "json" or (format_ == "auto" and not stream.isatty())
    lines = TickStream(stream.buffer) if as_json else None
    _json_lines = lines if level in ("debug", "info") else None
    shared: list[Any] = [
        _add_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, _as_json_line] if as_json else [structlog.dev.ConsoleRenderer()]
    )
    _bring_in_others(shared, last, stream)
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(cast(BinaryIO, lines))
        if lines is not None
        else structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )


def _bring_in_others(shared: list[Any], last: list[Any], stream: TextIO) -> None:
    """What libraries log through the standard library comes out in the same form, from warnings on."""

    def as_text(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        rendered = event
        for processor in last:
            rendered = processor(logger, method, rendered)
        return rendered.decode() if isinstance(rendered, bytes) else str(rendered)

    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, as_text]
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # What handlers raise is logged by our own edge; what is left to aiohttp's logger are clients that send nonsense.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def _add_trace(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if trace_context is not None:
        event.update(trace_context())
    return event


def _as_json_line(logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
    return orjson.dumps(event, default=str)

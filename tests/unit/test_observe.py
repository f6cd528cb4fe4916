"""What is counted of the locks' events, and what every entry logs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from db.charging import Entry
from db.decisions import Outcome
from locks import LossReason, events
from locks.events import LockEvent, WakeSource
from service import observe
from service.observe import LONGEST_RESOURCE, EntryLog, Metrics, Observer, set_up_logs
from service.openapi import status_of_codes
from service.pending_charge import TimedEntry
from service.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOCK = "appointment:42"
MOST: int = Settings.model_fields["max_metric_resources"].default
FIELDS: dict[str, Any] = {
    "request_id": "r-1",
    "appointment_id": 42,
    "user_id": 7,
    "outcome": "charged",
    "lock_wait_ms": 1.25,
    "queued_ms": 0.0,
    "transaction_ms": 3,
    "charged": False,
    "detail": 'umlauts äöü, quotes " and a line\nbreak',
    "nothing": None,
}


# Lock events


def test_a_lease_that_was_waited_for_is_counted_from_its_queue_to_its_release() -> None:
    waited = events.Acquired(LOCK, 1, 0.25, WakeSource.HANDOFF, queued=True, takeover=False, handoff_s=0.003)

    assert gained([events.Waiting(LOCK)]) == {("chargeonce_lock_waiters", "appointment"): 1}
    assert gained([events.Waiting(LOCK), waited]) == {
        ("chargeonce_lock_acquire_total", "acquired", "appointment"): 1,
        ("chargeonce_lock_wait_seconds_count", "acquired", "appointment"): 1,
        ("chargeonce_lock_wait_seconds_sum", "acquired", "appointment"): 0.25,
        ("chargeonce_lock_holders", "appointment"): 1,
        ("chargeonce_lock_wakeups_total", "handoff"): 1,
        ("chargeonce_lock_handoff_seconds_count",): 1,
        ("chargeonce_lock_handoff_seconds_sum",): 0.003,
    }
    released = events.Released(LOCK, 1, 0.5, still_ours=True, handed_over=False)
    ended = gained([events.Waiting(LOCK), waited, released])
    assert ("chargeonce_lock_holders", "appointment") not in ended
    assert ended["chargeonce_lock_held_seconds_count", "appointment"] == 1
    assert ended["chargeonce_lock_held_seconds_sum", "appointment"] == 0.5


def test_a_lease_that_was_free_woke_nobody_and_waited_in_no_queue() -> None:
    assert gained([acquired()]) == {
        ("chargeonce_lock_acquire_total", "acquired", "appointment"): 1,
        ("chargeonce_lock_wait_seconds_count", "acquired", "appointment"): 1,
        ("chargeonce_lock_holders", "appointment"): 1,
    }


def test_a_takeover_is_counted() -> None:
    taken = events.Acquired(LOCK, 1, 0.0, WakeSource.TIMER, queued=False, takeover=True, handoff_s=None)

    counts = gained([taken])

    assert counts["chargeonce_lock_takeovers_total",] == 1
    assert counts["chargeonce_lock_wakeups_total", "timer"] == 1
    assert ("chargeonce_lock_handoff_seconds_count",) not in counts


@pytest.mark.parametrize("outcome", observe.GAVE_UP_OUTCOMES)
def test_whoever_gives_up_leaves_the_queue_with_its_outcome(outcome: str) -> None:
    counts = gained([events.Waiting(LOCK), events.GaveUp(LOCK, 1.5, outcome, queued=True)])

    assert counts == {
        ("chargeonce_lock_acquire_total", outcome, "appointment"): 1,
        ("chargeonce_lock_wait_seconds_count", outcome, "appointment"): 1,
        ("chargeonce_lock_wait_seconds_sum", outcome, "appointment"): 1.5,
    }
    # Who had not been in the queue leaves none.
    assert ("chargeonce_lock_waiters", "appointment") not in gained([events.GaveUp(LOCK, 0.0, outcome, queued=False)])


@pytest.mark.parametrize("reason", list(LossReason))
def test_a_lost_lease_is_held_no_more_and_its_reason_is_counted(reason: LossReason) -> None:
    counts = gained([acquired(), events.Lost(LOCK, 1, 2.0, reason)])

    assert counts["chargeonce_lock_leases_lost_total", str(reason), "appointment"] == 1
    assert ("chargeonce_lock_holders", "appointment") not in counts
    assert counts["chargeonce_lock_held_seconds_sum", "appointment"] == 2.0


def test_an_exported_lease_is_held_no_more_and_an_adopted_one_is() -> None:
    exported = gained([acquired(), events.Exported(LOCK, 1, 2.0)])

    assert ("chargeonce_lock_holders", "appointment") not in exported
    assert exported["chargeonce_lock_held_seconds_sum", "appointment"] == 2.0
    assert gained([events.Adopted(LOCK, 1)]) == {("chargeonce_lock_holders", "appointment"): 1}


def test_a_forced_release_is_counted() -> None:
    assert gained([events.Forced(LOCK, 1)]) == {("chargeonce_lock_forced_releases_total",): 1}


def test_the_rest_is_logged_and_not_counted() -> None:
    silent: list[LockEvent] = [
        events.Extended(LOCK, 1),
        events.Unknown(LOCK, 1),
        events.StoreLost("gone"),
        events.StoreUp(),
    ]

    assert gained(silent) == {}


def test_the_services_own_locks_are_nobodys_contention_but_a_forced_release_is_told() -> None:
    own = "chargeonce:audit/1"
    comes_and_goes: list[LockEvent] = [
        acquired(own),
        events.Released(own, 1, 2.0, still_ours=True, handed_over=False),
        events.GaveUp(own, 0.0, "busy", queued=False),
        events.Lost(own, 1, 2.0, LossReason.EXPIRED),
        events.Forced(own, 1),
    ]
    observer = Observer(Metrics([]), max_resources=MOST)
    before = samples(observer.metrics)

    for event in comes_and_goes:
        observer.on_lock_event(event)
    seen = observer.seen.take()

    assert difference(before, samples(observer.metrics)) == {("chargeonce_lock_forced_releases_total",): 1}
    assert observer.resource_of(own) is None
    assert (seen.counts, seen.wait.count, seen.hold.count) == ({"forced": 1}, 0, 0)
    assert [incident.kind for incident in seen.incidents] == ["forced"]


def test_each_resource_has_its_own_series_and_no_lock_has() -> None:
    counts = gained([acquired("a:1"), acquired("a:2"), acquired("b:1"), acquired("plain")])

    assert counts["chargeonce_lock_holders", "a"] == 2
    assert counts["chargeonce_lock_holders", "b"] == 1
    assert counts["chargeonce_lock_holders", "plain"] == 1
    assert not any("1" in label for _, *labels in counts for label in labels)


def test_clients_that_make_up_names_make_no_more_than_a_dozen_resources_and_their_gauges_come_back_to_zero() -> None:
    names = [f"made-up-{number}:1" for number in range(300)]
    ended = [events.Released(name, 1, 0.01, still_ours=True, handed_over=False) for name in names]

    held = gained([acquired(name) for name in names] + [acquired()])
    over = gained([*[acquired(name) for name in names], *ended])

    holders = {labels[0]: count for (name, *labels), count in held.items() if name == "chargeonce_lock_holders"}
    assert len(holders) == MOST + 1
    assert (sum(holders.values()), holders["appointment"], holders["other"]) == (301, 1, 300 - MOST + 1)
    assert not any(name == "chargeonce_lock_holders" for name, *_ in over)


def test_a_resource_of_a_long_name_is_other_and_takes_no_place() -> None:
    longest, longer = "x" * LONGEST_RESOURCE, "x" * (LONGEST_RESOURCE + 1)
    beside = [f"{number}{longer}:1" for number in range(300)]

    counts = gained([acquired(name) for name in (*beside, f"{longer}:1", longer, f"{longest}:1", "short:1")])

    holders = {labels[0]: count for (name, *labels), count in counts.items() if name == "chargeonce_lock_holders"}
    assert holders == {"other": 302, longest: 1, "short": 1}


def test_a_workers_metrics_stay_below_15_kb_a_resource_whatever_names_clients_make_up() -> None:
    observer = Observer(Metrics(status_of_codes()), max_resources=MOST)
    names = [f"{number:04}-".ljust(length, "x") for number in range(500) for length in (LONGEST_RESOURCE, 150, 200)]

    for name in names:
        observer.on_lock_event(acquired(name))
        observer.on_lock_event(events.Released(name, 1, 0.01, still_ours=True, handed_over=False))
        for outcome in ("busy", "cancelled", "store-down"):  # whatever a lease over HTTP may meet
            observer.on_lock_event(events.GaveUp(name, 1.5, outcome, queued=False))

    assert len(told(observer.metrics)) < MOST * 15_000


def test_a_crowd_of_events_over_several_ticks_adds_up() -> None:
    released = events.Released(LOCK, 1, 0.01, still_ours=True, handed_over=True)

    async def crowd(observer: Observer) -> None:
        for _ in range(20):
            for _ in range(10):
                observer.on_lock_event(acquired())
                observer.on_lock_event(released)
            await asyncio.sleep(0)
        observer.on_lock_event(acquired())

    observer = Observer(Metrics([]), max_resources=MOST)
    before = samples(observer.metrics)
    asyncio.run(crowd(observer))
    counts = difference(before, samples(observer.metrics))

    assert counts["chargeonce_lock_acquire_total", "acquired", "appointment"] == 201
    assert counts["chargeonce_lock_held_seconds_count", "appointment"] == 200
    assert counts["chargeonce_lock_holders", "appointment"] == 1


def test_whoever_looks_for_charges_hears_the_name_that_is_waited_for() -> None:
    observer, heard = Observer(Metrics([]), max_resources=MOST), list[str]()
    observer.on_waiting = heard.append

    observer.on_lock_event(events.Waiting(LOCK))
    observer.on_lock_event(acquired("appointment:43"))

    assert heard == [LOCK]


# Entries


def test_entries_are_counted_by_outcome_and_stage() -> None:
    observer = Observer(Metrics(["overloaded"]), max_resources=MOST)
    before = samples(observer.metrics)

    observer.on_entries(
        [
            TimedEntry(Entry(Outcome.CHARGED, None, NOW), "lock", 0.5, 0.25, 0.125),
            TimedEntry(Entry(Outcome.ALREADY_CHARGED, None, NOW), "lock", 0.0, 0.25, 0.125),
            TimedEntry(Entry(Outcome.CHARGED, None, NOW), "lock", 1.0, 0.25, 0.125),
        ]
    )

    assert difference(before, samples(observer.metrics)) == {
        ("chargeonce_charges_total", "charged"): 2,
        ("chargeonce_charges_total", "already_charged"): 1,
        ("chargeonce_charge_seconds_count", "lock"): 3,
        ("chargeonce_charge_seconds_sum", "lock"): 1.5,
        ("chargeonce_charge_seconds_count", "queue"): 3,
        ("chargeonce_charge_seconds_sum", "queue"): 0.75,
        ("chargeonce_charge_seconds_count", "transaction"): 3,
        ("chargeonce_charge_seconds_sum", "transaction"): 0.375,
        ("chargeonce_duplicates_prevented_total", "lock"): 1,
    }


# What every entry logs


@pytest.fixture
def own_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logs that a test may set up: a logger keeps for ever what it found at its first use."""
    handlers, level = logging.root.handlers[:], logging.root.level
    monkeypatch.setattr(observe, "log", structlog.get_logger("chargeonce"))
    monkeypatch.setattr(observe, "_json_lines", None)
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.getLogger("aiohttp.server").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("own_logs")
def test_the_line_of_an_entry_is_the_one_that_structlog_would_make() -> None:
    text, lines = text_stream()
    set_up_logs("info", "json", text)

    EntryLog().info("entry", **FIELDS)
    structlog.get_logger("chargeonce.entries").info("entry", **FIELDS)

    ours, theirs = [json.loads(line) for line in lines()]
    assert ours.keys() == theirs.keys()
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    told = [datetime.fromisoformat(line.pop("timestamp")) for line in (ours, theirs)]
    assert ours == theirs == {**FIELDS, "event": "entry", "level": "info"}
    assert all(time.utcoffset() == timedelta(0) for time in told)
    assert abs(told[1] - told[0]) < timedelta(minutes=1)


@pytest.mark.usefixtures("own_logs")
def test_the_times_of_both_are_spelt_alike() -> None:
    text, lines = text_stream()
    set_up_logs("info", "json", text)

    EntryLog().info("entry")
    structlog.get_logger("chargeonce.entries").info("entry")

    ours, theirs = [json.loads(line)["timestamp"] for line in lines()]
    assert ours.endswith("Z")
    assert theirs.endswith("Z")


@pytest.mark.usefixtures("own_logs")
def test_the_lines_of_one_tick_come_out_in_their_order_when_it_ends() -> None:
    text, lines = text_stream()
    set_up_logs("info", "json", text)

    async def log_some() -> int:
        for number in range(3):
            EntryLog().info("entry", number=number)
            structlog.get_logger().info("other", number=number)
        before = len(lines())
        await asyncio.sleep(0)
        return before

    assert asyncio.run(log_some()) == 0
    assert [json.loads(line)["number"] for line in lines()] == [0, 0, 1, 1, 2, 2]


@pytest.mark.usefixtures("own_logs")
@pytest.mark.parametrize("level", ["warning", "error"])
def test_above_its_level_it_logs_nothing(level: str) -> None:
    text, lines = text_stream()
    set_up_logs(level, "json", text)

    EntryLog().info("entry", **FIELDS)

    assert lines() == []


@pytest.mark.usefixtures("own_logs")
def test_for_a_console_it_goes_through_structlog() -> None:
    text, lines = text_stream()
    set_up_logs("info", "console", text)

    EntryLog().info("entry", appointment_id=42)
    text.flush()

    (line,) = lines()
    assert "entry" in line
    assert "appointment_id" in line
    assert "42" in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)


@pytest.mark.usefixtures("own_logs")
def test_a_terminal_is_a_console_unless_told_otherwise() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        set_up_logs("info", "auto", terminal)
        EntryLog().info("entry", appointment_id=42)
        terminal.flush()
        shown = os.read(master, 4096).decode()
    os.close(master)

    assert "appointment_id" in shown
    assert not shown.startswith("{")


# Helpers

Samples = dict[tuple[str, ...], float]


def acquired(name: str = LOCK) -> events.Acquired:
    """A lease that was there at once."""
    return events.Acquired(name, 1, 0.0, WakeSource.NONE, queued=False, takeover=False, handoff_s=None)


def gained(heard: Sequence[LockEvent]) -> Samples:
    """By how much these events change which samples, buckets aside."""
    observer = Observer(Metrics([]), max_resources=MOST)
    before = samples(observer.metrics)
    for event in heard:
        observer.on_lock_event(event)
    return difference(before, samples(observer.metrics))


def samples(metrics: Metrics) -> Samples:
    """Every sample by its name and its labels' values, the labels in the order of their names."""
    return {
        (sample.name, *[value for _, value in sorted(sample.labels.items())]): sample.value
        for metric in all_of(metrics)
        for family in metric.collect()
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def told(metrics: Metrics) -> str:
    """What a scrape would say of them; of processes that count in files nobody tells when a series was created."""
    text = ""
    for metric in (*all_of(metrics), *all_of(metrics.sampled), *all_of(metrics.audit)):
        registry = CollectorRegistry()
        registry.register(metric)
        text += generate_latest(registry).decode()
    return "".join(line for line in text.splitlines(keepends=True) if "_created" not in line)


def all_of(holder: object) -> Iterator[Counter | Gauge | Histogram]:
    """The series that are its attributes."""
    return (each for each in vars(holder).values() if isinstance(each, Counter | Gauge | Histogram))


def difference(before: Samples, after: Samples) -> Samples:
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


def text_stream() -> tuple[io.TextIOWrapper, Any]:
    """A stream that is no terminal, and what gives its lines."""
    binary = io.BytesIO()
    text = io.TextIOWrapper(binary, encoding="utf-8", write_through=True)
    return text, lambda: binary.getvalue().decode().splitlines()

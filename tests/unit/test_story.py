"""The sentence on top of the overview, on numbers: what it says, how grave it is, and whom it names."""

from __future__ import annotations

from typing import Any

import pytest

from db.audit import AuditReport, AuditTotals, Invariant
from db.row_locks import BlockingSession, RowLocks
from locks.contention import HotLock, Incident, InstanceSeen, Snapshot, merged
from locks.inspection import LockView, Party
from locks.picture import Picture
from service.auditing import AuditDone
from service.dashboard.story import LONG_WAIT_S, MANY_WAITERS, Finding, Line, findings, long_waits
from tests.unit.pictures import NOW_S, picture

HOLDER = Party("api-3", "host", 12, "nightly-1")


def snapshot(*pictures: Picture, age_s: float = 0.2) -> Snapshot:
    """What these have told, `age_s` ago."""
    return merged(NOW_S, [InstanceSeen(each, age_s) for each in pictures or (picture(),)])


def waited(name: str = "jobs:x", *, waiting: int = 1998, oldest_s: float = 17.0, ended: int = 0) -> HotLock:
    """A lock that so many wait for."""
    return HotLock(name, waiting + ended, waiting * oldest_s, oldest_s, waiting, oldest_s)


def lock(held_s: float | None = 40.0, *, holder: Party | None = HOLDER, is_held: bool = True) -> LockView:
    """The same lock as it is now."""
    return LockView(
        "jobs:x",
        is_held=is_held,
        by_python_redis_lock=is_held and holder is None,
        holder=holder,
        fencing_token=7,
        held_s=held_s,
        lease_ttl_s=60.0,
        expires_in_s=20.0,
        waiting=(),
    )


def found(seen: Snapshot | None = None, **given: Any) -> list[Finding]:
    """What is said of it."""
    nothing: dict[str, Any] = {"lines": [], "down_since": {}, "audit": None, "incidents": [], "now_s": NOW_S}
    return list(findings(seen or snapshot(), **(nothing | given)))


def test_all_is_well_in_figures() -> None:
    busy = picture(held=12, waiting=4, oldest_wait_s=0.08, counts={"charges:charged": 20, "charges:free": 15})
    (well,) = found(snapshot(busy, picture("api-2")))
    assert (well.tone, well.words) == (
        "good",
        "All is well: 2 instances hold 12 locks, 4 callers wait, the first for 80.0 ms; entries a second: 3.5",
    )
    (idle,) = found()
    assert idle.words == "All is well: 1 instance holds 0 locks, nobody waits; entries a second: 0"


def test_a_lock_that_a_crowd_waits_for_names_its_holder_and_both_times() -> None:
    (stuck,) = found(lines=[Line(waited(), lock())])
    assert stuck.words == (
        "1,998 callers wait for jobs:x, the first for 17.0 s: api-3 (host host, pid 12, request nightly-1)"
        " has held it for 40.0 s"
    )
    assert (stuck.tone, stuck.subject, stuck.lock, stuck.since_s) == ("bad", "jobs:x", "jobs:x", NOW_S - 17)


def test_a_few_who_wait_for_a_job_are_no_alarm() -> None:
    (slow,) = found(lines=[Line(waited(waiting=1), lock())])
    assert (slow.tone, slow.words.partition(",")[0]) == ("warn", "1 caller waits for jobs:x")
    (crowd,) = found(lines=[Line(waited(waiting=MANY_WAITERS), lock())])
    assert crowd.tone == "bad"


def test_a_line_that_moves_is_long_and_not_stuck() -> None:
    (long,) = found(lines=[Line(waited(ended=31), lock(held_s=0.3))])
    assert (long.tone, long.words.partition(": ")[2]) == (
        "warn",
        "the line is long, but moves: 31 waits ended in the last 10 s",
    )


def test_a_line_that_nobody_holds_up_is_said_to_be_so() -> None:
    (stuck,) = found(lines=[Line(waited(), lock(None, holder=None, is_held=False))])
    assert (stuck.tone, stuck.words.partition(": ")[2]) == ("bad", "nobody holds it, and it is granted to nobody")
    (between,) = found(lines=[Line(waited(ended=9), lock(None, holder=None, is_held=False))])
    assert between.tone == "warn"


def test_a_line_that_has_just_ended_is_neither_stuck_nor_forgotten() -> None:
    (over,) = found(lines=[Line(waited(), None)])
    assert (over.tone, over.words) == (
        "calm",
        "1,998 callers waited for jobs:x until a moment ago, the first for 17.0 s: it is free now",
    )


def test_a_program_that_does_not_say_who_it_is_is_named_as_such() -> None:
    (stuck,) = found(lines=[Line(waited(), lock(None, holder=None))])
    assert (stuck.tone, stuck.words.partition(": ")[2]) == ("bad", "a python-redis-lock program holds it")


def test_somebody_elses_transaction_that_has_the_row_is_named() -> None:
    ours = BlockingSession(5, "chargeonce", "active", 90.0)
    row = RowLocks((), (ours, BlockingSession(77, "psql", "idle in transaction", 40.0)))
    (stuck,) = found(lines=[Line(waited(), lock(), row)])
    assert stuck.words.endswith("; in Postgres a transaction of psql (pid 77) has its row, for 40.0 s")
    (own,) = found(lines=[Line(waited(), lock(), RowLocks((), (ours,)))])
    assert "Postgres" not in own.words


def test_long_waits_are_those_that_no_death_explains_and_crowds_come_first() -> None:
    def line(count: int, oldest_s: float) -> dict[str, Any]:
        return {"waited_for": count, "waited_so_far": (count * oldest_s, oldest_s)}

    lines = {"short": (500, LONG_WAIT_S * 0.9), "one": (1, 50.0), "crowd": (500, 3.0), "worse": (20, 9.0)}
    seen = snapshot(
        picture(
            waited_for={name: count for name, (count, _) in lines.items()},
            waited_so_far={name: (count * oldest_s, oldest_s) for name, (count, oldest_s) in lines.items()},
        )
    )
    assert [each.name for each in long_waits(seen)] == ["worse", "crowd", "one"]


@pytest.mark.parametrize(("dependency", "who"), [("database", "Postgres"), ("lock_store", "The lock store")])
def test_a_server_that_does_not_answer_is_named_with_the_time(dependency: str, who: str) -> None:
    (down,) = found(down_since={dependency: NOW_S - 30})
    assert (down.tone, down.subject, down.since_s) == ("bad", dependency, NOW_S - 30)
    assert down.words.startswith(f"{who} does not answer this instance")


def test_broken_books_come_before_everything_else() -> None:
    broken = Invariant("one", "An appointment has at most one user_consume.", 2, [])
    other = Invariant("two", "Where is_consume is true, there is a user_consume.", 1, [])
    whole = Invariant("three", "No coupon is below 0.", 0, [])
    audit = AuditDone(AuditReport([whole, broken, other], AuditTotals(1, 1, 1, 1)), at=NOW_S - 100, took_s=1.0)
    all_found = found(audit=audit, down_since={"database": None}, lines=[Line(waited(), lock())])
    assert [each.subject for each in all_found] == ["the books", "database", "jobs:x"]
    assert all_found[0].words == (
        "The books are broken in 3 places: “An appointment has at most one user_consume” does not hold,"
        " nor 1 other invariant"
    )
    assert all_found[0].since_s == NOW_S - 100
    held = AuditDone(AuditReport([whole], AuditTotals(1, 1, 1, 1)), at=NOW_S, took_s=1.0)
    assert found(audit=held)[0].tone == "good"


def test_entries_that_were_refused_because_too_many_wait_are_counted() -> None:
    (refused,) = found(snapshot(picture(counts={"charges:overloaded": 400}), picture("b", counts={"acquired": 1})))
    assert (refused.tone, refused.words) == (
        "bad",
        "400 entries were refused in the last 10 s, since too many wait already",
    )


def test_instances_that_are_silent_gone_or_draining_are_named() -> None:
    (silent,) = found(snapshot(picture(), age_s=3.1))
    assert (silent.tone, silent.words) == ("warn", "api-1 (pid 11) has said nothing for 3.10 s")
    (drains,) = found(snapshot(picture(draining=True)))
    assert (drains.tone, drains.subject) == ("calm", "api-1 (pid 11)")
    gone = Incident(NOW_S - 20, "instance-down", "", "api-2", {"host": "host", "pid": "99"})
    long_gone = Incident(NOW_S - 2000, "instance-down", "", "api-4", {"host": "host", "pid": "98"})
    lost = Incident(NOW_S - 1, "lost", "jobs:x", "api-2", {})
    (missed,) = found(incidents=[lost, gone, long_gone])
    assert (missed.tone, missed.subject, missed.since_s) == ("warn", "api-2", NOW_S - 20)
    (nobody,) = findings(merged(NOW_S, []), lines=[], down_since={}, audit=None, incidents=[], now_s=NOW_S)
    assert nobody.words == "No instance has told of itself"


def test_the_gravest_comes_first() -> None:
    crowd, job = Line(waited(), lock()), Line(waited("jobs:y", waiting=1), lock())
    tones = [each.tone for each in found(snapshot(picture(draining=True)), lines=[job, crowd])]
    assert tones == ["bad", "warn", "calm"]

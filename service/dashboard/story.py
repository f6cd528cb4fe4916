"""How it stands, in one sentence: what is stuck, since when and because of whom; or that all is well, in figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from db.row_locks import RowLocks
from locks.contention import HotLock, Incident, Snapshot
from locks.inspection import LockView
from service.auditing import AuditDone
from service.dashboard.formatting import duration, number, plural, rate
from service.holder_words import holder_words

# As long as a lease by default (LEASE_TTL_S): a dead holder's lock is the next one's by then, and an entry's patience
# (LOCK_WAIT_S) is not over yet. Whoever waits longer waits for something that has no end of itself.
LONG_WAIT_S = 2.0
# Those who wait for a job's lock by design are a few; from here on it is a crowd, and somebody should act.
MANY_WAITERS = 10
# A holder that has had the lock for so much of the first one's wait is its cause; else the cause is the long line.
SHARE_OF_A_CAUSE = 0.5
# Instances tell once a second: one that has left out two is silent, and after 3.5 s it is gone.
SILENT_S = 2.5
# For so long an instance that went without a word stays in the sentence: until every lease of its has ended, and more.
GONE_FOR_S = 60.0
OUR_SESSIONS = "chargeonce"  # what the service's own sessions are called in Postgres

TONES = ("bad", "warn", "calm", "good")
HEALTH = {"bad": "ill", "warn": "strained", "calm": "well", "good": "well"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence. `subject`: a lock's name, a server, an instance; `lock`: the one it is about.

    `tone`: bad (somebody must act), warn (somebody should look), calm or good. `since_s`: unix time, where it is known.
    """

    tone: str
    subject: str
    words: str
    since_s: float | None = None
    lock: str | None = None
    page: str = ""  # where to look, below /dashboard; '' where the lock's own page is the place


@dataclass(frozen=True, slots=True)
class Line:
    """Those who have waited long for one lock, the lock as it is now, and who keeps its row in Postgres.

    `lock` is None where nobody holds it or waits any more: who waited was told of up to a second before.
    """

    waited: HotLock
    lock: LockView | None
    row: RowLocks | None = None


def long_waits(snapshot: Snapshot) -> list[HotLock]:
    """The locks that somebody has waited long for: crowds first, then who has waited longest."""
    long = [line for line in snapshot.lines if line.oldest_wait_s >= LONG_WAIT_S]
    return sorted(long, key=lambda line: (line.waiting < MANY_WAITERS, -line.oldest_wait_s))


def findings(
    snapshot: Snapshot,
    *,
    lines: Iterable[Line],
    down_since: Mapping[str, float | None],
    audit: AuditDone | None,
    incidents: Iterable[Incident],
    now_s: float,
) -> Sequence[Finding]:
    """What there is to say, gravest first; never nothing. `down_since`: the dependencies that do not answer."""
    found = [
        *_books(audit),
        *_servers(down_since),
        *(_line(line, snapshot, now_s=now_s) for line in lines),
        *_refused(snapshot),
        *_instances(snapshot, incidents, now_s=now_s),
    ]
    return sorted(found, key=lambda finding: TONES.index(finding.tone)) or [_all_well(snapshot)]


def _books(audit: AuditDone | None) -> Iterator[Finding]:
    broken = [each for each in audit.report.invariants if each.broken_count] if audit else []
    if not audit or not broken:
        return
    places = sum(each.broken_count for each in broken)
    words = f"The books are broken in {plural(places, 'place')}: “{broken[0].sentence.rstrip('.')}” does not hold"
    if len(broken) > 1:
        words += f", nor {plural(len(broken) - 1, 'other invariant')}"
    yield Finding(tone="bad", subject="the books", words=words, since_s=audit.at, page="/charges")


def _servers(down_since: Mapping[str, float | None]) -> Iterator[Finding]:
    for dependency, words in (
        ("database", "Postgres does not answer this instance: nobody is let in, and nobody is charged"),
        ("lock_store", "The lock store does not answer this instance: leases are refused, entries go by LOCK_OUTAGE"),
    ):
        if dependency in down_since:
            since_s = down_since[dependency]
            yield Finding(tone="bad", subject=dependency, words=words, since_s=since_s, page="/instances")


def _line(line: Line, snapshot: Snapshot, *, now_s: float) -> Finding:
    waited, lock = line.waited, line.lock
    if lock is None:
        who = f"{plural(waited.waiting, 'caller')} waited for {waited.name} until a moment ago"
        words = f"{who}, the first for {duration(waited.oldest_wait_s)}: it is free now"
        return Finding(tone="calm", subject=waited.name, words=words, lock=waited.name)
    ended = waited.waits - waited.waiting
    is_stuck = not ended if lock.held_s is None else lock.held_s >= SHARE_OF_A_CAUSE * waited.oldest_wait_s
    if is_stuck:
        because = _holder(lock) if lock.is_held else "nobody holds it, and it is granted to nobody"
    else:
        because = f"the line is long, but moves: {plural(ended, 'wait')} ended in the last {snapshot.window_s:.0f} s"
    waits = f"{plural(waited.waiting, 'caller waits', 'callers wait')} for {waited.name}"
    return Finding(
        tone="bad" if is_stuck and waited.waiting >= MANY_WAITERS else "warn",
        subject=waited.name,
        words=f"{waits}, the first for {duration(waited.oldest_wait_s)}: {because}{_row(line.row)}",
        since_s=now_s - waited.oldest_wait_s,
        lock=waited.name,
    )


def _holder(lock: LockView) -> str:
    if lock.held_s is None:
        return f"{holder_words(lock.holder)} holds it"
    return f"{holder_words(lock.holder)} has held it for {duration(lock.held_s)}"


def _row(row: RowLocks | None) -> str:
    """Somebody else's transaction that has the row, which the holder waits for in its turn."""
    others = [each for each in row.blocking if each.application_name != OUR_SESSIONS] if row else []
    if not others:
        return ""
    first = max(others, key=lambda each: each.transaction_s or 0.0)
    name = first.application_name or "a session without a name"
    open_for = f", for {duration(first.transaction_s)}" if first.transaction_s else ""
    return f"; in Postgres a transaction of {name} (pid {first.pid}) has its row{open_for}"


def _refused(snapshot: Snapshot) -> Iterator[Finding]:
    count = snapshot.counts.get("charges:overloaded", 0)
    if count:
        were = "entry was" if count == 1 else "entries were"
        words = f"{number(count)} {were} refused in the last {snapshot.window_s:.0f} s, since too many wait already"
        yield Finding(
            tone="bad", subject="entries", words=words, since_s=snapshot.at - snapshot.window_s, page="/instances"
        )


def _instances(snapshot: Snapshot, incidents: Iterable[Incident], *, now_s: float) -> Iterator[Finding]:
    if not snapshot.instances:
        yield Finding(tone="warn", subject="instances", words="No instance has told of itself", page="/instances")
    for incident in incidents:
        if incident.kind == "instance-down" and now_s - incident.at <= GONE_FOR_S:
            pid = incident.detail.get("pid", "?")
            words = f"{incident.instance_id} (pid {pid}) went without a word; its locks are free when their leases end"
            yield Finding(
                tone="warn", subject=incident.instance_id, words=words, since_s=incident.at, page="/incidents"
            )
    for each in snapshot.instances:
        name = f"{each.picture.instance_id} (pid {each.picture.pid})"
        since_s = snapshot.at - each.age_s
        if each.age_s > SILENT_S:
            words = f"{name} has said nothing for {duration(each.age_s)}"
            yield Finding(tone="warn", subject=name, words=words, since_s=since_s, page="/instances")
        elif each.picture.draining:
            words = f"{name} drains: it takes nothing new, and ends when its requests have"
            yield Finding(tone="calm", subject=name, words=words, page="/instances")


def _all_well(snapshot: Snapshot) -> Finding:
    count, waits = len(snapshot.instances), "nobody waits"
    if snapshot.waiting:
        first = duration(snapshot.oldest_wait_s)
        waits = f"{plural(snapshot.waiting, 'caller waits', 'callers wait')}, the first for {first}"
    entered_per_s = sum(snapshot.per_s(f"charges:{outcome}") for outcome in ("charged", "already_charged", "free"))
    words = (
        f"All is well: {plural(count, 'instance')} {'holds' if count == 1 else 'hold'} {plural(snapshot.held, 'lock')},"
        f" {waits}; entries a second: {rate(entered_per_s)}"
    )
    return Finding(tone="good", subject="all", words=words)

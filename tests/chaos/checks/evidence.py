"""A history, sorted into what the checkers ask for: operations with their answers, points, faults, final tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

from tests.chaos.checks.holds import Hold, Overlap, holds_of, overlaps_of
from tests.chaos.checks.slack import slack_of
from tests.chaos.checks.spans import NO_SPANS, Fault, Spans, faults_of

Event = dict[str, Any]
Pair = tuple[int, int]  # appointment, user

FOREVER = 2**63  # ns: later than any answer
NO_TIME = -1

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"
_PLACES = {OK: 0, UNKNOWN: 1, REFUSED: 2}
CHARGED, ALREADY_CHARGED = "charged", "already_charged"


class Operation(NamedTuple):
    """One request and what its client learned. Times are ns; an unknown one may take effect until FOREVER.

    `outcome`: of an ok one its outcome, of a refused one its code. `answer`: the event that ended it; None: none came.
    """

    op: str
    f: str
    appointment: int | None
    user: int | None
    invoked: int
    ended: int
    result: str
    outcome: str | None
    answer: Event | None
    invocation: Event


class Answers(NamedTuple):
    """Operations by what they learned."""

    let_in: list[Operation]
    unknown: list[Operation]
    refused: list[Operation]


NO_ANSWERS = Answers([], [], [])


class Charge(NamedTuple):
    """A row of user_consume."""

    id: int
    appointment: int
    payer: int
    coupons: int
    fence: int | None


class Evidence:
    """All of one history. What is not in it is None, or empty; what is derived is derived once."""

    def __init__(self, events: Sequence[Event]) -> None:
        """`events`: in the order of time."""
        self.run: Event = {}
        self.first_t = events[0]["t"] if events else 0
        self.last_t = events[-1]["t"] if events else 0
        self.by_kind: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            self.by_kind[event["e"]].append(event)
        if self.by_kind["run"]:
            self.run = self.by_kind["run"][0]
        self.lease_ttl_ns: int = round(self.run.get("lease_ttl_s", 0.6) * 1e9)
        self.slack = slack_of(self.run)

    @cached_property
    def operations(self) -> list[Operation]:
        """Every invocation with its answer, in the order of the invocations."""
        answers = {event["op"]: event for kind in (OK, REFUSED, UNKNOWN) for event in self.by_kind[kind]}
        return list(_operations(self.by_kind["invoke"], answers))

    @cached_property
    def enters(self) -> list[Operation]:
        """The operations that enter an appointment."""
        return [operation for operation in self.operations if operation.f == "enter"]

    @cached_property
    def answers(self) -> dict[Pair, Answers]:
        """The operations of each (appointment, user) that entered or tried to, by what they learned."""
        pairs: dict[Pair, Answers] = {}
        for operation in self.enters:
            pair = (operation.appointment or 0, operation.user or 0)
            answers = pairs.get(pair)
            if answers is None:
                answers = pairs[pair] = Answers([], [], [])
            answers[_PLACES[operation.result]].append(operation)
        return pairs

    @cached_property
    def charges(self) -> list[Charge] | None:
        """The final user_consume."""
        rows = self.rows("user_consume", "id", "appointment_id", "user_id", "count", "lock_fence")
        return None if rows is None else [Charge(*row) for row in rows]

    @cached_property
    def charges_by_appointment(self) -> dict[int, list[Charge]]:
        """The final charges of each appointment that has one."""
        found: dict[int, list[Charge]] = defaultdict(list)
        for charge in self.charges or ():
            found[charge.appointment].append(charge)
        return dict(found)

    @cached_property
    def entry_counts(self) -> dict[Pair, int] | None:
        """How many ENTER rows there are at the end for each (appointment, user)."""
        rows = self.rows("appointment_action", "appointment_id", "user_id")
        if rows is None:
            return None
        counts: dict[Pair, int] = defaultdict(int)
        for pair in rows:
            counts[pair] += 1
        return dict(counts)

    @cached_property
    def points(self) -> dict[str, list[Event]]:
        """The points by their kind."""
        points: dict[str, list[Event]] = defaultdict(list)
        for event in self.by_kind["point"]:
            points[event["p"]].append(event)
        return points

    @cached_property
    def births(self) -> dict[tuple[int | str, int], int]:
        """When each life of each instance began."""
        return {(event["i"], event["life"]): event["t"] for event in self.by_kind["born"]}

    @cached_property
    def holds(self) -> list[Hold]:
        """Every recorded hold of a lock, in the order of their beginnings."""
        return holds_of(self.by_kind["point"], self.by_kind["died"], last_t=self.last_t)

    @cached_property
    def holds_by_name(self) -> dict[str, list[Hold]]:
        """The holds of each lock, in the order of their beginnings."""
        by_name: dict[str, list[Hold]] = defaultdict(list)
        for hold in self.holds:
            by_name[hold.name].append(hold)
        return dict(by_name)

    @cached_property
    def overlaps(self) -> list[Overlap]:
        """Every pair of holds of one lock that were held at the same time."""
        return [overlap for holds in self.holds_by_name.values() for overlap in overlaps_of(holds)]

    @cached_property
    def faults(self) -> list[Fault]:
        """Every fault with its end."""
        return faults_of(self.by_kind["fault"], self.by_kind["healed"], last_t=self.last_t)

    @cached_property
    def faults_by_scope(self) -> dict[str, list[Fault]]:
        """The faults of each scope."""
        found: dict[str, list[Fault]] = defaultdict(list)
        for fault in self.faults:
            found[fault.scope].append(fault)
        return dict(found)

    @cached_property
    def fault_spans(self) -> dict[str, Spans]:
        """When there was a fault, by its scope."""
        return {
            scope: Spans((fault.began, fault.ended) for fault in faults)
            for scope, faults in self.faults_by_scope.items()
        }

    @cached_property
    def standstills(self) -> dict[str, Spans]:
        """When the process of each instance stood still: by a fault of its own, or as it noticed itself."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for fault in self.faults:
            kind, _, who = fault.scope.partition(":")
            if kind == "instance":
                found[who].append((fault.began, fault.ended))
        for stall in self.by_kind["stall"]:
            found[str(stall["i"])].append((stall["from"], stall["to"]))
        return {who: Spans(spans, apart=self.slack.moment_ns) for who, spans in found.items()}

    @cached_property
    def forgetful_spans(self) -> dict[str, Spans]:
        """When there was a fault that forgets, by its scope: after all others the store knows what it had been told."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for fault in self.faults:
            if fault.forgets:
                found[fault.scope].append((fault.began, fault.ended))
        return {scope: Spans(spans) for scope, spans in found.items()}

    def store_forgot(self, begin: int, end: int) -> bool:
        """Whether the store can have lost data between these moments."""
        return self.forgetful_spans.get("redis", NO_SPANS).touch(begin, end)

    def clock_moved(self, instance: int | str, begin: int, end: int) -> bool:
        """Whether a clock that leases of this instance go by can have been moved between these moments."""
        return any(
            spans.touch(begin, end)
            for scope, spans in self.forgetful_spans.items()
            if scope.startswith("clock:") and scope.rpartition(":")[2] in ("redis", str(instance))
        )

    def spans_of(self, scope: str) -> Spans:
        """When there was a fault of this scope."""
        return self.fault_spans.get(scope, NO_SPANS)

    def standstills_of(self, instance: int | str) -> Spans:
        """When that instance's process stood still."""
        return self.standstills.get(str(instance), NO_SPANS)

    def rows(self, table: str, *columns: str) -> list[tuple[Any, ...]] | None:
        """These columns of a final table; None when the history has no such table. Raises ValueError for a column."""
        chunks = [event for event in self.by_kind["rows"] if event["table"] == table]
        return [row for chunk in chunks for row in _picked(chunk, columns)] if chunks else None

    def has_column(self, table: str, column: str) -> bool:
        """Whether the final table was written with this column."""
        return any(event["table"] == table and column in event["columns"] for event in self.by_kind["rows"])


def op_ids(operations: Iterable[Operation]) -> tuple[str, ...]:
    """The ids of some operations, for an example."""
    return tuple(operation.op for operation in operations)


def _operations(invocations: Iterable[Event], answers: Mapping[str, Event]) -> Iterator[Operation]:
    for invocation in invocations:
        op = invocation["op"]
        answer = answers.get(op)
        result, outcome, ended = UNKNOWN, None, FOREVER
        if answer is not None:
            kind = answer["e"]
            if kind == OK:
                result, outcome, ended = OK, answer.get("outcome"), answer["t"]
            elif kind == REFUSED:
                outcome = answer.get("code")
                # One that was refused as charged, or as perhaps charged, may have taken effect.
                if not answer.get("charged"):
                    result, ended = REFUSED, answer["t"]
        appointment, user = invocation.get("appointment"), invocation.get("user")
        yield Operation(
            op, invocation["f"], appointment, user, invocation["t"], ended, result, outcome, answer, invocation
        )


def _picked(chunk: Event, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    names: list[str] = chunk["columns"]
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(f"{chunk['table']} was written without {', '.join(missing)}")
    places = [names.index(column) for column in columns]
    if len(places) == 1:
        return ((row[places[0]],) for row in chunk["rows"])
    return map(itemgetter(*places), chunk["rows"])

"""The register that leases guard: a stale holder's write is refused, an acknowledged one is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.chaos.checks.evidence import OK, REFUSED, Evidence, Operation
from tests.chaos.checks.verdict import Example, Verdict, found


class Write(NamedTuple):
    """A row of chaos_register_log."""

    n: int
    name: str
    fence: int
    op: str
    accepted: bool


def stale_writes_refused(evidence: Evidence) -> Verdict:
    """The fences of accepted writes never fall, each write is logged as it was answered, and the last one stands."""
    rows = evidence.rows("chaos_register_log", "n", "name", "fence", "op", "accepted")
    operations = [operation for operation in evidence.operations if operation.f == "write"]
    log = sorted(Write(*row) for row in rows or ())
    violations: list[Example] = []
    if rows is not None:
        violations += [*_falling(log), *_not_as_answered(log, operations), *_overwritten(evidence, log)]
    missing = "the history has no final chaos_register_log" if rows is None else None
    counts = {
        "accepted": sum(write.accepted for write in log),
        "stale": sum(not write.accepted for write in log),
        "refused_needlessly": _refused_needlessly(log),
    }
    return found(
        "stale_writes_refused",
        violations,
        checked=len(log),
        counts=counts,
        missing=missing or (None if log else "nothing was written"),
    )


def _falling(log: Sequence[Write]) -> Iterator[Example]:
    last: dict[str, Write] = {}
    for write in log:
        if not write.accepted:
            continue
        before = last.get(write.name)
        if before is not None and write.fence < before.fence:
            text = f"{write.name}: a write with fence {write.fence} was accepted after one with {before.fence}"
            yield Example(text, ops=(before.op, write.op))
        else:
            last[write.name] = write


def _not_as_answered(log: Sequence[Write], operations: Sequence[Operation]) -> Iterator[Example]:
    accepted = {write.op for write in log if write.accepted}
    for operation in operations:
        if operation.result == OK and operation.op not in accepted:
            yield Example("a write that was acknowledged is not there", operation.ended, (operation.op,))
        if operation.result == REFUSED and operation.op in accepted:
            yield Example("a write that was refused is there", operation.ended, (operation.op,))


def _overwritten(evidence: Evidence, log: Sequence[Write]) -> Iterator[Example]:
    last = {write.name: write for write in log if write.accepted}
    for name, fence, op in evidence.rows("chaos_register", "name", "fence", "op") or ():
        if name in last and (fence, op) != (last[name].fence, last[name].op):
            yield Example(f"{name} holds another write than the last accepted one", ops=(last[name].op, str(op)))


def _refused_needlessly(log: Sequence[Write]) -> int:
    greatest: dict[str, int] = {}
    needlessly = 0
    for write in log:
        if write.accepted:
            greatest[write.name] = max(write.fence, greatest.get(write.name, 0))
        elif write.fence >= greatest.get(write.name, 0):
            needlessly += 1
    return needlessly

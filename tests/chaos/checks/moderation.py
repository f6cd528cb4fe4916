"""Nobody asks the store for more than there is to do."""

from __future__ import annotations

from bisect import bisect_left

from tests.chaos.checks.evidence import Evidence
from tests.chaos.checks.promises import MS
from tests.chaos.checks.verdict import Example, Verdict, found

NAME = "little_is_asked"
COMMANDS, CONNECTIONS = 100, 20  # in a second in which nothing happens; a server that refuses is asked again
SECOND_NS = 1000 * MS


def little_is_asked(evidence: Evidence) -> Verdict:
    """In no second did a process send many more commands than things happened around it, or connect again and again.

    Whoever waits looks a few times a second; the other commands each have somebody who wanted something.
    """
    seconds = evidence.by_kind["asked"]
    happened = [point["t"] for point in evidence.by_kind["point"]]
    violations = []
    for each in seconds:
        begin, end = each["t"] - SECOND_NS, each["t"] + 2 * SECOND_NS
        count = bisect_left(happened, end) - bisect_left(happened, begin)
        what = f"{each['i']} sent {each['commands']} commands while {count} things happened"
        if each["commands"] > COMMANDS + count:
            violations.append(Example(what, each["t"]))
        if each["connections"] > CONNECTIONS:
            violations.append(Example(f"{each['i']} connected {each['connections']} times", each["t"]))
    missing = None if seconds else "the history does not tell what was sent"
    return found(NAME, violations, checked=len(seconds), missing=missing)

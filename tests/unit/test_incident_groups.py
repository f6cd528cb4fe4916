"""Incidents that say the same are one row, and nothing else is."""

from __future__ import annotations

from typing import Any

from locks.contention import Incident
from service.dashboard.formatting import MOST_RUN, parts
from service.dashboard.views.incident_groups import SHOWN_SINGLES, IncidentGroup, grouped
from service.dashboard.views.kinds import rows_of


def incident(at: float, kind: str = "gave-up", name: str = "a", instance_id: str = "api-1", **detail: Any) -> Incident:
    return Incident(at, kind, name, instance_id, detail)


def groups_of(*incidents: Incident) -> list[IncidentGroup]:
    return grouped(rows_of(sorted(incidents, key=lambda each: -each.at), now_s=1000.0))


def test_two_hundred_that_give_up_on_one_lock_are_one_row_with_the_first_and_the_last() -> None:
    told = [incident(at, instance_id=f"api-{at % 3}", outcome="busy", waited_ms=3000 + at) for at in range(200)]

    (group,) = groups_of(*told)

    assert (group.count, group.first_at, group.last_at, group.last_age_s) == (200, 0, 199, 801)
    assert group.instance_ids == ["api-0", "api-1", "api-2"]
    assert [each.at for each in group.singles] == list(range(199, 199 - SHOWN_SINGLES, -1))


def test_another_kind_lock_or_cause_is_another_row() -> None:
    told = [
        incident(5, kind="lost", reason="expired", fencing_token=1),
        incident(4, kind="lost", reason="forced", fencing_token=2),
        incident(3, kind="takeover", fencing_token=2),
        incident(2, kind="takeover", name="b", fencing_token=2),
        incident(1, kind="lost", reason="expired", fencing_token=3),
    ]

    groups = groups_of(*told)

    assert [(each.kind.word, each.name, each.count) for each in groups] == [
        ("lost", "a", 2),
        ("lost", "a", 1),
        ("takeover", "a", 1),
        ("takeover", "b", 1),
    ]
    assert len({each.id for each in groups}) == 4


def test_instances_have_a_row_each_whatever_their_pid() -> None:
    told = [
        incident(at, kind="instance-up", name="", instance_id=who, host="h", pid=str(at))
        for at, who in enumerate(("x", "y", "x"))
    ]

    assert [(each.instance_ids, each.count) for each in groups_of(*told)] == [(["x"], 2), (["y"], 1)]


def test_a_group_keeps_its_id_while_it_grows() -> None:
    (before,) = groups_of(incident(1, outcome="busy", waited_ms=7))
    (after,) = groups_of(incident(1, outcome="busy", waited_ms=7), incident(2, outcome="busy", waited_ms=8))

    assert before.id == after.id


def test_a_text_of_any_length_has_places_to_break_and_loses_nothing() -> None:
    for text in (
        "",
        "a",
        "report:daily/2026-11",
        "x" * 200,
        "a" * 20 + ":" + "b" * 17,
        "::--",
        "pid 7 on host-3.local",
    ):
        pieces = parts(text)
        assert "".join(pieces) == text
        assert all(len(each.rstrip(":/._,@ -")) <= MOST_RUN for each in pieces)
    assert parts("waited 1.17 s, v1") == ["waited ", "1.17 ", "s, ", "v1"]
    assert parts("report:daily/2026-11") == ["report:", "daily/", "2026-", "11"]

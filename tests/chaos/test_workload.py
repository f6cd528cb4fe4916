"""What the processes of a workload share."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.workload.people import front_in


def test_several_that_come_at_once_share_one_front(tmp_path: Path) -> None:
    path = tmp_path / "front"
    path.touch()  # the first of them has just made it
    with front_in(path) as one, front_in(path) as other:
        assert other.get() == 0
        one.set(7)
        assert other.get() == 7
    with front_in(path) as later:
        assert later.get() == 7

"""Worlds of Postgres: whatever happens to disk, power and primary, what was acknowledged stays; else it is noticed."""

from __future__ import annotations

import pytest

from tests.chaos.worlds.rehearsal import Ledger, OpenWorld, Rehearsal
from tests.conftest import ReportFigures

pytest_plugins = ["tests.chaos.worlds.fixtures"]

SOME = 50  # writes that show that it goes on


async def lost_over(rehearsal: Rehearsal, kind: str) -> tuple[set[int], float]:
    """What a fault costs that comes while much is written, and the seconds until it was healed."""
    ledger = Ledger(rehearsal)
    async with ledger.written():
        await ledger.more(SOME)
        took_s = await rehearsal.fire(kind)
        await ledger.more(SOME)
    return ledger.lost(), took_s


@pytest.mark.parametrize(
    ("world", "kinds"),
    [
        ("power", ["power_loss", "power_loss"]),
        ("standby", ["standby_away", "postgres_failover", "postgres_failover"]),
        ("full_disk", ["disk_full", "wal_full"]),
        ("slow_disk", ["fsync_slow", "fsync_error"]),
        ("clock", ["postgres_clock_forward", "postgres_clock_back"]),
    ],
)
async def test_what_postgres_has_acknowledged_stays(
    open_world: OpenWorld, report_figures: ReportFigures, world: str, kinds: list[str]
) -> None:
    async with open_world(world) as rehearsal:
        for kind in kinds:
            lost, took_s = await lost_over(rehearsal, kind)
            assert lost == set()
            report_figures(f"{kind}, until healed", [took_s * 1000])


@pytest.mark.parametrize(
    "settings",
    [{"synchronous_commit": "off", "wal_writer_delay": "10s"}, {"fsync": "off"}],
    ids=["synchronous_commit=off", "fsync=off"],
)
async def test_a_power_loss_finds_what_was_not_synced(open_world: OpenWorld, settings: dict[str, str]) -> None:
    async with open_world("power", **settings) as rehearsal:
        lost, _ = await lost_over(rehearsal, "power_loss")
        assert lost


async def test_a_failover_finds_a_primary_that_does_not_wait_for_its_standby(open_world: OpenWorld) -> None:
    async with open_world("standby", synchronous_commit="local") as rehearsal:
        ledger, standby = Ledger(rehearsal), rehearsal.ground.standby
        standby.kill()
        async with ledger.written():
            await ledger.more(SOME)
        rehearsal.ground.postgres.kill()
        standby.start()
        await rehearsal.fire("postgres_failover")
        assert ledger.lost()


async def test_a_full_wal_and_a_failed_sync_make_postgres_panic(open_world: OpenWorld) -> None:
    for world, kind, reason in (
        ("full_disk", "wal_full", "No space left on device"),
        ("slow_disk", "fsync_error", "Input/output error"),
    ):
        async with open_world(world) as rehearsal:
            await rehearsal.fire(kind)
            panics = [line for line in rehearsal.ground.postgres.log.read_text().splitlines() if "PANIC" in line]
            assert any(reason in line for line in panics), (kind, panics)


async def test_a_slow_sync_delays_every_acknowledgement(open_world: OpenWorld) -> None:
    async with open_world("slow_disk") as rehearsal:
        ledger = Ledger(rehearsal)
        async with ledger.written(sessions=1):
            await ledger.more(SOME)
            before = len(ledger.acknowledged)
            took_s = await rehearsal.fire("fsync_slow", delay_ms=200.0, lasts_s=1.0)
            during = len(ledger.acknowledged) - before
        assert during <= took_s / 0.2 + 1

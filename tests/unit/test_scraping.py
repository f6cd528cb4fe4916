"""Who scrapes gets what was counted before, and however many scrape, a worker gathers at most once a second."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.scraping import EVERY_S, MetricsAway, Scraping

SOON_S = 10.0
CLOCK_S = 0.01  # timers of event loops round


class Folder:
    """Stands for the files: `counted` is what they say. A gathering takes as long as `held` is."""

    def __init__(self) -> None:
        self.counted = 0
        self.began_at_s: list[float] = []
        self.under_way = threading.Event()
        self.held = threading.Event()
        self.held.set()
        self.is_away = False

    def read(self) -> bytes:
        self.began_at_s.append(time.monotonic())
        told = b"%d" % self.counted
        self.under_way.set()
        assert self.held.wait(SOON_S)
        if self.is_away:
            raise MetricsAway("gone")
        return told


async def test_scrapes_at_the_same_time_share_one_gathering() -> None:
    folder = Folder()
    scraping = Scraping(folder.read)

    assert await asyncio.gather(*[scraping.text() for _ in range(100)]) == [b"0"] * 100
    assert len(folder.began_at_s) == 1


async def test_who_comes_during_a_gathering_gets_the_next_one_which_has_what_was_counted_before() -> None:
    folder = Folder()
    folder.held.clear()
    scraping = Scraping(folder.read)
    first = asyncio.create_task(scraping.text())
    await asyncio.to_thread(folder.under_way.wait, SOON_S)

    folder.counted = 1
    later = [asyncio.create_task(scraping.text()) for _ in range(100)]
    await asyncio.sleep(0)
    folder.held.set()

    assert await first == b"0"
    assert await asyncio.gather(*later) == [b"1"] * 100
    assert len(folder.began_at_s) == 2


async def test_gatherings_begin_a_second_apart_whoever_asks() -> None:
    folder = Folder()
    scraping = Scraping(folder.read)
    over_at_s = time.monotonic() + 2.5 * EVERY_S

    async def scrapes_again_and_again() -> None:
        while time.monotonic() < over_at_s:
            await scraping.text()

    await asyncio.gather(*[scrapes_again_and_again() for _ in range(20)])

    pauses_s = [later - earlier for earlier, later in zip(folder.began_at_s, folder.began_at_s[1:], strict=False)]
    assert pauses_s
    assert min(pauses_s) >= EVERY_S - CLOCK_S


async def test_after_a_quiet_second_nobody_waits() -> None:
    folder = Folder()
    scraping = Scraping(folder.read)
    folder.held.clear()
    waiting = asyncio.create_task(scraping.text())
    assert await asyncio.to_thread(folder.under_way.wait, EVERY_S / 2)
    folder.held.set()
    assert await waiting == b"0"


async def test_who_hangs_up_takes_the_answer_from_nobody_else() -> None:
    folder = Folder()
    folder.held.clear()
    scraping = Scraping(folder.read)
    leaves, stays = asyncio.create_task(scraping.text()), asyncio.create_task(scraping.text())
    await asyncio.to_thread(folder.under_way.wait, SOON_S)

    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    folder.held.set()

    assert await stays == b"0"


async def test_a_gathering_that_fails_is_told_to_all_who_waited_for_it_and_the_next_is_tried() -> None:
    folder = Folder()
    folder.is_away = True
    scraping = Scraping(folder.read)

    failed = await asyncio.gather(scraping.text(), scraping.text(), return_exceptions=True)
    folder.is_away = False

    assert [type(each) for each in failed] == [MetricsAway, MetricsAway]
    assert await scraping.text() == b"0"

"""POST /v1/appointments/{id}/entries over real sockets."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

from tests.harness import Rows, Service, bearer

INVITER, INVITEE = 11, 22


async def test_the_first_entry_is_charged_and_the_second_is_a_repeat(
    start_service: Callable[..., Service], rows: Rows
) -> None:
    rows.grant(INVITER, 5)
    appointment_id = rows.appointment(INVITER, INVITEE)
    service = start_service(workers=1)
    async with aiohttp.ClientSession(service.url) as client:
        path = f"/v1/appointments/{appointment_id}/entries"
        async with client.post(path, headers=bearer(INVITER)) as first:
            assert first.status == 201
            charged = await first.json()
        async with client.post(path, headers=bearer(INVITER)) as second:
            assert second.status == 200
            repeated = await second.json()
    assert charged["outcome"] == "charged"
    assert repeated["outcome"] == "already_charged"
    assert repeated["charge"] == charged["charge"]
    assert rows.balance(INVITER) == 4

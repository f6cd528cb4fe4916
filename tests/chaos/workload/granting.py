"""Grants of coupons while everything else goes on, each asked again until it is known to be there."""

from __future__ import annotations

import asyncio
import random

from tests.chaos.workload.client import Client
from tests.chaos.workload.config import Config
from tests.chaos.workload.people import SERVICE_USER

PAUSE_S = 0.3
MOST_TRIES = 5


async def grant_until(stopping: asyncio.Event, client: Client, config: Config) -> None:
    """Grants a few coupons to somebody poor, now and then; the same reference never grants twice."""
    rng = random.Random(f"{config.seed}/grants/{config.history}")
    appointments, run = config.appointments, rng.getrandbits(64)
    number = 0
    while not stopping.is_set():
        number += 1
        user, count = rng.choice(appointments.participants(rng.choice(appointments.poor))), rng.randint(1, 3)
        body = {"coupon_id": 1, "count": count, "reference": f"grant-{run:x}-{number}"}
        for _ in range(MOST_TRIES):
            answer = await client.ask(
                "POST",
                f"/v1/users/{user}/coupons",
                caller=SERVICE_USER,
                instance=rng.choice(list(client.base_urls)),
                f="grant",
                body=body,
                user=user,
                count=count,
                reference=body["reference"],
            )
            if not answer.retryable:
                break
            await asyncio.sleep(PAUSE_S)
        await asyncio.sleep(rng.uniform(0, PAUSE_S))

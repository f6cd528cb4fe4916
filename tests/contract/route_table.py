"""Every route that a running instance has, as its own router lists them."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.contract.conftest import World
from tests.harness import ROOT

_TELL = """
import asyncio, json
from service.app import running_instance
from service.settings import load_settings
async def main():
    async with running_instance(load_settings(), instance_id="its-routes") as instance:
        print(json.dumps([(route.method, route.resource.canonical) for route in instance.app.router.routes()]))
asyncio.run(main())
"""


def route_table(world: World) -> list[tuple[str, str]]:
    """Method and path of each, HEAD apart from GET."""
    told = subprocess.run(
        [sys.executable, "-c", _TELL],
        cwd=ROOT,
        env=dict(world.service.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return [(method, path) for method, path in json.loads(told.stdout.splitlines()[-1])]

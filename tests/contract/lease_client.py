"""The lease API as a program in another language uses it: by HTTP, and by the lease id alone."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

import redis

from tests.contract.api import Answer, Api

USER = 7


def fresh_name(resource: str = "") -> str:
    """A lock that no other test knows; its resource is its own too, so that its metrics are."""
    return f"{resource or 'test-' + uuid.uuid4().hex[:12]}:{uuid.uuid4().hex[:8]}"


def leases_of(name: str) -> str:
    """The path of a lock's leases."""
    return f"/v1/locks/{quote(name, safe='')}/leases"


class LeaseClient:
    """Each call goes to whichever worker takes the connection, unless `on` says which."""

    def __init__(self, api: Api) -> None:
        self.api = api

    def ask(self, name: str, *, ttl_ms: int = 60_000, scope: str = "locks", **more: Any) -> Answer:
        """POST; `wait_ms`, `lease_id` and `owner` among `more` are sent with it."""
        wanted: dict[str, Any] = {field: more.pop(field) for field in ("wait_ms", "lease_id", "owner") if field in more}
        return self.api.call("POST", leases_of(name), user=USER, scope=scope, send={"ttl_ms": ttl_ms, **wanted}, **more)

    def lease(self, name: str, **more: Any) -> dict[str, Any]:
        """POST that must be granted; the lease."""
        answer = self.ask(name, **more)
        assert answer.status == 201, answer
        lease = answer.json
        assert isinstance(lease, dict)
        return lease

    def extend(self, name: str, lease_id: str, *, ttl_ms: int = 60_000, **more: Any) -> Answer:
        """PUT."""
        path = f"{leases_of(name)}/{quote(lease_id, safe='')}"
        return self.api.call("PUT", path, user=USER, scope="locks", send={"ttl_ms": ttl_ms}, **more)

    def release(self, name: str, lease_id: str, **more: Any) -> Answer:
        """DELETE."""
        path = f"{leases_of(name)}/{quote(lease_id, safe='')}"
        return self.api.call("DELETE", path, user=USER, scope="locks", **more)

    def show(self, name: str) -> Answer:
        """GET of the lock, as a monitor."""
        return self.api.get(f"/v1/locks/{quote(name, safe='')}", user=USER, scope="monitor")

    def waiters(self, name: str) -> int:
        """How many callers wait for a held lock."""
        waiters = self.show(name).json["waiters"]
        assert isinstance(waiters, int)
        return waiters

    def sample(self, metric: str, name: str, **labels: str) -> float:
        """A metric of the lock's resource, 0 while nothing of it was counted."""
        all_labels = {"resource": name.partition(":")[0], **labels}
        return self.api.metrics().get((f"chargeonce_{metric}", tuple(sorted(all_labels.items()))), 0.0)


def holder_id(client: redis.Redis, name: str) -> str | None:
    """What the lock's key holds."""
    value: Any = client.get(f"lock:{{{name}}}")
    return value.decode() if value is not None else None

"""A page waits no longer for a server than a person does, however patient the rest of the service is."""

from __future__ import annotations

from tests.conftest import StartService
from tests.contract.api import Api
from tests.contract.page import Page
from tests.harness import Rows

PATIENCE_S = 100
PATIENT = {
    "charge_timeout_s": str(PATIENCE_S + 1),
    "statement_timeout_s": str(PATIENCE_S),
    "row_lock_timeout_s": str(PATIENCE_S),
}


def test_what_cannot_be_read_in_time_is_shown_as_it_was_seen_last(start_service: StartService, rows: Rows) -> None:
    api = Api(start_service(workers=1, audit_interval_s="0", **PATIENT).url)
    page = Page(api, "monitor")
    assert page.get("/charges").status == 200
    rows.run("BEGIN")
    rows.run("LOCK TABLE user_consume IN ACCESS EXCLUSIVE MODE")

    seen, unseen = page.get("/charges"), page.get("/charges?before=7")

    assert (seen.status, unseen.status) == (503, 503)
    assert b"What stands here is as of <time" in seen.body
    assert b"This instance has not seen this view before" in unseen.body
    assert max(seen.took_s, unseen.took_s) < PATIENCE_S / 2
    with page.stream("charges") as stream:
        told = b"".join(stream.readline() for _ in range(3))
    assert b'id="away"' in told
    rows.run("ROLLBACK")
    assert page.get("/charges").status == 200

"""/openapi.json is true: a fuzzer that reads it finds no undocumented status, and nothing that breaks the service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.contract.api import PROBLEM_MEMBERS, STATUSES, assert_books_right
from tests.contract.conftest import World
from tests.contract.lease_client import LeaseClient, fresh_name
from tests.harness import bearer

TRUTH = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    ("POST", "/agoraToken"),
    ("POST", "/v1/appointments"),
    ("GET", "/v1/appointments/{appointment_id}"),
    ("PATCH", "/v1/appointments/{appointment_id}"),
    ("POST", "/v1/appointments/{appointment_id}/entries"),
    ("GET", "/v1/users/{user_id}/coupons"),
    ("POST", "/v1/users/{user_id}/coupons"),
    ("POST", "/v1/locks/{name}/leases"),
    ("PUT", "/v1/locks/{name}/leases/{lease_id}"),
    ("DELETE", "/v1/locks/{name}/leases/{lease_id}"),
    ("GET", "/v1/locks"),
    ("GET", "/v1/locks/{name}"),
    ("POST", "/v1/locks/{name}/force-release"),
    ("GET", "/v1/contention"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]
ENDLESS = ("GET", "/v1/contention/stream")  # test_contention.py reads it
PAGE = ("GET", "/dashboard")  # refuses in HTML; test_dashboard.py reads it
with_examples = hypothesis_settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema(world: World) -> Any:
    return schemathesis.openapi.from_url(f"{world.api.url}/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module", autouse=True)
def _nothing_broke(world: World) -> Iterator[None]:
    yield
    assert_books_right(world.database_url)
    assert '"level":"error"' not in world.service.logged()


def test_it_is_an_openapi_3_1_document_and_describes_every_route(world: World) -> None:
    answer = world.api.get("/openapi.json")
    assert answer.headers["content-type"].startswith("application/json")
    document = answer.json
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {*OPERATIONS, ENDLESS, PAGE}


def test_it_says_which_routes_take_a_token_and_what_they_refuse(world: World) -> None:
    document = world.api.get("/openapi.json").json
    for method, path in OPERATIONS:
        operation = document["paths"][path][method.lower()]
        if not path.startswith(("/v1", "/agora")):
            assert operation["security"] == []
            continue
        assert operation["security"], path
        statuses = set(operation["responses"])
        assert statuses >= {"400", "401", "503"}
        for status in statuses - {"200", "201", "204"}:
            assert "application/problem+json" in operation["responses"][status]["content"]
    entry = document["paths"]["/v1/appointments/{appointment_id}/entries"]["post"]
    assert set(entry["responses"]) == {"200", "201", "400", "401", "402", "403", "409", "413", "429", "503"}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{method} {path}" for method, path in OPERATIONS])
def test_a_fuzzer_finds_nothing_that_is_not_written_there(
    world: World, schema: Any, session: requests.Session, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    id_, inviter, invitee = world.meeting()
    if mode is GenerationMode.NEGATIVE and not (operation.path_parameters or operation.query or operation.body):
        return  # there is nothing that could be wrong
    callers = {
        "inviter": bearer(inviter),
        "service": bearer(invitee, "service"),
        "stranger": bearer(world.person(), "locks monitor operator"),
        "nobody": {},
    }
    ours: dict[str, dict[str, object]] = {
        "{appointment_id}": {"appointment_id": id_},
        "{user_id}": {"user_id": inviter},
    }
    if "{lease_id}" in path:
        leased = LeaseClient(world.api).lease(fresh_name())
        ours["{lease_id}"] = {"name": leased["name"], "lease_id": leased["lease_id"]}
    own_ids = next((ids for name, ids in ours.items() if name in path), None)
    strategies = [operation.as_strategy(generation_mode=mode)]
    if own_ids and mode is GenerationMode.POSITIVE:
        strategies.append(operation.as_strategy(generation_mode=mode, path_parameters=own_ids))
    if path == "/agoraToken" and mode is GenerationMode.POSITIVE:
        fields = {"appointmentId": id_, "otherUserid": invitee}
        strategies.append(operation.as_strategy(generation_mode=mode, body=fields, media_type="application/json"))

    for strategy in strategies:

        @with_examples
        @given(case=strategy, who=st.sampled_from(sorted(callers)))
        def fuzz(case: Any, who: str) -> None:
            response = case.call(session=session, headers=callers[who])
            judged = mode is GenerationMode.NEGATIVE and who == "service" and operation.body
            rejects = [negative_data_rejection] if judged else []  # a query that nobody knows is ignored
            case.validate_response(response, checks=TRUTH + rejects)
            if response.status_code == 201 and "lease_id" in response.json():
                session.delete(f"{response.request.url}/{response.json()['lease_id']}", headers=callers[who])
            if response.status_code >= 400:
                members = response.json()
                assert members.keys() >= PROBLEM_MEMBERS
                assert STATUSES[members["code"]] == response.status_code
                assert members["charged"] is False

        fuzz()

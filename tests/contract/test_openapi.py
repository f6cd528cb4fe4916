"""/openapi.json is true: a fuzzer that reads it finds no undocumented status, and nothing that breaks the service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
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

from service.models import MEMBERS_OF_CODES
from tests.contract.api import PROBLEM_MEMBERS, STATUSES, assert_books_right
from tests.contract.conftest import World
from tests.contract.described import operations_of, resolved
from tests.contract.lease_client import LeaseClient, fresh_name
from tests.harness import bearer

FORMAT_CHECKER = Draft202012Validator.FORMAT_CHECKER
SCOPES = ("service", "locks", "monitor", "operator")
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


def examples_of(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], object]]:
    """Each example in the document, with the schema that it is of."""
    todo: list[Any] = [document]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo += each
        elif isinstance(each, dict):
            todo += each.values()
            if isinstance(each.get("examples"), list):
                yield {key: value for key, value in each.items() if key != "examples"}, each["examples"][0]
            elif "schema" in each:
                shown = [each["example"]] if "example" in each else []
                shown += [resolved(document, one)["value"] for one in (each.get("examples") or {}).values()]
                yield from ((each["schema"], example) for example in shown)


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
            refusal = resolved(document, operation["responses"][status])
            assert "application/problem+json" in refusal["content"]
            for code in refusal["content"]["application/problem+json"]["examples"]:
                assert STATUSES[code] == int(status)
                assert f"`{code}`: " in refusal["description"]
    entry = document["paths"]["/v1/appointments/{appointment_id}/entries"]["post"]
    assert set(entry["responses"]) == {"200", "201", "400", "401", "402", "403", "409", "413", "429", "503"}


def test_everything_in_it_is_described(world: World) -> None:
    document = world.api.get("/openapi.json").json
    tags = {tag["name"] for tag in document["tags"]}
    bare = [name for name, schema in document["components"]["schemas"].items() if not schema.get("description")]
    for name, schema in document["components"]["schemas"].items():
        bare += [f"{name}.{field}" for field, each in schema["properties"].items() if not each.get("description")]
    for method, path, operation in operations_of(document):
        where = f"{method} {path}"
        assert set(operation["tags"]) <= tags, where
        told = [operation, *operation["parameters"], *operation["responses"].values()]
        told += [operation["requestBody"]] if "requestBody" in operation else []
        bare += [where for each in told if not resolved(document, each).get("description")]
        for response in operation["responses"].values():
            headers = resolved(document, response).get("headers", {}).values()
            bare += [where for header in headers if not resolved(document, header).get("description")]
    assert bare == []
    assert document["servers"]
    assert document["components"]["securitySchemes"]["token"]["description"]


def test_every_example_in_it_is_one_of_its_schema(world: World) -> None:
    document = world.api.get("/openapi.json").json
    found = list(examples_of(document))
    assert len(found) > 150
    for schema, example in found:
        whole = {**schema, "components": document["components"]}
        Draft202012Validator(whole, format_checker=FORMAT_CHECKER).validate(example)


def test_every_body_and_every_answer_in_json_has_an_example(world: World) -> None:
    document = world.api.get("/openapi.json").json
    for method, path, operation in operations_of(document):
        for told in (*operation["responses"].values(), operation.get("requestBody", {})):
            for media, content in resolved(document, told).get("content", {}).items():
                if "json" in media and path != "/openapi.json":
                    assert {"example", "examples"} & content.keys(), f"{method} {path}"
    for _, _, operation in operations_of(document):
        for parameter in operation["parameters"]:
            assert "examples" in parameter["schema"] or parameter["name"] == "cursor"  # one of those is not made up


def test_its_example_of_a_body_is_taken(world: World) -> None:
    document = world.api.get("/openapi.json").json
    id_, inviter, invitee = world.meeting()
    name = fresh_name()
    values = {"appointment_id": id_, "user_id": inviter, "name": name, "lease_id": "0" * 32}
    for method, path, operation in operations_of(document):
        if "requestBody" not in operation:
            continue
        body = operation["requestBody"]["content"]["application/json"]["example"]
        body |= {"appointmentId": id_, "otherUserid": invitee} if path == "/agoraToken" else {}
        address = path.format(**{key: quote(str(value), safe="") for key, value in values.items()})
        answer = world.api.call(method, address, user=inviter, scope="service locks operator", send=body)
        assert answer.status != 400, (method, path, answer)


def test_the_scopes_that_it_names_are_those_that_let_in(world: World) -> None:
    document = world.api.get("/openapi.json").json
    id_, _, _ = world.meeting()
    values = {"appointment_id": id_, "user_id": world.person(), "name": quote(fresh_name()), "lease_id": "0" * 32}
    for method, path, operation in operations_of(document):
        named = [scope for each in operation["security"] for scope in each["token"]]
        for scope in ("", *SCOPES) if named else ():
            if (method, path) == ENDLESS and scope in named:
                continue
            answer = world.api.call(method, path.format(**values), user=world.person(), scope=scope, send={})
            is_let_in = answer.status != 403
            assert is_let_in == (scope in named), (method, path, scope, answer)


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
                said = {"instance", "dependencies"} if path == "/readyz" else MEMBERS_OF_CODES.get(members["code"], ())
                assert members.keys() == PROBLEM_MEMBERS | set(said)
                assert STATUSES[members["code"]] == response.status_code
                assert members["charged"] is False

        fuzz()

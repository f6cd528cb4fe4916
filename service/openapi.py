"""The OpenAPI 3.1 document, from the routes and from the models that validate and answer."""

from __future__ import annotations

import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Literal

from pydantic import TypeAdapter

from locks.keys import MAX_NAME_LENGTH
from service.handlers.http import FORMS, JSON
from service.models import MAX_ID, MEMBERS_OF_CODES, ProblemAnswer
from service.openapi_examples import example_of
from service.problems import PROBLEMS, Problem
from service.routes import Route

PROBLEM_JSON = "application/problem+json"
_PATH_PARAMETER = re.compile(r"{(\w+)}")
_ID = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}
_NAME = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH, "pattern": "^[A-Za-z0-9:_./-]+$"}
# What a parameter is, its schema, and an example.
PATH_PARAMETERS: Mapping[str, tuple[str, dict[str, Any], object]] = {
    "appointment_id": ("the appointment's id", _ID, 42),
    "user_id": ("the user's id", _ID, 7),
    "name": ("the lock's name; a `/` in it is sent as %2F", _NAME, "report:2026"),
    # One of any other shape than ours is as good as one that is over.
    "lease_id": (
        "as the lease was answered with",
        {"type": "string", "minLength": 1},
        "5f0c3c7a9d1e4b6f8a2d4c6e8f0a1b2c",
    ),
}
QUERY_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 200, "examples": [50]},
    "sort": {"type": "string", "enum": ["waiters", "held", "name"], "examples": ["held"]},
    "search": {"type": "string", "examples": ["report"]},
    "cursor": {"type": "string"},
}
TAGS = {
    "entries": "Entering an appointment's room, and being charged once",
    "appointments": "Who is to meet whom",
    "coupons": "What entries are paid with",
    "leases": "The same locks for any other program",
    "contention": "Who holds what, who waits, and how long it takes",
    "running": "For whoever runs the service",
}
TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "`sub` is the user id, `exp` is required, `scope` is a space-separated list. An operation that names"
    " scopes takes any one of them; one that names none takes a token without any. `locks:PREFIX` is for"
    " names that begin with PREFIX.",
}
HEADERS = {
    "X-Request-Id": {
        "description": "as the client sent it, if it is sane, else a new one",
        "schema": {"type": "string", "examples": ["e73576edece31dd6ac72f565"]},
    },
    "Retry-After": {
        "description": "seconds until it is worth asking again",
        "schema": {"type": "integer", "minimum": 1, "examples": [1]},
    },
}


def openapi(routes: Iterable[Route]) -> dict[str, Any]:
    """The document as JSON values."""
    routes = list(routes)
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    schemas, references = _schemas(routes)
    refusals: dict[str, Any] = {}
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, references, schemas, refusals)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "chargeonce",
            "version": version("chargeonce"),
            "summary": "Charges exactly once, however many clients race for one appointment",
            "description": "Every refusal is `application/problem+json` (RFC 9457), and says whether this request"
            " charged, and whether it may succeed later.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "where this description came from"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": schemas,
            "headers": HEADERS,
            "responses": refusals,
            "examples": {code: _example_of_problem(problem, schemas) for code, (_, problem) in _problems().items()},
            "securitySchemes": {"token": TOKEN},
        },
    }


def status_of_codes() -> dict[str, int]:
    """Each refusal's code with its status."""
    return {problem.code: int(problem.status) for problem in PROBLEMS.values()}


def _problems() -> dict[str, tuple[type[BaseException], Problem]]:
    """Each code with the class that it is described by: the first of those that are answered with it."""
    found: dict[str, tuple[type[BaseException], Problem]] = {}
    for kind, problem in PROBLEMS.items():
        found.setdefault(problem.code, (kind, problem))
    return found


def _schemas(routes: Iterable[Route]) -> tuple[dict[str, Any], Mapping[type, dict[str, Any]]]:
    bodies = {route.body for route in routes if route.body}
    answers = {model for route in routes for model in route.answers.values() if isinstance(model, type)}
    return _schemas_of(frozenset(bodies), frozenset(answers))


@functools.cache
def _schemas_of(
    bodies: frozenset[type], answers: frozenset[type]
) -> tuple[dict[str, Any], Mapping[type, dict[str, Any]]]:
    wanted: list[tuple[type, Literal["validation", "serialization"], TypeAdapter[Any]]] = []
    wanted += [(model, "validation", TypeAdapter(model)) for model in bodies]
    wanted += [(model, "serialization", TypeAdapter(model)) for model in answers | {ProblemAnswer}]
    wanted.sort(key=lambda each: each[0].__name__)
    by_model, definitions = TypeAdapter.json_schemas(wanted, ref_template="#/components/schemas/{model}")
    return definitions["$defs"], {model: schema for (model, _), schema in by_model.items()}


def _operation(
    route: Route, references: Mapping[type, dict[str, Any]], schemas: dict[str, Any], refusals: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.description,
        "parameters": _parameters(route),
        "responses": {**_answers(route, references, schemas), **_refusals(route, refusals)},
        "security": [] if route.public else [{"token": [scope]} for scope in route.scopes] or [{"token": []}],
    }
    if route.body is not None:
        media = (JSON, FORMS[0]) if route.form else (JSON,)
        operation["requestBody"] = {
            "description": inspect.getdoc(route.body),
            "required": True,
            "content": dict.fromkeys(media, _content(references[route.body], schemas)),
        }
    return operation


def _operation_id(route: Route) -> str:
    words = re.sub(r"[{}.]", "", route.path).strip("/").replace("/", "_")
    return f"{route.method.lower()}_{words}"


def _parameters(route: Route) -> list[dict[str, Any]]:
    path = []
    for name in _PATH_PARAMETER.findall(route.path):
        text, schema, example = PATH_PARAMETERS[name]
        path.append(_parameter(name, "path", text, {**schema, "examples": [example]}))
    return path + [_parameter(name, "query", text, QUERY_SCHEMAS[name]) for name, text in route.query.items()]


def _parameter(name: str, place: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "description": description, "schema": schema}


def _content(schema: dict[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": schema, "example": example_of(schema, schemas)}


def _answers(route: Route, references: Mapping[type, dict[str, Any]], schemas: dict[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, model in route.answers.items():
        answers[str(status)] = {"description": route.summary, "headers": _headers("X-Request-Id")}
        if model is not None:
            content = {model: {}} if isinstance(model, str) else {JSON: _content(references[model], schemas)}
            answers[str(status)]["content"] = content
    return answers


def _refusals(route: Route, refusals: dict[str, Any]) -> dict[str, Any]:
    """References to components, which are added where they are not there yet: one for each set of codes."""
    codes: dict[int, list[str]] = defaultdict(list)
    for code in dict.fromkeys(route.problems):
        codes[status_of_codes()[code]].append(code)
    found = {}
    for status, its_codes in sorted(codes.items()):
        name = "_".join(its_codes)
        refusals[name] = _refusal(its_codes)
        found[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return found


def _refusal(codes: list[str]) -> dict[str, Any]:
    problems = _problems()
    sentences = [f"`{code}`: {_first_paragraph(problems[code][0])}" for code in codes]
    is_retried = any(problems[code][1].retry_after_s is not None for code in codes)
    return {
        "description": "\n\n".join(sentences),
        "headers": _headers("X-Request-Id", *(["Retry-After"] if is_retried else [])),
        "content": {
            PROBLEM_JSON: {
                "schema": {"$ref": f"#/components/schemas/{ProblemAnswer.__name__}"},
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _example_of_problem(problem: Problem, schemas: Mapping[str, Any]) -> dict[str, Any]:
    schema = schemas[ProblemAnswer.__name__]
    said = {
        "type": f"urn:chargeonce:problem:{problem.code}",
        "title": problem.title,
        "status": int(problem.status),
        "detail": problem.title,
        "code": problem.code,
        "retryable": problem.retryable,
        "charged": problem.charged,
    }
    members = (*schema["required"], *MEMBERS_OF_CODES.get(problem.code, ()))
    value = {name: said[name] if name in said else example_of(schema["properties"][name], schemas) for name in members}
    return {"summary": problem.title, "value": value}

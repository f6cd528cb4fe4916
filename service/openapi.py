"""The OpenAPI 3.1 document, from the routes and from the models that validate and answer."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Literal

from pydantic import TypeAdapter

from locks.keys import MAX_NAME_LENGTH
from service.handlers.http import FORMS, JSON
from service.models import MAX_ID, ProblemAnswer
from service.problems import PROBLEMS
from service.routes import Route

PROBLEM_JSON = "application/problem+json"
_PATH_PARAMETER = re.compile(r"{(\w+)}")


def openapi(routes: Iterable[Route]) -> dict[str, Any]:
    """The document as JSON values."""
    routes = list(routes)
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    schemas, references = _schemas(routes)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "chargeonce",
            "version": version("chargeonce"),
            "summary": "Charges exactly once, however many clients race for one appointment",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": dict(paths),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def status_of_codes() -> dict[str, int]:
    """Each refusal's code with its status."""
    return {problem.code: int(problem.status) for problem in PROBLEMS.values()}


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


def _operation(route: Route, references: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": _responses(route, references),
        "security": [] if route.public else [{"token": []}],
    }
    if route.body is not None:
        media = (JSON, FORMS[0]) if route.form else (JSON,)
        schema = {"schema": references[route.body]}
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(media, schema)}
    return operation


def _operation_id(route: Route) -> str:
    words = re.sub(r"[{}.]", "", route.path).strip("/").replace("/", "_")
    return f"{route.method.lower()}_{words}"


def _parameters(route: Route) -> list[dict[str, Any]]:
    path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _path_schema(name),
        }
        for name in _PATH_PARAMETER.findall(route.path)
    ]
    query = [
        {"name": name, "in": "query", "required": False, "description": text, "schema": _query_schema(name)}
        for name, text in route.query.items()
    ]
    return path + query


def _path_schema(name: str) -> dict[str, Any]:
    if name == "lease_id":
        return {"type": "string", "minLength": 1}  # one of any other shape than ours is as good as one that is over
    if name == "name":
        return {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH, "pattern": "^[A-Za-z0-9:_./-]+$"}
    return {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}


def _query_schema(name: str) -> dict[str, Any]:
    match name:
        case "limit":
            return {"type": "integer", "minimum": 1, "maximum": 200}
        case "sort":
            return {"type": "string", "enum": ["waiters", "held", "name"]}
        case _:
            return {"type": "string"}


def _responses(route: Route, references: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    request_id = {"X-Request-Id": {"schema": {"type": "string"}}}
    responses: dict[str, Any] = {}
    for status, model in route.answers.items():
        responses[str(status)] = {"description": route.summary, "headers": request_id}
        if model is not None:
            content = {model: {}} if isinstance(model, str) else {JSON: {"schema": references[model]}}
            responses[str(status)]["content"] = content
    codes: dict[int, list[str]] = defaultdict(list)
    for code in route.problems:
        codes[status_of_codes()[code]].append(code)
    for status, its_codes in sorted(codes.items()):
        responses[str(status)] = {
            "description": ", ".join(its_codes),
            "headers": request_id,
            "content": {PROBLEM_JSON: {"schema": references[ProblemAnswer]}},
        }
    return responses

"""With tracing on, an entry is a trace: what the caller began goes on, and each stage lies where it was."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.tracing import Tracing
from tests.contract.api import in_background
from tests.contract.conftest import World, a_world
from tests.contract.conftest import module_database_url as module_database_url
from tests.harness import APP_CERTIFICATE, APP_ID, ROOT, SECRET, clean_environment, run_cli, wait_until

CALLERS_TRACE, CALLERS_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ("lock wait", "queue", "transaction", "mint")
SERVER_ERROR = 2  # opentelemetry.proto.trace.v1.Status.STATUS_CODE_ERROR
MODULES_OF_A_RUNNING_INSTANCE = """
import asyncio, sys
from service.app import running_instance
from service.settings import load_settings
async def main():
    async with running_instance(load_settings(), instance_id="looked-at"):
        print([name for name in sys.modules if name.partition(".")[0] == "opentelemetry"])
asyncio.run(main())
"""


class Collector:
    """An OTLP receiver over HTTP that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.receive(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def receive(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def of_request(self, request_id: str) -> tuple[Any, list[Any]] | None:
        """The server span of this request, and its children."""
        for span in list(self.spans):
            if attributes(span).get("chargeonce.request_id") == request_id:
                return span, [each for each in list(self.spans) if each.parent_span_id == span.span_id]
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced(
    collector: Collector, module_database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_SERVICE_NAME", "payments")
        settings = {"tracing": "otlp", "log_format": "json"}
        with a_world(tmp_path_factory.mktemp("traced"), module_database_url, redis_url, settings) as world:
            yield world


def test_an_entry_has_its_four_stages_within_the_request_that_the_caller_began(
    traced: World, collector: Collector
) -> None:
    id_, inviter, _ = traced.meeting()
    headers = {"X-Request-Id": "traced-1", "traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"}
    before_ns = time.time_ns()
    assert traced.api.enter(id_, inviter, headers=headers).status == 201
    after_ns = time.time_ns()
    wait_until(lambda: (found := collector.of_request("traced-1")) is not None and len(found[1]) == len(STAGES))
    found = collector.of_request("traced-1")
    assert found is not None
    request, stages = found
    assert request.name == "POST /v1/appointments/{appointment_id}/entries"
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (CALLERS_TRACE, CALLERS_SPAN)
    assert attributes(request)["http.response.status_code"] == 201
    assert attributes(request)["chargeonce.outcome"] == "charged"
    by_name = {stage.name: stage for stage in stages}
    assert by_name.keys() == set(STAGES)
    moments = [before_ns, request.start_time_unix_nano]
    for name in STAGES:
        moments += [by_name[name].start_time_unix_nano, by_name[name].end_time_unix_nano]
    moments += [request.end_time_unix_nano, after_ns]
    assert moments == sorted(moments)
    assert attributes(by_name["transaction"])["chargeonce.batch.size"] == 1
    assert attributes(by_name["lock wait"])["chargeonce.lock.resource"] == "appointment"
    resource = collector.resources[0]
    assert resource["service.name"] == "payments"
    assert resource["service.instance.id"]
    assert resource["service.version"]

    (line,) = [each for each in _entry_lines(traced) if each["request_id"] == "traced-1"]
    assert (line["trace_id"], line["span_id"]) == (CALLERS_TRACE, request.span_id.hex())


def test_each_line_of_a_crowd_that_shares_transactions_names_its_own_trace(traced: World, collector: Collector) -> None:
    meetings = [traced.meeting() for _ in range(30)]
    traces = {f"crowd-{number}": f"{number + 1:032x}" for number in range(len(meetings))}
    with in_background() as start:
        entries = [
            start(
                traced.api.enter,
                id_,
                inviter,
                headers={"X-Request-Id": request_id, "traceparent": f"00-{trace_id}-{CALLERS_SPAN}-01"},
            )
            for (id_, inviter, _), (request_id, trace_id) in zip(meetings, traces.items(), strict=True)
        ]
        assert {entry.result().status for entry in entries} == {201}

    def lines() -> list[dict[str, Any]]:
        return [line for line in _lines(traced) if line.get("request_id") in traces]

    wait_until(lambda: len(lines()) == len(traces))  # a line is written when its tick ends
    assert {line["request_id"]: line["trace_id"] for line in lines()} == traces


async def test_what_a_request_starts_for_all_is_not_said_to_be_of_its_trace(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = Tracing(instance_id="here", sample_ratio=1.0)
    said: dict[str, dict[str, str]] = {}

    async def work_for_all() -> None:
        said["for all"] = tracing.context()

    async def answering() -> web.Response:
        said["request"] = tracing.context()
        await asyncio.create_task(work_for_all())
        return web.Response()

    try:
        await tracing.request("GET", "/", {"traceparent": f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"}, answering)
        said["afterwards"] = tracing.context()
    finally:
        await tracing.close()
    assert said["request"]["trace_id"] == CALLERS_TRACE
    assert (said["for all"], said["afterwards"]) == ({}, {})


def test_a_refusal_names_its_problem_and_no_token_is_in_any_span(traced: World, collector: Collector) -> None:
    id_, _, _ = traced.meeting()
    answer = traced.api.enter(id_, traced.person(), headers={"X-Request-Id": "traced-2"})
    assert answer.status == 403
    wait_until(lambda: collector.of_request("traced-2") is not None)
    found = collector.of_request("traced-2")
    assert found is not None
    assert attributes(found[0])["chargeonce.problem"] == "illegal-request"
    assert found[0].status.code != SERVER_ERROR
    text = "".join(map(str, collector.spans))
    assert "Bearer" not in text
    assert "007e" not in text


def test_an_answer_that_is_the_services_fault_is_an_error_with_its_code(traced: World, collector: Collector) -> None:
    id_, inviter, _ = traced.meeting()
    traced.rows.run("ALTER TABLE appointment_info RENAME COLUMN is_consume TO is_away")
    try:
        answer = traced.api.enter(id_, inviter, headers={"X-Request-Id": "traced-3"})
    finally:
        traced.rows.run("ALTER TABLE appointment_info RENAME COLUMN is_away TO is_consume")
    assert answer.status >= 500
    wait_until(lambda: collector.of_request("traced-3") is not None)
    found = collector.of_request("traced-3")
    assert found is not None
    assert (found[0].status.code, found[0].status.message) == (SERVER_ERROR, answer.code)
    lines = [line for line in _lines(traced) if line.get("request_id") == "traced-3"]
    assert {line["span_id"] for line in lines} == {found[0].span_id.hex()}


def test_probes_and_scrapes_are_not_traced(traced: World, collector: Collector) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert traced.api.call("GET", path, headers={"X-Request-Id": f"probe{path}"}).status == 200
    answer = traced.api.call("GET", "/v1/locks", headers={"X-Request-Id": "traced-4"})
    assert answer.status == 401
    wait_until(lambda: collector.of_request("traced-4") is not None)
    assert not [span for span in collector.spans if attributes(span).get("http.route") in ("/livez", "/metrics")]


def test_a_collector_that_hangs_delays_no_entry_and_the_drain_only_for_a_moment(
    module_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging, pytest.MonkeyPatch.context() as patch:
        # Connections are taken by the kernel, and nobody ever answers: the exporter itself would wait for 10 s.
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with a_world(tmp_path, module_database_url, redis_url, {"tracing": "otlp", "log_format": "json"}) as world:
            meetings = [world.meeting() for _ in range(10)]
            with in_background() as start:
                entries = [start(world.api.enter, id_, inviter) for id_, inviter, _ in meetings]
                assert {entry.result().status for entry in entries} == {201}
            assert world.service.stop() == 0
            assert "spans were not exported in time, and are dropped" in [line["event"] for line in _lines(world)]


def test_without_tracing_a_running_instance_loads_no_opentelemetry(module_database_url: str, redis_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", MODULES_OF_A_RUNNING_INSTANCE],
        cwd=ROOT,
        env=_environment(module_database_url, redis_url),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "[]"


def test_tracing_without_its_extra_refuses_the_start_with_one_line(
    module_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    # An empty package of the same name, found first: as if the extra were not installed.
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    environment = _environment(module_database_url, redis_url, tracing="otlp") | {"PYTHONPATH": str(tmp_path)}
    ended = run_cli("serve", "--port", "0", environment=environment)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "pip install 'chargeonce[otel]'" in ended.stderr


def _environment(database_url: str, redis_url: str, **settings: str) -> dict[str, str]:
    return clean_environment(
        database_url=database_url,
        redis_url=redis_url,
        jwt_secret=SECRET,
        agora_app_id=APP_ID,
        agora_app_certificate=APP_CERTIFICATE,
        **settings,
    )


def _entry_lines(world: World) -> list[dict[str, Any]]:
    return [line for line in _lines(world) if line["event"] == "entry"]


def _lines(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.service.logged().splitlines() if line.startswith("{")]

"""With tracing on, an entry is a trace: what the caller began goes on, and each stage lies where it was."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.contract.api import in_background
from tests.contract.conftest import World, a_world
from tests.contract.conftest import module_database_url as module_database_url
from tests.harness import ROOT, clean_environment, free_port, wait_until

CALLERS_TRACE, CALLERS_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ("lock wait", "queue", "transaction", "mint")


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
    assert collector.resources[0]["service.name"] == "chargeonce"

    (line,) = [each for each in _entry_lines(traced) if each["request_id"] == "traced-1"]
    assert (line["trace_id"], line["span_id"]) == (CALLERS_TRACE, request.span_id.hex())


def test_a_refused_entry_names_its_problem_and_no_token_is_in_any_span(traced: World, collector: Collector) -> None:
    id_, _, _ = traced.meeting()
    answer = traced.api.enter(id_, traced.person(), headers={"X-Request-Id": "traced-2"})
    assert answer.status == 403
    wait_until(lambda: collector.of_request("traced-2") is not None)
    found = collector.of_request("traced-2")
    assert found is not None
    assert attributes(found[0])["chargeonce.problem"] == "illegal-request"
    text = "".join(map(str, collector.spans))
    assert "Bearer" not in text
    assert "007e" not in text


def test_a_collector_that_is_away_costs_nobody_anything(
    module_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with a_world(tmp_path, module_database_url, redis_url, {"tracing": "otlp"}) as world:
            meetings = [world.meeting() for _ in range(10)]
            with in_background() as start:
                entries = [start(world.api.enter, id_, inviter) for id_, inviter, _ in meetings]
                assert {entry.result().status for entry in entries} == {201}
            started_at_s = time.monotonic()
            assert world.service.stop() == 0
            assert time.monotonic() - started_at_s < 15


def test_without_tracing_no_worker_loads_opentelemetry() -> None:
    words = "import sys, service.app, service.workers; print([n for n in sys.modules if n.startswith('opentelemetry')])"
    ended = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def _entry_lines(world: World) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in world.service.logged().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "entry"]

"""OpenTelemetry, where it is installed and wanted: request, lock wait, transaction and mint of each entry as spans.

The stages of an entry are made into spans when it is over, from the times that are kept of it anyhow: a charge is one
of many in its transaction, so there is no call of its own to measure, and without tracing there is nothing to pay.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from service import observe
from service.entering import Entered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
FLUSH_WITHIN_S = 2.0

Answering = Callable[[], Awaitable[Any]]


def is_installed() -> bool:
    """Whether the extra is there: pip install chargeonce[otel]."""
    try:
        return find_spec(EXPORTER) is not None
    except ModuleNotFoundError:
        return False


class Tracing:
    """The spans of one instance, exported by OTLP over HTTP in the background. Made only where tracing is on.

    Where to, and how often, the SDK reads from its own OTEL_EXPORTER_OTLP_* and OTEL_BSP_* variables.
    """

    def __init__(self, *, instance_id: str, sample_ratio: float) -> None:
        # Imported here: without tracing a worker need not have them.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {
                "service.name": "chargeonce",
                **OTELResourceDetector().detect().attributes,  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
                "service.instance.id": instance_id,
                "service.version": version("chargeonce"),
            }
        )
        self._trace = trace
        # By task, and not OpenTelemetry's current span: that one would be handed on to whatever a request happens to
        # start for all, such as a batch, the batches after it, and their timers, and stand in their log lines.
        self._spans: dict[asyncio.Task[Any] | None, Span] = {}
        self._propagator = TraceContextTextMapPropagator()
        self._provider: TracerProvider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(sample_ratio)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self._provider.get_tracer("chargeonce", version("chargeonce"))
        observe.trace_context = self.context

    def context(self) -> dict[str, str]:
        """What a log line says of the request whose task writes it; nothing in any other task or thread."""
        span = self._span()
        if span is None:
            return {}
        found = span.get_span_context()
        return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}

    async def request(self, method: str, route: str, headers: Mapping[str, str], answering: Answering) -> Any:
        """The answer, inside a server span that continues the caller's trace (W3C traceparent)."""
        attributes = {"http.request.method": method, "http.route": route}
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
        )
        task = asyncio.current_task()
        self._spans[task] = span
        try:
            response = await answering()
            span.set_attribute("http.response.status_code", response.status)
            span.set_attribute("chargeonce.request_id", response.headers.get("X-Request-Id", ""))
            return response
        finally:
            del self._spans[task]
            span.end()

    def entered(self, entered: Entered) -> None:
        """The stages of an entry that has just been let in, as children of the request's span."""
        span = self._span()
        if span is None or not span.is_recording():
            return
        timed = entered.timed
        span.set_attribute("chargeonce.outcome", timed.entry.outcome.value)
        ended_ns = time.time_ns()
        mint_ns = ended_ns - _ns(entered.minted_in_s)
        began_ns = mint_ns - _ns(timed.transaction_s)
        queued_ns = began_ns - _ns(timed.queued_s)
        lock = {"chargeonce.lock.resource": "appointment", "chargeonce.guarded_by": timed.guarded_by}
        batch = {"chargeonce.batch.size": timed.batch_size, "db.system.name": "postgresql"}
        self._stage(span, "lock wait", queued_ns - _ns(timed.lock_wait_s), queued_ns, lock)
        self._stage(span, "queue", queued_ns, began_ns, {})
        self._stage(span, "transaction", began_ns, mint_ns, batch)
        self._stage(span, "mint", mint_ns, ended_ns, {})

    def refused(self, code: str, status: int) -> None:
        """The request's refusal, by its code; an error of the span where it is the service's and not the caller's."""
        span = self._span()
        if span is None:
            return
        span.set_attribute("chargeonce.problem", code)
        if status >= 500:
            span.set_attribute("error.type", code)
            span.set_status(self._trace.StatusCode.ERROR, code)

    async def close(self) -> None:
        """Exports what is left, but waits for a collector that is away only for a moment."""
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A daemon: the process ends without it if it must.
        threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_WITHIN_S)
        except TimeoutError:
            observe.log.warning("spans were not exported in time, and are dropped")
        observe.trace_context = None

    def _span(self) -> Span | None:
        try:
            return self._spans.get(asyncio.current_task())
        except RuntimeError:  # a thread without an event loop
            return None

    def _stage(self, parent: Span, name: str, began_ns: int, ended_ns: int, attributes: Mapping[str, Any]) -> None:
        earliest_ns: int = getattr(parent, "start_time", None) or began_ns
        began_ns = max(began_ns, earliest_ns)
        context = self._trace.set_span_in_context(parent)
        span = self._tracer.start_span(name, context=context, start_time=began_ns, attributes=dict(attributes))
        span.end(max(began_ns, ended_ns))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

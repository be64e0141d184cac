"""OpenTelemetry: one server span per request with a child per stage, under the caller's W3C context.

Spans are made when a request is done, from the times that the call carries: nothing is paid for on its way,
and a request that is not sampled costs one header lookup. The extra [otel] brings the SDK and the OTLP
exporter over gRPC, which the standard OTEL_* variables configure (endpoint, headers, sampler, service name).
"""

import os
import time
from typing import TYPE_CHECKING, Any

import grpc

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer
from recserve.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# How a server span says that the fault is not the caller's (semantic conventions of gRPC).
SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Tracer(Observer):
    """Makes the spans. No attribute holds an id of a user or an item, a peer or a message's text."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._tracer = provider.get_tracer("recserve")
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Makes the spans of a call, unless it is a health check."""
        if call.method.scope == "health":
            return
        end = time.time_ns()
        start = end - int(seconds * 1e9)
        name = call.method.path[1:]
        span = self._tracer.start_span(
            name,
            context=self._context(call),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": call.method.service,
                "rpc.method": name.partition("/")[2],
                "rpc.grpc.status_code": int(code.value[0]),
            },
            start_time=start,
        )
        if span.is_recording():
            span.set_attribute("recserve.request_id", call.request_id)
            if call.reason:
                span.set_attribute("error.type", call.reason)
            if code in SERVER_FAULTS:
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
            self._stages(span, call, start)
        span.end(end)

    def _stages(self, parent: Any, call: Call, start: int) -> None:
        """Stages run one after the other, in the order in which they were noted, from the arrival on."""
        context = self._trace.set_span_in_context(parent)
        for stage, ns in call.stage_ns.items():
            self._tracer.start_span(stage, context=context, start_time=start).end(start + ns)
            start += ns

    def _context(self, call: Call) -> Any:
        carrier = {
            name: value
            for name in ("traceparent", "tracestate")
            if isinstance(value := call.header(name), str)
        }
        # Never the context of the thread: it belongs to whoever ends the call.
        return self._propagator.extract(
            carrier, context=self._trace.set_span_in_context(_nobody(self._trace))
        )

    def close(self) -> None:
        """Sends what waits and stops the exporter."""
        self._provider.shutdown()


def _nobody(trace: Any) -> Any:
    return trace.INVALID_SPAN


def new_tracer() -> Tracer:
    """Returns a tracer that exports as OTEL_* says; raises :class:`ConfigError` without the extra [otel]."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "telemetry.traces",
            found="true without opentelemetry",
            expected="an installation with the extra [otel]",
            cure="Run: pip install 'recserve[otel]'",
        ) from error
    for name in PROTOCOL_VARIABLES:
        if os.environ.get(name, "grpc") != "grpc":
            raise ConfigError(
                name, found=os.environ[name], expected="grpc", cure="Other protocols are not in [otel]."
            )
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins over our name.
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if named else {"service.name": "recserve"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)

"""OpenTelemetry spans: one for the request, with one child each for tokenization, the wait in the queue and every forward.

Needs the extra `otel`. Tracing is on when the standard variables name an exporter: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_TRACES_EXPORTER. Spans hold counts and times, never a text. The child spans are
created when the request ends, with the times at which each part really started and ended.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from app import __version__
from app.errors import StartError, install_command
from app.observability.request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SHUTDOWN_SECONDS = 2.0
FIRST_SERVER_ERROR = 500


def provider_from_environment(environment: Mapping[str, str] = os.environ) -> "TracerProvider | None":
    """The provider that the OTEL_* variables describe; None if they disable tracing or none is set.

    Raises StartError if the extra `otel` is not installed, or if the exporter or its protocol is not supported.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(environment.get, ENDPOINTS)) else "none")
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise StartError(
            f"the OTEL_* variables enable tracing, which needs the extra otel; run {install_command('otel')}"
        ) from error
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter not in {"otlp", "console"} or (exporter == "otlp" and protocol not in {None, "http/protobuf"}):
        raise StartError(
            f"OTEL_TRACES_EXPORTER is {exporter!r} with the protocol {protocol!r}, which is not supported; "
            "set it to otlp with http/protobuf, console or none"
        )
    own = Resource.create({SERVICE_NAME: "reward-service", SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()))  # OTEL_* variables override ours
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()))
    return provider


class Tracing:
    """Creates the spans of requests. Without a provider every method does nothing."""

    def __init__(self, provider: "TracerProvider | None") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("reward-service", __version__) if provider is not None else None

    def begin(self, context: RequestContext, scope: Scope) -> "Span | None":
        """Starts the request's span, as a child of the client's span if the request has a `traceparent` header."""
        if self._tracer is None:
            return None
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(context.method, extract(Headers(scope=scope)), SpanKind.SERVER)
        context.trace_id = f"{span.get_span_context().trace_id:032x}"
        return span

    def end(self, span: "Span | None", context: RequestContext) -> None:
        """Ends the request's span and creates those of its parts."""
        if span is None or self._tracer is None or not span.is_recording():
            return
        from opentelemetry.trace import StatusCode, set_span_in_context

        zero = time.time_ns() - int(time.perf_counter() * 1e9)  # perf_counter's zero, in ns since the epoch
        parent = set_span_in_context(span)
        for name, started, ended, attributes in parts_of(context):
            part = self._tracer.start_span(name, parent, attributes=attributes, start_time=zero + int(started * 1e9))
            part.end(zero + int(ended * 1e9))
        span.update_name(f"{context.method} {context.route}")
        span.set_attributes(attributes_of(context))
        if context.status >= FIRST_SERVER_ERROR:
            span.set_status(StatusCode.ERROR, context.code)
        span.end()

    def close(self) -> None:
        """Exports the remaining spans; gives up after `SHUTDOWN_SECONDS`, because the collector may be gone."""
        if self._provider is not None:
            closing = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
            closing.start()
            closing.join(SHUTDOWN_SECONDS)


def attributes_of(context: RequestContext) -> dict[str, Any]:
    """The attributes of the request's span; those without a value are left out."""
    attributes = {
        "http.request.method": context.method,
        "http.route": context.route,
        "http.response.status_code": context.status,
        "error.type": context.code,
        "reward.request_id": context.request_id,
        "reward.items": context.num_items,
        "reward.tokens": context.num_tokens,
        "reward.computed_tokens": context.num_computed_tokens,
        "reward.cached_tokens": context.num_cached_tokens,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def parts_of(context: RequestContext) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """Yields (name, start, end, attributes) of each child span, in seconds of `time.perf_counter`.

    A large request is tokenized and queued in slices, so its `tokenize` and `queue` spans overlap.
    """
    times = context.times
    if times is None or not times.batches:
        return
    yield "tokenize", times.submitted, times.last_queued, {}
    yield "queue", times.first_queued, times.last_taken, {}
    for batch in times.batches:
        for forward in batch.forwards:
            attributes = {
                "reward.model": forward.model,
                "reward.device": batch.device,
                "reward.batch.sequences": len(forward.scores),
                "reward.batch.tokens": forward.num_tokens,
                "reward.batch.computed_tokens": forward.num_computed_tokens,
                "reward.batch.cached_tokens": forward.num_cached_tokens,
            }
            yield "forward", forward.started, forward.started + forward.seconds, attributes

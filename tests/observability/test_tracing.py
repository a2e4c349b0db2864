"""Spans: what they hold, whose children they are, and how they reach a collector that speaks OTLP."""

import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from app.errors import StartError
from app.observability.tracing import Tracing, provider_from_environment
from tests.api.asking import TEA, ask
from tests.conftest import Serve

if TYPE_CHECKING:
    from app.service import Service

ROOT = Path(__file__).resolve().parents[2]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.fixture(autouse=True)
def quiet_exporter() -> Iterator[None]:
    """Its thread may try for a while longer to reach a collector that is gone; other tests read what is logged."""
    logging.getLogger(EXPORTER).disabled = False
    yield
    logging.getLogger(EXPORTER).disabled = True


Traced = Callable[..., InMemorySpanExporter]


@pytest.fixture
def traced(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """Has the service make spans from now on, with these options; what they are exported to."""

    def begin(**options: object) -> InMemorySpanExporter:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(service_of(client), "tracing", Tracing(provider))
        return exporter

    return begin


def service_of(client: httpx.Client) -> "Service":
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


def named(spans: tuple[ReadableSpan, ...]) -> dict[str, list[ReadableSpan]]:
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    return by_name


def test_a_request_is_a_span_with_its_parts_as_children(client: httpx.Client, traced: Traced) -> None:
    exporter = traced()
    answer = ask(client, "/score", {"items": [TEA, TEA]})
    spans = named(exporter.get_finished_spans())
    (request,) = spans["POST /score"]
    (tokenize,), (wait,), forwards = spans["tokenize"], spans["queue"], spans["forward"]
    assert len(forwards) == 2
    attributes = dict(request.attributes or {})
    assert attributes.pop("reward.request_id")
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
        "reward.items": 2,
        "reward.tokens": answer["usage"]["num_tokens"],
        "reward.computed_tokens": answer["usage"]["num_computed_tokens"],
        "reward.cached_tokens": answer["usage"]["num_cached_tokens"],
    }
    assert [(span.attributes or {})["reward.model"] for span in forwards] == ["safety", "helpfulness"]
    assert {span.parent.span_id for span in (tokenize, wait, *forwards) if span.parent} == {request.context.span_id}
    times = [(span.start_time or 0, span.end_time or 0) for span in (request, tokenize, wait, *forwards)]
    (begun, ended), *parts = times
    assert all(begun <= started <= stopped <= ended for started, stopped in parts)
    assert [started for started, _ in parts] == sorted(started for started, _ in parts)


def test_the_clients_trace_goes_on_here_and_is_named_in_the_log_record(client: httpx.Client, traced: Traced) -> None:
    exporter = traced()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert client.post("/score", json={"items": [TEA]}, headers=headers).status_code == 200
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    (request,) = named(spans)["POST /score"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\u00e9"])
def test_a_traceparent_that_is_none_begins_a_trace(client: httpx.Client, traced: Traced, header: str) -> None:
    exporter = traced()
    assert client.get("/info", headers=[(b"traceparent", header.encode())]).status_code == 200
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_an_error_has_its_code_and_only_the_services_own_fault_is_one(
    client: httpx.Client, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = traced()
    client.post("/score", json={"items": []})
    monkeypatch.setattr(service_of(client), "draining", True)
    client.post("/score", json={"items": [TEA]})
    refused, failed = exporter.get_finished_spans()
    assert (refused.attributes or {})["error.type"] == "invalid_input"
    assert refused.status.is_ok
    assert not refused.status.is_unset or refused.status.description is None
    assert (failed.attributes or {})["error.type"] == "shutting_down"
    assert not failed.status.is_ok


def test_no_text_is_in_a_span(client: httpx.Client, traced: Traced) -> None:
    exporter = traced()
    for body in ({"items": [{"text": "xyzzyplugh"}]}, {"items": [{"txt": "xyzzyplugh"}]}):
        client.post("/score?xyzzyplugh", json=body, headers={"user-agent": "xyzzyplugh"})
    client.get("/xyzzyplugh")
    spans = exporter.get_finished_spans()
    assert len(spans) >= 3
    assert "xyzzyplugh" not in "".join(span.to_json() for span in spans)


def test_what_is_not_sampled_makes_no_spans_and_works(client: httpx.Client, traced: Traced) -> None:
    exporter = traced(sampler=ALWAYS_OFF)
    ask(client, "/score", {"items": [TEA]})
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SERVICE_NAME": "alone"},
    ],
)
def test_tracing_is_off_unless_an_exporter_is_named(environment: dict[str, str]) -> None:
    assert provider_from_environment(environment) is None


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_an_exporter_that_is_not_known_ends_the_start(environment: dict[str, str]) -> None:
    with pytest.raises(StartError, match="http/protobuf"):
        provider_from_environment(environment)


def test_without_the_extra_the_start_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'opentelemetry': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from app.observability.tracing import provider_from_environment as provider\n"
        "assert provider({}) is None\n"
        "provider({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:1'})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 1
    assert "[otel]'" in done.stderr.splitlines()[-1]


class Collector(HTTPServer):
    """Receives what an OTLP exporter sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receive)
        self.received: queue.Queue[ExportTraceServiceRequest] = queue.Queue()


class Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.put(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_collector_gets_the_spans_under_the_name_that_the_environment_gives(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "rewards-7b")
        try:
            with serve() as client:
                ask(client, "/score", {"items": [TEA]})
            request = collector.received.get(timeout=30)  # sent when the service closed
        finally:
            collector.shutdown()
            thread.join()
    (spans,) = request.resource_spans
    assert {each.key: each.value.string_value for each in spans.resource.attributes}["service.name"] == "rewards-7b"
    assert {span.name for scope in spans.scope_spans for span in scope.spans} == {
        "POST /score",
        "tokenize",
        "queue",
        "forward",
    }


def test_a_collector_that_is_gone_disturbs_neither_the_answers_nor_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector() as gone:
        address = f"http://127.0.0.1:{gone.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    with serve() as client:
        for _ in range(3):
            ask(client, "/score", {"items": [TEA]})

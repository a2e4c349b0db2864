"""Log lines: one a request, with its id and its counts; never a text, a key or an exception's message; never in the way."""

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.engine.tokenization import Tokenization
from app.observability.log_formats import JSONFormatter, TextFormatter
from app.observability.log_queue import LogQueue
from app.observability.logs import LogFormat, LogLevel, log_loop_fault, log_to, num_dropped
from app.observability.request_context import RequestContext, bind_request
from tests.api.asking import TEA, ask
from tests.conftest import Serve

if TYPE_CHECKING:
    from app.service import Service

MARKER = "xyzzyplugh"
"""What stands in every text, key and path that is sent, and in no line that is logged."""
KEY = f"{MARKER}-key"
ROOT = Path(__file__).resolve().parents[2]
Lines = list[dict[str, Any]]


@contextmanager
def logged(path: Path, log_format: LogFormat = "json", level: LogLevel = "info") -> Iterator[None]:
    with path.open("w") as stream, log_to(log_format, level, stream):
        yield


def lines_of(path: Path) -> Lines:
    """But for the server's own, which says that it is ready whenever its next tick is."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["logger"] != "app.http.server"]


def requests_of(path: Path) -> Lines:
    return [line for line in lines_of(path) if line["logger"] == "app.requests"]


def service_of(client: httpx.Client) -> "Service":
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


def test_a_request_is_one_line_with_its_counts_and_times(client: httpx.Client, tmp_path: Path) -> None:
    with logged(tmp_path / "log"):
        answer = ask(client, "/score", {"items": [TEA, TEA]})
    (line,) = requests_of(tmp_path / "log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert re.fullmatch(r"[0-9a-f]{16}", line.pop("request_id"))
    assert 0 < line.pop("queue_ms") < line.pop("total_ms") < 60_000
    assert line == {
        "level": "info",
        "logger": "app.requests",
        "message": "POST /score 200",
        "method": "POST",
        "route": "/score",
        "status": 200,
        "items": 2,
        "tokens": answer["usage"]["num_tokens"],
        "computed_tokens": answer["usage"]["num_computed_tokens"],
        "cached_tokens": answer["usage"]["num_cached_tokens"],
    }


@pytest.mark.parametrize(
    ("path", "body", "items"),
    [
        ("/score", {"items": [TEA] * 3}, 3),
        ("/compare", {"pairs": [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2}, 2),
        ("/ppo-reward", {"items": [TEA, TEA]}, 2),
        ("/ppo-reward", {"items": [{"safety_score": 1.0, "helpfulness_score": 2.0}] * 2}, 2),
        ("/classify", {"input": ["tea", "more tea"]}, 2),
        ("/get_reward", {"query": ["tea"], "prompts": ["t"]}, 1),
    ],
)
def test_every_route_says_how_many_items_it_had(
    client: httpx.Client, tmp_path: Path, path: str, body: dict[str, Any], items: int
) -> None:
    with logged(tmp_path / "log"):
        assert client.post(path, json=body).status_code == 200
    (line,) = requests_of(tmp_path / "log")
    assert (line["route"], line["items"]) == (path, items)


def test_a_refused_request_has_its_code(client: httpx.Client, tmp_path: Path) -> None:
    with logged(tmp_path / "log"):
        client.post("/score", json={"items": []})
        client.get("/nowhere")
    refused, lost = requests_of(tmp_path / "log")
    assert (refused["status"], refused["code"], refused["level"]) == (422, "invalid_input", "info")
    assert (lost["status"], lost["code"], lost["route"]) == (404, "not_found", "unmatched")


@pytest.mark.parametrize("given", ["abc-1", "00-4bf92f3577b34da6a3ce929d0e0e4736", "a" * 128])
def test_the_clients_request_id_is_kept_and_returned(client: httpx.Client, tmp_path: Path, given: str) -> None:
    with logged(tmp_path / "log"):
        response = client.post("/score", json={"items": [TEA]}, headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert requests_of(tmp_path / "log")[0]["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a\tb", 'x"}', "a" * 129, "\u00e9", "${jndi:x}", "\x1b[31m"])
def test_an_id_that_could_disturb_a_log_is_replaced(client: httpx.Client, given: str) -> None:
    response = client.get("/info", headers=[(b"x-request-id", given.encode())])
    if '"invalid_http"' not in response.text:  # which control characters make it already
        assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])
    else:
        assert "\x1b" in given


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/score", "/metrics"])
def test_every_response_has_an_id(client: httpx.Client, path: str) -> None:
    first, second = (client.get(path).headers["x-request-id"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("level", "routes"), [("info", ["/score"]), ("debug", ["/health", "/ready", "/metrics", "/score"])]
)
def test_probes_are_for_debugging(client: httpx.Client, tmp_path: Path, level: LogLevel, routes: list[str]) -> None:
    with logged(tmp_path / "log", level=level):
        for path in ("/health", "/ready", "/metrics"):
            client.get(path)
        ask(client, "/score", {"items": [TEA]})
    assert [line["route"] for line in requests_of(tmp_path / "log")] == routes


def test_a_fault_is_a_warning_and_a_success_is_not(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with logged(tmp_path / "log", level="warning"):
        ask(client, "/score", {"items": [TEA]})
        monkeypatch.setattr(service_of(client), "draining", True)
        assert client.post("/score", json={"items": [TEA]}).status_code == 503
    (line,) = requests_of(tmp_path / "log")
    assert (line["level"], line["status"], line["code"]) == ("warning", 503, "shutting_down")


def test_the_models_that_are_still_loading_are_no_warning(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service_of(client), "draining", True)
    with logged(tmp_path / "log", level="debug"):
        assert client.get("/ready").status_code == 503
    (line,) = requests_of(tmp_path / "log")
    assert (line["level"], line["status"], line["route"]) == ("debug", 503, "/ready")


def test_a_terminal_gets_words(client: httpx.Client, tmp_path: Path) -> None:
    with logged(tmp_path / "log", "text"):
        client.post("/score", json={"items": [TEA]}, headers={"x-request-id": "abc"})
        client.post("/score", json={"items": []}, headers={"x-request-id": "def"})
    first, second = (line for line in (tmp_path / "log").read_text().splitlines() if "POST" in line)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d INFO    POST /score 200  1 items  \d+ tokens  \d+ computed  "
        r"queue \d+\.\d ms  total \d+\.\d ms  abc",
        first,
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    POST /score 422  invalid_input  total \d+\.\d ms  def", second)


def test_auto_is_text_on_a_terminal_and_json_elsewhere(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal, log_to("auto", "info", terminal):
        logging.getLogger("app.test").info("hello")
    said = os.read(leader, 1000).decode()
    os.close(leader)
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    hello\r\n", said)
    with logged(tmp_path / "log", "auto"):
        logging.getLogger("app.test").info("hello")
    assert lines_of(tmp_path / "log")[0]["message"] == "hello"


# -- never a text -------------------------------------------------------------------------------------------------------

TEXT = f"a {MARKER} b"
HIDDEN: list[tuple[str, Any]] = [
    ("/score", {"items": [{"prompt": TEXT, "response": TEXT}, {"text": TEXT}]}),
    ("/score", {"items": [{"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]}]}),
    ("/score", {"items": [{"prompt": TEXT}]}),
    ("/score", {"items": [{"text": TEXT * 400}]}),
    ("/score", {"items": [{"messages": [{"role": TEXT, "content": TEXT}]}]}),
    ("/score", {"items": [{"text": TEXT}], MARKER: 1}),
    ("/score", {"items": [{"text": TEXT}], "truncation": TEXT}),
    ("/score", {"items": TEXT}),
    ("/score", TEXT),
    ("/compare", {"pairs": [{"prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "rating": "better"}]}),
    ("/compare", {"pairs": [{"prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "rating": TEXT}]}),
    ("/ppo-reward", {"items": [{"prompt": TEXT, "response": TEXT}] * 2}),
    ("/ppo-reward", {"items": [{"text": TEXT, "group_id": TEXT}], "whiten": {"mode": "group"}}),
    ("/classify", {"input": [TEXT]}),
    ("/classify", {"text": TEXT}),
    ("/pooling", {"model": TEXT, "input": TEXT}),
    ("/v1/embeddings", {"model": TEXT, "input": TEXT}),
    ("/predict", {"inputs": TEXT}),
    ("/get_reward", {"query": [TEXT], "prompts": [TEXT]}),
    (f"/{MARKER}?{MARKER}={MARKER}", {}),
]


def send_everything(client: httpx.Client) -> None:
    headers = {
        "authorization": f"Bearer {KEY}",
        "x-request-id": f"{MARKER} {MARKER}",
        "user-agent": MARKER,
        "referer": MARKER,
        "cookie": MARKER,
    }
    for path, body in HIDDEN:
        client.post(path, json=body, headers=headers)
        client.post(path, content=json.dumps(body)[:-2], headers=headers | {"content-type": "application/json"})
        client.post(path, json=body, headers=headers | {"content-type": f"text/{MARKER}"})
        client.post(path, json=body, headers=headers | {"authorization": f"Bearer {KEY}{MARKER}"})
        client.post(path, json=body, headers=headers | {"host": f"{MARKER}.example"})
        client.get(path, headers=headers)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_text_and_no_key_is_ever_logged(serve: Serve, tmp_path: Path, log_format: LogFormat) -> None:
    for keys in ((KEY,), ()):
        with logged(tmp_path / "log", log_format, "debug"), serve(api_keys=keys) as client:
            send_everything(client)
        said = (tmp_path / "log").read_text()
        assert len(said.splitlines()) >= 6 * len(HIDDEN)
        assert MARKER not in said


class FaultyEngine:
    """Raises what no one expects, with the text in the message and in what caused it."""

    is_alive = True

    def __init__(self, engine: Any) -> None:
        self.models, self.devices = engine.models, engine.devices

    async def score(self, inputs: Any, **_: object) -> None:
        raise ValueError(f"cannot take {inputs}") from KeyError(str(inputs))


def test_an_unexpected_fault_is_logged_with_its_place_and_not_its_message(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = service_of(client)
    monkeypatch.setattr(service, "engine", FaultyEngine(service.engine))
    with logged(tmp_path / "log"):
        response = client.post("/score", json={"items": [{"text": TEXT}]}, headers={"x-request-id": "fault-1"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "inference_failed")
    assert response.headers["x-request-id"] == "fault-1"
    assert MARKER not in (tmp_path / "log").read_text()
    fault, request = lines_of(tmp_path / "log")
    assert (fault["level"], fault["request_id"], fault["message"]) == ("error", "fault-1", "an unexpected error")
    assert "builtins.ValueError\ncaused by\n" in fault["exception"]
    assert fault["exception"].endswith("builtins.KeyError")
    assert 'test_logs.py", line ' in fault["exception"]
    assert (request["status"], request["code"], request["level"]) == (500, "inference_failed", "warning")


class FaultyTokenization(Tokenization):
    def encode(self, inputs: Any, truncation: Any) -> Any:  # noqa: ARG002 - the signature of what it replaces
        raise ValueError(f"cannot tokenize {inputs}")


def test_a_fault_in_the_tokenizer_is_logged_without_the_text(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for tokenization in service_of(client).ready_engine()._tokenizations.values():
        monkeypatch.setattr(tokenization, "__class__", FaultyTokenization)
    with logged(tmp_path / "log"):
        assert client.post("/score", json={"items": [{"text": TEXT}]}).status_code == 500
    said = (tmp_path / "log").read_text()
    assert MARKER not in said
    assert "tokenizing failed for 1 requests" in said


def test_a_fault_in_the_event_loop_is_logged_without_what_it_held(tmp_path: Path) -> None:
    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_fault)

        def broken(text: str) -> None:
            raise ValueError(text)

        loop.call_soon(broken, TEXT)
        await asyncio.sleep(0)

    with logged(tmp_path / "log"):
        asyncio.run(fail())
    (line,) = lines_of(tmp_path / "log")
    assert line["message"] == "an unexpected error in the event loop"
    assert line["exception"].endswith("builtins.ValueError")
    assert MARKER not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()])
def test_nothing_in_a_message_can_begin_a_line_or_steer_a_terminal(formatter: logging.Formatter) -> None:
    hostile = "a\nb\r\x1b[31mc\u2028d\x85e\x00"
    shown = formatter.format(logging.LogRecord("app.x", logging.INFO, "", 0, "said %s", (hostile,), None))
    assert len(shown.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", shown)


# -- everybody's lines --------------------------------------------------------------------------------------------------


def test_libraries_lines_and_warnings_go_the_same_way_from_warnings_on(tmp_path: Path) -> None:
    own = io.StringIO()
    loud = logging.getLogger("loud_library")
    loud.addHandler(logging.StreamHandler(own))
    loud.propagate = False
    with logged(tmp_path / "log", level="debug"):
        loud.warning("from a library with a handler of its own")
        logging.getLogger("uvicorn.error").warning("from uvicorn")
        logging.getLogger("uvicorn.error").info("not asked for")
        logging.getLogger("app.here").debug("our own")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("from Python", UserWarning, stacklevel=1)
    said = [line["message"] for line in lines_of(tmp_path / "log")]
    assert said[:3] == ["from a library with a handler of its own", "from uvicorn", "our own"]
    assert "from Python" in said[3]
    assert len(said) == 4
    assert own.getvalue() == ""
    assert len(loud.handlers) == 1
    assert not loud.propagate


def own_handler() -> LogQueue:
    return next(each for each in logging.getLogger().handlers if isinstance(each, LogQueue))


# -- never in the way ---------------------------------------------------------------------------------------------------


def test_a_pipe_that_nobody_reads_costs_lines_and_no_answer(serve: Serve) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, serve() as client, log_to("json", "info", stream):
        handler = own_handler()
        for _ in range(30_000):
            logging.getLogger("app.test").info("x" * 100)
        for _ in range(3):
            ask(client, "/score", {"items": [TEA]})
        dropped = num_dropped()
        values = client.get("/metrics").text
        assert f"reward_log_lines_dropped_total {float(num_dropped())}" in values
        assert dropped > 30_000 - 10_000 - 500 - 65_536 // 100  # in the queue, in the writer's hands, in the pipe
        os.close(reader)  # whoever should have read is gone: the write that was stuck fails
        handler.stop()
        assert handler.queue.empty()
        assert num_dropped() > 30_000 - 65_536 // 100  # all but what the pipe holds
    assert num_dropped() == 0  # the context's own


def test_a_full_disk_costs_lines_and_no_answer(serve: Serve) -> None:
    with Path("/dev/full").open("w") as stream, serve() as client, log_to("json", "info", stream):
        ask(client, "/score", {"items": [TEA]})
        own_handler().stop()
        assert num_dropped() >= 1


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_standard_error_nothing_is_written_anywhere(client: httpx.Client, stream: Any) -> None:
    with log_to("json", "info", stream):
        ask(client, "/score", {"items": [TEA]})
        assert num_dropped() == 1


def test_a_line_whose_arguments_do_not_fit_is_dropped_and_raises_nothing(tmp_path: Path) -> None:
    with logged(tmp_path / "log"):
        logging.getLogger("app.test").info("%d items", "three")
        logging.getLogger("app.test").info("the next")
        assert num_dropped() == 1
    assert [line["message"] for line in lines_of(tmp_path / "log")] == ["the next"]


def test_a_record_that_cannot_be_written_as_json_costs_no_other_line(tmp_path: Path) -> None:
    with logged(tmp_path / "log"):
        for fields in ({"n": 1}, {"n": object()}, {"n": 2}):
            logging.getLogger("app.test").info("a line", extra={"fields": fields})
        own_handler().stop()
        assert num_dropped() == 1
    assert [line["n"] for line in lines_of(tmp_path / "log")] == [1, 2]


def test_without_memory_for_another_thread_the_last_lines_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with logged(tmp_path / "log"):
        logging.getLogger("app.test").info("the last line")
        monkeypatch.setattr(threading.Thread, "start", fails)
    assert [line["message"] for line in lines_of(tmp_path / "log")] == ["the last line"]


def test_a_process_whose_log_nobody_reads_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import logging, sys\n"
        "from app.observability.logs import log_to\n"
        "with log_to('json', 'info', sys.stderr):\n"
        "    for _ in range(5000):\n"
        "        logging.getLogger('app.test').info('x' * 100)\n"
        "print('ended')\n"
    )
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(  # noqa: S603 - our own script
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"ended\n"


def test_a_pipe_that_others_have_made_nonblocking_gets_every_line() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received: list[bytes] = []

    def read() -> None:
        while chunk := os.read(reader, 1000):
            received.append(chunk)

    reading = threading.Thread(target=read)
    with os.fdopen(writer, "w") as stream, log_to("json", "info", stream):
        for n in range(3000):  # several times what the pipe holds
            logging.getLogger("app.test").info("%d %s", n, "x" * 100)
        reading.start()
        handler = own_handler()
        while handler.queue.qsize():
            time.sleep(0.01)
    reading.join()
    os.close(reader)
    assert b"".join(received).count(b"\n") == 3000


def test_a_line_within_a_request_has_the_requests_id() -> None:
    with Path(os.devnull).open("w") as stream:
        handler = LogQueue(JSONFormatter(), stream)  # which is not started, so that the queue keeps what it gets

    async def speak(request_id: str) -> None:
        bind_request(RequestContext(request_id, "GET"))
        await asyncio.sleep(0)
        handler.emit(logging.LogRecord("app.x", logging.INFO, "", 0, "said", None, None))

    async def both() -> None:
        await asyncio.gather(speak("one"), speak("two"))

    asyncio.run(both())
    lines = [JSONFormatter().format(handler.queue.get_nowait()) for _ in range(2)]
    assert [json.loads(line)["request_id"] for line in lines] == ["one", "two"]

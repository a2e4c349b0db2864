import json
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.servers.dialects import ECHO, OPENRLHF, SERVICE, VLLM, Dialect, Reply
from benchmarks.servers.process import ServerError, free_port, running
from benchmarks.servers.targets import TARGET_NAMES, Options, _command, parse_variant


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (SERVICE, {"items": [{"text": "hi"}]}),
        (ECHO, {"items": [{"text": "hi"}]}),
        (VLLM, {"model": "reward", "input": "hi", "use_activation": False}),
        (OPENRLHF, {"query": ["hi"], "prompts": [""]}),
    ],
)
def test_a_request_carries_one_text_in_the_servers_dialect(dialect: Dialect, body: object) -> None:
    assert json.loads(dialect.request("hi")) == body


@pytest.mark.parametrize(
    ("dialect", "answer", "reply"),
    [
        (
            SERVICE,
            {
                "results": [{"scores": {"helpfulness": {"score": -2.5, "probability": 0.1, "num_tokens": 3}}}],
                "usage": {"num_tokens": 3, "num_computed_tokens": 2},
            },
            Reply(-2.5, 2),
        ),
        (VLLM, {"data": [{"index": 0, "label": "LABEL_0", "probs": [1.5], "num_classes": 1}]}, Reply(1.5)),
        (OPENRLHF, {"rewards": [0.5], "scores": [0.6]}, Reply(0.5)),
        (ECHO, {"items": [{"text": "hi"}]}, Reply(None)),
    ],
)
def test_an_answer_is_read_in_the_servers_dialect(dialect: Dialect, answer: object, reply: Reply) -> None:
    assert dialect.reply(json.dumps(answer).encode()) == reply


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_every_target_has_a_command_on_its_port(name: str, tmp_path: Path) -> None:
    command, environment = _command(name, tmp_path, 4321, Options(vllm_python=Path("venv/bin/python")))
    assert "4321" in [*command, *environment.values()]


def test_vllm_gets_every_core() -> None:
    _, environment = _command("vllm", Path(), 1, Options(num_threads=4, vllm_python=Path("venv/bin/python")))
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert environment["OMP_NUM_THREADS"] == "4"


def test_vllm_as_it_comes_keeps_its_own_binding() -> None:
    _, environment = _command("vllm-default", Path(), 1, Options(vllm_python=Path("venv/bin/python")))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment


def test_vllm_can_be_given_another_environment() -> None:
    options = Options(vllm_python=Path("venv/bin/python"), vllm_environment={"VLLM_CPU_OMP_THREADS_BIND": "auto"})
    _, environment = _command("vllm", Path(), 1, options)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "auto"


def test_a_variant_is_the_service_with_its_own_environment() -> None:
    options = Options(variants=dict([parse_variant("small:REWARD_MAX_BATCH_TOKENS=512,REWARD_DTYPE=bfloat16")]))
    command, environment = _command("service:small", Path(), 1, options)
    assert command == list(options.service_command)
    assert environment["REWARD_MAX_BATCH_TOKENS"] == "512"
    assert environment["REWARD_DTYPE"] == "bfloat16"


def test_the_baseline_is_another_build_with_the_services_environment() -> None:
    options = Options(baseline_command=("/other/reward-service", "serve"))
    command, environment = _command("baseline", Path(), 1, options)
    assert command == ["/other/reward-service", "serve"]
    assert environment == _command("service", Path(), 1, options)[1]


@pytest.mark.parametrize("text", ["", "name", "name:", ":KEY=1", "name:KEY", "name:=1"])
def test_a_variant_that_sets_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE,KEY=VALUE"):
        parse_variant(text)


def test_a_server_runs_pauses_and_stops(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with running("files", command, port=port, ready_path="/", environment={}, log_dir=tmp_path) as server:
        pid = server._process.pid
        server.pause()
        assert server._process.poll() is None
        server.resume()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            assert answer.status == 200
        assert server.start_seconds > 0
        assert server.resident_bytes() > 1e6
        assert 0 < server.processor_seconds() < 60  # of the start alone
    assert server._process.returncode in {0, -signal.SIGTERM}
    assert not Path(f"/proc/{pid}").exists()


def test_a_server_that_exits_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with (
        pytest.raises(ServerError, match=r"broken exited with 3:\nno such model"),
        running("broken", command, port=free_port(), ready_path="/", environment={}, log_dir=tmp_path),
    ):
        pass

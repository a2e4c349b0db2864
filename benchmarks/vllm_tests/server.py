"""Replaces the `RemoteOpenAIServer` of vLLM's tests: starts this service with vLLM's defaults.

Runs in vLLM's environment, so it imports nothing from this project.
"""

import os
import socket
import subprocess
import time
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import requests

START_SECONDS = 120
RENAMED = {"score": "v1/score"}
"""vLLM serves its score route under both paths; here /score is a different route."""
OPTIONS = {"--max-model-len": "REWARD_MAX_LENGTH"}
"""vLLM's flags that have a counterpart; the others choose a model, a type or a template that the tests assume."""


class RemoteOpenAIServer:
    def __init__(self, _: str, args: list[str], **__: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {
            "REWARD_HELPFULNESS_MODEL": os.environ["VLLM_TESTS_MODEL"],
            "REWARD_SAFETY_MODEL": "",
            "REWARD_PORT": str(self.port),
            "REWARD_COMPAT_ACTIVATION": "true",  # vLLM's defaults: a sigmoid, and an error for what is too long
            "REWARD_COMPAT_TRUNCATION": "error",
            "REWARD_LOG_LEVEL": "error",
        }
        settings |= {OPTIONS[flag]: value for flag, value in pairwise(args) if flag in OPTIONS}
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [os.environ["VLLM_TESTS_SERVER_PYTHON"], "-c", "from app.cli import main; main()", "serve"]
        self.process = subprocess.Popen(command, env=clean | settings, cwd=os.environ["VLLM_TESTS_SERVER_ROOT"])

    def __enter__(self) -> Self:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if requests.get(self.url_for("ready"), timeout=1).status_code == 200:
                    return self
            except requests.ConnectionError:
                pass
            time.sleep(0.2)
        raise RuntimeError("the service did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()

    def url_for(self, *parts: str) -> str:
        path = "/".join(part.strip("/") for part in parts if part)
        return f"http://127.0.0.1:{self.port}/{RENAMED.get(path, path)}"

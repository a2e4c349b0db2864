"""The device to run on, what is installed, and the report that both commands end with."""

import argparse
import json
import platform
import sys
import time
from typing import Any

import torch
import transformers

from app.engine import self_test


def parse_device(description: str | None, arguments: list[str] | None) -> torch.device:
    """The device of the command line, by default the first GPU. Without one, prints a message and exits with 0."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a small form, for a try")
    name = parser.parse_args(arguments).device
    if name == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was run")
        print(json.dumps({"ran": False, "reason": "no GPU", **versions()}))
        sys.exit(0)
    if name == "cpu":  # as on a GPU: flex_attention, compiled
        self_test.is_gpu = lambda device: True  # noqa: ARG005 - as it is called
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def about(device: torch.device) -> dict[str, Any]:
    """The device and what is installed."""
    if device.type != "cuda":
        return {"ran": True, "device": "cpu", **versions()}
    properties = torch.cuda.get_device_properties(device)
    memory = round(properties.total_memory / 1e9, 1)
    return {"ran": True, "device": properties.name, "memory_gb": memory, "cuda": torch.version.cuda, **versions()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Watch:
    """Prints the next step, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"{self.seconds:6.1f} s  {text}", flush=True)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

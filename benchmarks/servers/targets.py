"""The servers that can be measured, by name: command, environment, and how to run one pass over texts."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.client import Connection, Endpoint
from benchmarks.load import LoadError, Run, closed_loop, open_loop
from benchmarks.servers.dialects import ECHO, OPENRLHF, SERVICE, VLLM, Dialect, Reply
from benchmarks.servers.process import ServerProcess, free_port, running

RUN_SECONDS = 900.0
TARGET_NAMES = ("service", "in-process", "vllm", "vllm-default", "padded", "echo")
VLLM_NAMES = frozenset({"vllm", "vllm-default"})
VARIANT_PREFIX = "service:"
BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Options:
    """How the servers are started.

    `variants`: environments under which the service also runs, as targets named `service:` and the variant's name.
    `baseline_command`: another build of the service, run as the target `baseline`.
    `vllm_python` None: vLLM is left out.
    """

    num_threads: int = 2
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    padded_batch_size: int = 16
    service_command: tuple[str, ...] = (str(Path(sys.executable).with_name("reward-service")), "serve")
    baseline_command: tuple[str, ...] = ()
    vllm_python: Path | None = None
    vllm_arguments: tuple[str, ...] = ()
    vllm_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scored:
    """A run and its parsed responses, in the texts' order."""

    run: Run
    replies: tuple[Reply, ...]

    @property
    def scores(self) -> list[float]:
        """Every score; empty for a server that computes none."""
        return [reply.score for reply in self.replies if reply.score is not None]


class Target(Protocol):
    """A started server that runs texts."""

    @property
    def process(self) -> ServerProcess: ...

    async def closed(self, texts: Sequence[str], concurrency: int) -> Scored: ...


@dataclass(frozen=True, slots=True)
class HttpTarget:
    process: ServerProcess
    dialect: Dialect

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.process.port, self.dialect.path)

    async def closed(self, texts: Sequence[str], concurrency: int) -> Scored:
        bodies = [self.dialect.request(text) for text in texts]
        async with asyncio.timeout(RUN_SECONDS):
            run = await closed_loop(self.endpoint, bodies, concurrency)
        return Scored(run, tuple(self.dialect.reply(body) for body in run.bodies))

    async def open(self, texts: Sequence[str], rate: float, seed: int) -> Scored:
        bodies = [self.dialect.request(text) for text in texts]
        async with asyncio.timeout(RUN_SECONDS):
            run = await open_loop(self.endpoint, bodies, rate, seed)
        return Scored(run, tuple(self.dialect.reply(body) for body in run.bodies))


@dataclass(frozen=True, slots=True)
class InProcessTarget:
    process: ServerProcess

    async def closed(self, texts: Sequence[str], concurrency: int) -> Scored:
        endpoint = Endpoint(self.process.port, "/run")
        connection = await Connection.connect(endpoint)
        body = json.dumps({"texts": list(texts), "concurrency": concurrency}).encode()
        async with asyncio.timeout(RUN_SECONDS):
            response = await connection.send(endpoint.request_bytes(body))
        connection.close()
        if response.status != 200:
            raise LoadError(f"the in-process run was answered with {response.status}: {response.body[:300]!r}")
        answer = json.loads(response.body)
        replies = [Reply(*pair) for pair in zip(answer["scores"], answer["num_computed_tokens"], strict=True)]
        return Scored(Run(answer["seconds"], tuple(answer["latencies"]), ()), tuple(replies))


@contextlib.contextmanager
def launched(name: str, checkpoint: Path, options: Options, log_dir: Path) -> Iterator[Target]:
    """Start the target `name` (of TARGET_NAMES, or a variant's) on `checkpoint`; stop it at the end."""
    port = free_port()
    command, environment = _command(name, checkpoint, port, options)
    dialect = SERVICE if name.startswith(VARIANT_PREFIX) else _DIALECTS.get(name)
    ready_path = dialect.ready_path if dialect is not None else "/ready"
    file_name = name.replace(":", "-")
    with running(
        file_name, command, port=port, ready_path=ready_path, environment=environment, log_dir=log_dir
    ) as process:
        yield InProcessTarget(process) if dialect is None else HttpTarget(process, dialect)


def parse_variant(text: str) -> tuple[str, dict[str, str]]:
    """Read `NAME:KEY=VALUE,KEY=VALUE`, a variant of the service. Raises ValueError."""
    name, _, settings = text.partition(":")
    if not name:
        raise ValueError(f"{text!r} is not NAME:KEY=VALUE,KEY=VALUE")
    return name, parse_settings(settings)


def parse_settings(text: str) -> dict[str, str]:
    """Read `KEY=VALUE,KEY=VALUE`, environment variables. Raises ValueError."""
    pairs = [setting.partition("=") for setting in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError(f"{text!r} is not KEY=VALUE,KEY=VALUE")
    return {key: value for key, _, value in pairs}


_DIALECTS = {
    "service": SERVICE,
    BASELINE: SERVICE,
    "vllm": VLLM,
    "vllm-default": VLLM,
    "padded": OPENRLHF,
    "echo": ECHO,
}


def _command(name: str, checkpoint: Path, port: int, options: Options) -> tuple[list[str], dict[str, str]]:
    """Return a target's command line and its additional environment variables."""
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    common = ["--port", str(port)]
    threads = ["--threads", str(options.num_threads)]
    if name in {"service", BASELINE} or name.startswith(VARIANT_PREFIX):
        chosen = options.baseline_command if name == BASELINE else options.service_command
        variant = options.variants[name.removeprefix(VARIANT_PREFIX)] if name.startswith(VARIANT_PREFIX) else {}
        return list(chosen), environment | _service_environment(checkpoint, port, options) | dict(variant)
    match name:
        case "in-process":
            module = "benchmarks.servers.in_process"
            return [sys.executable, "-m", module, str(checkpoint), *common, *threads], environment
        case "vllm" | "vllm-default":
            binding = _all_cores(options) if name == "vllm" else {}
            given = _vllm_environment(options) | binding | dict(options.vllm_environment)
            return _vllm_command(checkpoint, common, options), environment | given
        case "padded":
            batch = ["--batch-size", str(options.padded_batch_size)]
            module = "benchmarks.servers.padded"
            return [sys.executable, "-m", module, str(checkpoint), *common, *threads, *batch], environment
        case "echo":
            return [sys.executable, "-m", "benchmarks.servers.echo", *common], environment
        case _:
            raise ValueError(f"no target is named {name!r}; there are {', '.join(TARGET_NAMES)}")


def _service_environment(checkpoint: Path, port: int, options: Options) -> dict[str, str]:
    return {
        "REWARD_SAFETY_MODEL": "",
        "REWARD_HELPFULNESS_MODEL": str(checkpoint),
        "REWARD_PORT": str(port),
        "REWARD_NUM_THREADS": str(options.num_threads),
    }


def _vllm_command(checkpoint: Path, common: list[str], options: Options) -> list[str]:
    if options.vllm_python is None:
        raise ValueError("vLLM needs --vllm-python, the Python of an environment that has it")
    return [
        str(options.vllm_python.parent / "vllm"),
        "serve",
        str(checkpoint),
        *("--runner", "pooling", "--dtype", "float32", "--served-model-name", "reward"),
        "--disable-uvicorn-access-log",
        *common,
        *options.vllm_arguments,
    ]


def _vllm_environment(options: Options) -> dict[str, str]:
    """Sets the memory of its KV cache, because the default takes most of the machine's."""
    return {
        "OMP_NUM_THREADS": str(options.num_threads),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _all_cores(options: Options) -> dict[str, str]:
    """Gives vLLM all cores, as the other servers have.

    By default (`auto`) it keeps one core free for its API server, which on two cores halves its arithmetic and overrides
    OMP_NUM_THREADS.
    """
    last_core = options.num_threads - 1
    return {"VLLM_CPU_OMP_THREADS_BIND": f"0-{last_core}" if last_core else "0"}

"""The console script: `reward-service serve | score | compare | init`."""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from tqdm import tqdm

from app.errors import InvalidInputError, RewardServiceError
from app.settings import Settings

logger = logging.getLogger(__name__)
LINES_A_REQUEST = 256
WITHOUT_A_NETWORK = {"api_keys": (), "deadline_seconds": 1e9, "max_body_mb": 1e9}
"""What guards a service against its clients, and would only be in the way of its owner's file."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit code: 0, 1 where it fails (one line on stderr), 2 for wrong usage."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if options.command == "serve" else logging.WARNING, format="%(message)s")
    try:
        return int(options.run(options))
    except (RewardServiceError, ValidationError, OSError) as error:
        sys.stderr.write(f"reward-service: {in_one_line(error)}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def in_one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(map(setting_error, error.errors()))
    return " ".join(str(error).split())


def setting_error(error: ErrorDetails) -> str:
    """The setting, its value unless that is a secret, and what is wrong with it."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    value = "" if name == "api_keys" else f" {error['input']!r}"
    return f"REWARD_{name.upper()}{value}: {message[0].lower()}{message[1:]}"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="reward-service", description="Llama 2 style rewards over HTTP for RL trainers.")
    commands = top.add_subparsers(dest="command", required=True)

    serve = commands.add_parser("serve", help="serve the reward models over HTTP")
    add_settings(serve)
    serve.set_defaults(run=run_serve)

    for name, run, what in (
        ("score", run_score, "score items, one JSON object a line, as in POST /score"),
        ("compare", run_compare, "compare pairs, one JSON object a line, as in POST /compare"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("file", help="a JSONL file, - for stdin")
        command.add_argument("--out", type=Path, help="where the results go, a line each; stdout by default")
        if name == "compare":
            command.add_argument("--model", choices=("helpfulness", "safety"), default="helpfulness")
            command.add_argument("--margin-scheme", choices=("large", "small"), default="large")
        command.add_argument("--truncation", choices=("error", "prompt", "left", "right"), default="error")
        add_settings(command)
        command.set_defaults(run=run)

    init = commands.add_parser("init", help="make an untrained reward model of a causal language model")
    init.add_argument("--from-lm", type=Path, required=True, help="a directory with a causal language model")
    init.add_argument("--out", type=Path, required=True, help="a new directory for the reward model")
    init.add_argument("--seed", type=int, default=0, help="seed of the new head")
    init.set_defaults(run=run_init)
    return top


def add_settings(command: argparse.ArgumentParser) -> None:
    """A flag per field of Settings; what is not given comes from the environment, then from the default."""
    group = command.add_argument_group("settings", "each also an environment variable: --port is REWARD_PORT")
    for name, field in Settings.model_fields.items():
        words = " ".join((field.description or "").split()).replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=f"setting_{name}", metavar="VALUE", help=words, default=argparse.SUPPRESS)


def settings_of(options: argparse.Namespace) -> Settings:
    prefix = "setting_"
    given = {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}
    return Settings(**given)


def run_serve(options: argparse.Namespace) -> int:
    from app.main import create_app
    from app.server import run

    settings = settings_of(options)
    if settings.host not in {"127.0.0.1", "localhost", "::1"} and not settings.api_keys:
        logger.warning("listening on %s without an API key: anyone who reaches it may use it", settings.host)
    return run(create_app(settings))


def run_score(options: argparse.Namespace) -> int:
    body = {"truncation": options.truncation}
    return asyncio.run(post_lines(options, "/score", "items", body))


def run_compare(options: argparse.Namespace) -> int:
    body = {"truncation": options.truncation, "model": options.model, "margin_scheme": options.margin_scheme}
    return asyncio.run(post_lines(options, "/compare", "pairs", body))


async def post_lines(options: argparse.Namespace, path: str, name: str, body: dict[str, Any]) -> int:
    """Sends a file's lines through the app that serves, without a socket, and writes a result a line."""
    lines = list(read_lines(options.file))
    settings = settings_of(options).model_copy(update=WITHOUT_A_NETWORK)
    size = min(LINES_A_REQUEST, settings.max_items)
    async with InProcess(settings) as service:
        with contextlib.ExitStack() as files:
            out = files.enter_context(options.out.open("w", encoding="utf-8")) if options.out else sys.stdout
            bar = files.enter_context(tqdm(total=len(lines), unit=name[:-1], disable=None))
            summaries: list[dict[str, Any]] = []
            for start in range(0, len(lines), size):
                chunk = lines[start : start + size]
                try:
                    answer = await service.post(path, body, name, [line for _, line in chunk])
                except RefusedError as error:
                    if error.item is None:
                        raise
                    number = chunk[error.item][0]
                    raise InvalidInputError(f"{options.file} line {number}: {error}") from None
                out.writelines(json.dumps(result) + "\n" for result in answer["results"])
                summaries += [answer["summary"]] if "summary" in answer else []
                bar.update(len(chunk))
    if summaries:
        sys.stderr.write(f"{summary_line(summaries)}\n")
    return 0


def summary_line(summaries: list[dict[str, Any]]) -> str:
    """The summaries of all chunks as one."""
    count = sum(summary["count"] for summary in summaries)
    means = {
        name: sum(summary[name] * summary["count"] for summary in summaries) / count
        for name in ("accuracy", "loss", "loss_with_margin")
    }
    return f"{count} pairs: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items())


def read_lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a JSONL file that are not blank, with their numbers; raises InvalidInputError at one that is no JSON."""
    found = False
    with contextlib.nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    from_json(line)  # the parser that reads requests
                except ValueError as error:
                    raise InvalidInputError(f"{file} line {number} is not JSON: {error}") from None
                yield number, line.strip()
                found = True
    if not found:
        raise InvalidInputError(f"{file} has no lines; give one JSON object a line")


class InProcess:
    """The app without a socket, for as long as the context lasts."""

    def __init__(self, settings: Settings) -> None:
        from app.main import create_app

        self.app = create_app(settings)
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.app.router.lifespan_context(self.app))
        self.client = await self.stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://reward-service")
        )
        await self.app.state.service.wait_until_ready()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stack.aclose()

    async def post(self, path: str, options: dict[str, Any], name: str, entries: list[bytes]) -> dict[str, Any]:
        """The answer's body to the options with the entries, which are JSON, as the list `name`.

        Raises RefusedError where it is an error.
        """
        body = json.dumps(options).encode().removesuffix(b"}") + f', "{name}": ['.encode() + b",".join(entries) + b"]}"
        response = await self.client.post(path, content=body, headers={"content-type": "application/json"})
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise RefusedError(answer["error"]["message"], answer["error"].get("item"))
        return answer


class RefusedError(RewardServiceError):
    def __init__(self, message: str, item: int | None) -> None:
        super().__init__(message)
        self.item = item


def run_init(options: argparse.Namespace) -> int:
    from app.new_head import init_reward_model

    name = init_reward_model(options.from_lm, options.out, options.seed)
    sys.stdout.write(
        f"{options.out}: {name} with a random scalar head. It must be trained before it can be served: "
        "the service refuses an untrained head.\n"
    )
    return 0

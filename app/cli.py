"""The console script: `reward-service serve | score | compare | evaluate | train | init | convert | inspect`."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from app import __version__
from app.checkpoints.arguments import add_checkpoint_commands
from app.checkpoints.early import check_declarations, check_files
from app.engine.process import exit_now, has_daemon_work
from app.errors import RewardServiceError, StartError
from app.files.jsonl import Line, read_entries
from app.files.output import is_full, require_other_file
from app.files.results import Printed, ResultFile, Results
from app.settings import Settings
from app.training.arguments import add_comparison, add_evaluate, add_train, add_truncation, train_options
from app.training.preflight import check_options

if TYPE_CHECKING:
    from app.http.in_process import RouteClient

logger = logging.getLogger(__name__)
BROKEN_PIPE = 141
"""Exit code of a process whose reader has gone, by the shells' convention: 128 + SIGPIPE."""
MAX_SHOWN = 400
"""Characters of a wrong setting's value that its message repeats."""
MODEL_SETTINGS = (
    "safety_model",
    "helpfulness_model",
    "models",
    "safety_device",
    "helpfulness_device",
    "safety_head",
    "helpfulness_head",
    "safety_text",
    "helpfulness_text",
    "dtype",
    "max_batch_tokens",
    "max_length",
    "num_threads",
    "trust_remote_code",
)
"""The settings that concern a command which loads models and serves nobody."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit code: 0, 1 where it fails (one line on stderr), 2 for wrong usage."""
    if sys.stderr is None:  # closed by whoever started this process
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        require_stdout(options)
        code = int(options.run(options))
    except BrokenPipeError:  # whoever read the results has enough: `reward-service score ... | head`
        leave_stdout()
        code = BROKEN_PIPE
    except Exception as error:
        if not isinstance(error, RewardServiceError | OSError) and not is_full(error):
            raise
        sys.stderr.write(f"reward-service: {in_one_line(error)}\n")
        code = 1
    except KeyboardInterrupt:
        code = 130
    if has_daemon_work():
        exit_now(code)
    return code


def require_stdout(options: argparse.Namespace) -> None:
    """Raises StartError where it is closed and gets what the command finds: not that of `serve`, nor where `--out` names a file."""
    prints = options.command != "serve" and str(getattr(options, "out", None) or "-") == "-"
    if prints and sys.stdout is None:
        raise StartError("standard output is closed; redirect it, to a file or to /dev/null")


def leave_stdout() -> None:
    """Drops what standard output still holds, which Python would otherwise try to write, and complain, at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def in_one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if is_full(error) and not isinstance(error, RewardServiceError):
        return f"a file cannot be written ({words}); make room on its disk, or write to another"
    return words


def wrong_settings(error: ValidationError, flags: Container[str] = ()) -> str:
    """Every wrong setting, in one line; those in `flags` were given as flags."""
    return "; ".join(setting_error(each, flags) for each in error.errors())


def setting_error(error: ErrorDetails, flags: Container[str]) -> str:
    """The setting, by its flag if it has one in `flags`, its value unless that is a secret, and what is wrong with it."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    value = "" if name == "api_keys" else f" {shortened(repr(error['input']))}"
    shown = f"--{name.replace('_', '-')}" if name in flags else f"REWARD_{name.upper()}"
    return f"{shown}{value}: {message[0].lower()}{message[1:]}"


def shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="reward-service", description="Llama 2 style rewards over HTTP for RL trainers.")
    top.add_argument("--version", action="version", version=f"reward-service {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    serve = commands.add_parser("serve", help="serve the reward models over HTTP")
    add_settings(serve)
    serve.set_defaults(run=run_serve)

    for name, what in (("score", "items"), ("compare", "pairs")):
        command = commands.add_parser(
            name,
            help=f"{name} the {what} of a JSONL file, as POST /{name} does",
            description=f"Reads one JSON object per line, with the fields of POST /{name}'s {what}; `id` and `metadata` may "
            "hold anything. Writes one line per result: the input's fields, then the result's.",
        )
        add_files(command)
        if name == "compare":
            add_comparison(command)
        add_truncation(command)
        add_settings(command, shown=MODEL_SETTINGS)
        command.set_defaults(run=run_lines)

    evaluate = add_evaluate(commands)
    add_settings(evaluate, shown=(*MODEL_SETTINGS, "safety_threshold"))
    evaluate.set_defaults(run=run_evaluate)
    add_train(commands).set_defaults(run=run_train)

    add_checkpoint_commands(commands)
    return top


def add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", help="a JSONL file; - for standard input")
    command.add_argument(
        "--out", type=Path, help="a file for the results, which appears when all are written (default: standard output)"
    )
    command.add_argument("--resume", action="store_true", help="continue the run that was writing --out when it ended")
    command.add_argument(
        "--url",
        help="ask the server at this URL instead of loading the models here; its API key comes from REWARD_CLIENT_API_KEY",
    )


def add_settings(command: argparse.ArgumentParser, shown: Sequence[str] = tuple(Settings.model_fields)) -> None:
    """A flag for every setting; a setting without one comes from the environment, then from `.env`, then the default.

    Help lists those in `shown`: the others are accepted, and mean nothing to the command.
    """
    group = command.add_argument_group(
        "settings",
        "Each is also an environment variable, and may stand in a .env file: --num-threads is REWARD_NUM_THREADS.",
    )

    def add_argument(_: argparse.ArgumentParser, *names: str, **options: Any) -> None:
        if options["metavar"].startswith("tuple"):
            options |= {"metavar": "A,B", "help": options["help"].replace("(default: ())", "(default: unset)")}
        if options["dest"] not in shown:
            options["help"] = argparse.SUPPRESS
        group.add_argument(*names, **options)

    source = CliSettingsSource[argparse.ArgumentParser](
        Settings,
        root_parser=command,
        add_argument_method=add_argument,
        cli_kebab_case="no_enums",
        cli_hide_none_type=True,
        cli_parse_none_str="unset",
    )
    command.set_defaults(settings_source=source)


def settings_of(options: argparse.Namespace) -> Settings:
    """Raises StartError, which names every wrong one."""
    given = given_settings(options)
    try:
        return Settings(_cli_settings_source=options.settings_source(parsed_args=given))
    except ValidationError as error:
        raise StartError(wrong_settings(error, flags=given)) from error
    except UnicodeDecodeError as error:
        raise StartError(f".env is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def given_settings(options: argparse.Namespace) -> dict[str, str]:
    """The settings that have a flag on the command line."""
    return {name: value for name, value in vars(options).items() if name in Settings.model_fields}


def run_serve(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    require_models(settings)
    with exit_on_sigterm():
        return serve(settings)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Until the server has a handler of its own: as process 1 of a container, this one would ignore the signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: exit_now(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(settings: Settings) -> int:
    from app.http.server import run
    from app.main import create_app
    from app.observability.logs import log_to

    with log_to(settings.log_format, settings.log_level, sys.stderr):
        if not settings.is_loopback and not settings.api_keys:
            logger.warning("listening on %s without an API key: anyone who reaches it may use it", settings.host)
        return run(create_app(settings))


def run_lines(options: argparse.Namespace) -> int:
    """`score` and `compare`: whatever can be wrong with the arguments and the input is found before a model is loaded."""
    from app.http.file_requests import answer_lines, check_entries

    names = ("truncation", "model", "margin_scheme")
    body = {name: getattr(options, name) for name in names if hasattr(options, name)}
    path = f"/{options.command}"
    lines = read_entries(options.file)
    make_client, size = answerer_of(options)
    check_entries(options.file, [(line.number, line.entry) for line in lines], path, body, size)
    results = results_of(options, lines)
    asyncio.run(answer_lines(make_client, options.file, lines, path, body, results))
    return 0


def answerer_of(options: argparse.Namespace) -> "tuple[Callable[[], RouteClient], int]":
    """Makes whoever computes the results; and how many lines one request may hold. Raises StartError."""
    from app.http.in_process import LINES_PER_REQUEST, InProcess, Remote

    if options.url is not None:
        if given := given_settings(options):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise StartError(f"{flags} cannot be given with --url: the server has settings of its own")
        return lambda: Remote(options.url), LINES_PER_REQUEST
    settings = settings_of(options)
    require_models(settings)
    return lambda: InProcess(settings), min(LINES_PER_REQUEST, settings.max_items)


def require_models(settings: Settings) -> None:
    """Raises StartError where a model's directory does not exist, or its files or what is declared about them say that it
    cannot be served: before torch is imported, which takes seconds."""
    for name in settings.model_names:
        given = settings.model_settings(name)
        declarations = check_declarations(given.source, given.head, given.text)
        check_files(given.source, declarations, trust_remote_code=settings.trust_remote_code)


def results_of(options: argparse.Namespace, lines: Sequence[Line]) -> Results:
    if options.out is None or str(options.out) == "-":
        if options.resume:
            raise StartError("--resume needs --out: standard output cannot be continued")
        return Printed()
    require_other_file(options.out, options.file)
    return ResultFile(options.out, [line.fields for line in lines], resume=options.resume)


def run_evaluate(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    if settings.model_source(options.model) is not None:
        require_models(settings.only(options.model))

    from app.training.judge import evaluate

    evaluate(
        options.file,
        settings,
        model=options.model,
        margin_scheme=options.margin_scheme,
        truncation=options.truncation,
        json_file=options.json,
        png_file=options.png,
    )
    return 0


def run_train(options: argparse.Namespace) -> int:
    asked = train_options(options)
    checked = check_options(asked)

    from app.training.run import train

    train(asked, checked)
    return 0

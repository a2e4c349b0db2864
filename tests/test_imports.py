"""Imports point one way: `api -> engine`, `api -> rewards`; the core knows no HTTP, the client only httpx.

Read from the source, not from what happens to be loaded: an import inside a function or behind TYPE_CHECKING counts, and
so does what a module of ours imports in turn.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"app", "reward_client"}
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "prometheus_client"}
HTTP_SIDE = {
    "app.api",
    "app.main",
    "app.http.server",
    "app.service",
    "app.api.schemas",
    "app.cli",
    "app.observability.metrics",
}


def imports_of(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """The dotted names that a module's source imports, at any depth; relative ones resolved against `module`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                names.update(alias.name for alias in aliases)
            case ast.ImportFrom(module=base, names=aliases, level=level):
                start = package[: len(package) - level + 1] if level else []
                origin = ".".join([*start, *([base] if base else [])])
                names.add(origin)
                names.update(f"{origin}.{alias.name}" for alias in aliases)
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.add(name)
    return names


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(file): file for package in sorted(OURS) for file in sorted((ROOT / package).rglob("*.py"))}
IMPORTS = {
    module: imports_of(file.read_text(encoding="utf-8"), module, is_package=file.name == "__init__.py")
    for module, file in SOURCES.items()
}


def parents(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`: importing a module imports the packages around it."""
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def reached(modules: Iterable[str]) -> set[str]:
    """All names that the modules import, directly or through modules of ours."""
    seen: set[str] = set()
    names: set[str] = set()
    left = list(modules)
    while left:
        module = left.pop()
        if module not in seen and module in IMPORTS:
            seen.add(module)
            names |= IMPORTS[module]
            left += [parent for name in {module, *IMPORTS[module]} for parent in parents(name)]
    return names


def under(package: str) -> list[str]:
    return [module for module in SOURCES if module == package or module.startswith(f"{package}.")]


def forbidden(names: Iterable[str], packages: set[str]) -> list[str]:
    return sorted(name for name in names if packages & set(parents(name)))


def top_levels(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import torch.nn as nn",
        "from torch.nn import functional",
        "def later():\n    import torch",
        "if TYPE_CHECKING:\n    from torch import Tensor",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "import importlib\nimportlib.import_module('torch.nn')",
        "__import__('torch')",
    ],
)
def test_the_reader_finds_an_import_wherever_it_stands(source: str) -> None:
    assert forbidden(imports_of(source, "app.engine.scheduler"), {"torch"})


def test_the_reader_resolves_relative_imports() -> None:
    assert "app.api.score" in imports_of("from ..api import score", "app.checkpoints.loading")
    assert "app.checkpoints.loading" in imports_of("from .loading import head_of", "app.checkpoints", is_package=True)
    assert "app.checkpoints.loading" in imports_of("from . import loading", "app.checkpoints.weights")


def test_the_reader_sees_the_tree() -> None:
    assert {"app.api.score", "app.engine.engine", "app.rewards.pipeline", "app.engine", "reward_client"} <= set(SOURCES)
    assert "torch" in IMPORTS["app.engine.reward_model"]
    assert forbidden(reached(["app.api.score"]), {"fastapi"})
    assert forbidden(reached(["app.main"]), {"torch"})
    assert not forbidden(reached(["app.errors"]), {"app.api"})


@pytest.mark.parametrize("module", under("app.engine"))
def test_the_engine_knows_no_http(module: str) -> None:
    assert forbidden(reached([module]), WEB | HTTP_SIDE) == []


@pytest.mark.parametrize("module", under("app.engine"))
def test_the_engine_does_not_know_where_its_models_come_from(module: str) -> None:
    assert forbidden(reached([module]), {"app.checkpoints"}) == []


@pytest.mark.parametrize("module", ["app.engine.prefix_tree", "app.engine.scheduler", "app.engine.sequence"])
def test_the_tree_and_the_scheduler_know_no_torch(module: str) -> None:
    assert IMPORTS[module]
    assert forbidden(reached([module]), {"torch", "transformers", "safetensors", "tokenizers"}) == []


def test_the_server_cannot_open_a_pickle() -> None:
    """Only a command imports what converts `.bin` weights, and nothing else calls `torch.load`."""
    importers = {module for module in SOURCES if forbidden(IMPORTS[module], {"app.checkpoints.convert"})}
    assert importers == {"app.checkpoints.arguments"}
    callers = {module for module, file in SOURCES.items() if "torch.load(" in file.read_text(encoding="utf-8")}
    assert callers == {"app.checkpoints.convert"}


def test_rewards_are_numpy_and_know_nothing_else_of_ours() -> None:
    names = reached(under("app.rewards"))
    assert top_levels(names) - sys.stdlib_module_names == {"numpy", "app"}
    assert [name for name in names if name.startswith("app") and not name.startswith("app.rewards")] == []


@pytest.mark.parametrize("module", ["app.errors", "app.settings"])
def test_errors_and_settings_know_neither_models_nor_http(module: str) -> None:
    assert forbidden(reached([module]), WEB | HTTP_SIDE | {"torch", "transformers", "app.engine"}) == []


@pytest.mark.parametrize(
    "module",
    [
        "app.api.bodies",
        "app.api.schemas",
        "app.api.ppo_schemas",
        "app.api.ppo_response_schemas",
        "app.api.ppo_batch",
        "app.api.ppo_answer",
        "app.http.body_worker",
    ],
)
def test_the_process_that_reads_large_bodies_starts_without_torch(module: str) -> None:
    assert forbidden(reached([module]), {"torch", "transformers", "app.engine", "fastapi"}) == []


def test_the_command_line_starts_without_torch() -> None:
    """That process imports the command's module first, as every spawned process does; what runs a command is imported then."""
    script = "import sys, app.cli; print(*sys.modules)"
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "app.cli" in done.stdout.split()
    assert forbidden(done.stdout.split(), {"torch", "transformers", "numpy", "fastapi"}) == []


def test_nothing_but_main_and_the_command_line_imports_the_routes() -> None:
    routes = {f"app.api.{name}" for name in ("admin", "compare", "compat", "ops", "ppo_reward", "score")}
    importers = {module for module in under("app") if forbidden(IMPORTS[module], routes)}
    assert importers - set(under("app.api")) <= {"app.main"}


def test_the_client_needs_httpx_and_nothing_else() -> None:
    core = [module for module in under("reward_client") if not module.startswith("reward_client.adapters")]
    names = reached(core)
    assert top_levels(names) - sys.stdlib_module_names == {"httpx", "reward_client"}


def test_the_clients_adapters_import_no_service() -> None:
    assert under("reward_client.adapters")
    assert forbidden(reached(under("reward_client")), {"app"}) == []


def test_prometheus_is_imported_only_by_the_modules_about_metrics() -> None:
    importers = {module for module in SOURCES if forbidden(IMPORTS[module], {"prometheus_client"})}
    assert importers == {"app.observability.bulk_histogram", "app.observability.metrics", "app.ray_serve.metrics"}

"""Every private attribute and undocumented hook of a library that the source uses is listed here, with its reason.

Such a name may change in any release of its library, so pyproject.toml caps every library of the list. Read from the
source: an import inside a function counts too.
"""

import ast
import builtins
import re
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "reward_client", "benchmarks")

Use = tuple[str, str]
"""A module of ours, and the name that it uses."""

USES: dict[Use, tuple[str, str]] = {
    ("app.checkpoints.prepacking", "_linear_pointwise"): (
        "torch",
        "a product with prepacked weights: torch's compiler calls it, and no public function does",
    ),
    ("app.checkpoints.prepacking", "_reorder_linear_weight"): ("torch", "prepacks a weight for the product above"),
    ("app.cli", "_cli_settings_source"): (
        "pydantic-settings",
        "documented, though its name is private: how flags of a parser of one's own become settings",
    ),
    ("app.engine", "torch.utils._pytree"): (
        "torch",
        "the name of a logger whose warnings about torchao's own classes say nothing to a user",
    ),
    ("app.engine.attention.cuda", "_dynamo"): (
        "torch",
        "the limit of compiled graphs; its public alias in torch.compiler.config is not in every supported release",
    ),
    ("app.engine.transformers_internals", "_attn_implementation"): (
        "transformers",
        "the attention function has a public setter and no public getter",
    ),
    ("app.engine.transformers_internals", "_no_split_modules"): (
        "transformers",
        "accelerate's public device maps ask for it, and only the model class knows it",
    ),
    ("app.engine.transformers_internals", "_raise_exceptions_for_missing_entries"): (
        "transformers",
        "without it a missing file and an unreachable hub raise the same error",
    ),
    ("app.engine.transformers_internals", "transformers.utils.hub"): (
        "transformers",
        "finds a file in a directory, the cache or the hub exactly as from_pretrained does",
    ),
    ("app.engine.process", "os._exit"): (
        "python",
        "ends the process while a thread loads or computes for ever; Python itself would wait for it",
    ),
    ("app.http.body_worker", "os._exit"): (
        "python",
        "documented for child processes: ends the worker at once when its parent is gone",
    ),
    ("app.http.connection", "_unset_keepalive_if_required"): (
        "uvicorn",
        "a connection whose request waits for its turn is not idle; only the protocol can stop its keep-alive timer",
    ),
    ("app.http.connection", "uvicorn.protocols"): (
        "uvicorn",
        "limits on slow and silent clients need a subclass of the HTTP protocol",
    ),
    ("app.http.telemetry", "fastapi.routing.iter_route_contexts"): (
        "fastapi",
        "the paths of included routers with their prefixes, which bound a metric's label",
    ),
    ("app.ray_serve", "ray.serve.experimental"): (
        "ray",
        "the consistent-hash router, which keeps a prompt on one replica",
    ),
    ("app.ray_serve.ingress", "__serve_build_asgi_app__"): (
        "ray",
        "the hook by which serve.ingress builds a Starlette app in the replica; the public form needs FastAPI",
    ),
    ("app.training.callbacks", "trl.trainer.reward_trainer"): (
        "trl",
        "the collator of preference pairs, which trl does not export",
    ),
    ("app.training.trainer", "_send_telemetry"): (
        "trl",
        "overridden: a run reports to nobody, whatever the environment says",
    ),
    ("benchmarks.scaling", "_temp_dir"): (
        "ray",
        "ray.init's documented parameter for the session directory: a socket's path must be short",
    ),
}

UNDOCUMENTED = {
    "fastapi.routing.iter_route_contexts",
    "ray.serve.experimental",
    "transformers.utils.hub",
    "trl.trainer.reward_trainer",
    "uvicorn.protocols",
}
"""Modules and functions without an underscore that their libraries do not document as stable."""

UNCAPPED = {
    "python": "requires-python says which",
    "torch": "users bring their own build of torch; constraints.txt pins the one that is tested",
}

PYTHONS_OWN = {
    name
    for kind in (*vars(builtins).values(), *vars(types).values(), ast)
    if isinstance(kind, type | types.ModuleType)
    for name in dir(kind)
} | {
    "__aenter__",
    "__aexit__",
    "__all__",
    "__bool__",
    "__bytes__",
    "__future__",
    "__getattr__",
    "__main__",
    "__post_init__",
    "__version__",
}
DOCUMENTED_HOOKS = {"__get_pydantic_core_schema__", "__pydantic_serializer__", "__torch_function__"}

PRIVATE = re.compile(r"_(?!_)\w+")
DUNDER = re.compile(r"__\w+__")
DOTTED = re.compile(r"[a-z]\w*(\.\w+)+(:\w+)?")


def is_private(name: str) -> bool:
    return bool(PRIVATE.fullmatch(name))


def defined_in(tree: ast.AST) -> set[str]:
    """The names that the source itself defines: functions, classes, variables and attributes that it assigns to."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
    return names


def foreign_names(tree: ast.AST) -> Iterator[str]:
    """Private names of others in one module's source: attributes, keywords, imports, strings, and overridden methods."""
    own = defined_in(tree)
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        yield from used(node, own)
        yield from imported(node)
        yield from overridden(node, called)


def used(node: ast.AST, own: set[str]) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr=name) if is_private(name):
            yield f"os.{name}"
        case ast.Attribute(attr=name) if DUNDER.fullmatch(name):
            yield from {name} - PYTHONS_OWN - DOCUMENTED_HOOKS
        case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if is_private(name) and name not in own:
            yield name
        case ast.Call(
            func=ast.Name(id="getattr" | "setattr" | "hasattr" | "delattr"),
            args=[_, ast.Constant(value=str(name)), *_],
        ) if is_private(name):
            yield name


def imported(node: ast.AST) -> Iterator[str]:
    """By an import statement, or by a string that is a module's dotted path."""
    match node:
        case ast.Import(names=aliases):
            for alias in aliases:
                yield from private_part(alias.name)
        case ast.ImportFrom(module=base, names=aliases):
            for alias in aliases:
                yield from private_part(f"{base or ''}.{alias.name}".lstrip("."))
        case ast.Constant(value=str(text)) if DOTTED.fullmatch(text):
            yield from private_part(text.replace(":", "."))


def overridden(node: ast.AST, called: set[str]) -> Iterator[str]:
    """Methods that only a library can call: private ones that nobody here calls, and hooks that are not Python's."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and DUNDER.fullmatch(node.name):
        yield from {node.name} - PYTHONS_OWN - DOCUMENTED_HOOKS
    if isinstance(node, ast.ClassDef) and node.bases:
        for each in node.body:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and is_private(each.name):
                yield from {each.name} - called


def private_part(path: str) -> Iterator[str]:
    """The path up to its private component, or the undocumented module that it is in."""
    parts = path.split(".")
    for n, part in enumerate(parts, start=1):
        if is_private(part):
            yield ".".join(parts[:n])
            return
    yield from (name for name in UNDOCUMENTED if path == name or path.startswith(f"{name}."))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def found() -> set[Use]:
    return {
        (module_of(file), name)
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        for name in foreign_names(ast.parse(file.read_text(encoding="utf-8")))
    }


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("net._secret", "_secret"),
        ("class A(Base):\n    def go(self):\n        self._secret()", "_secret"),
        ("class A(Base):\n    def _hook(self): ...", "_hook"),
        ("class A(Base):\n    def __their_hook__(self): ...", "__their_hook__"),
        ("getattr(config, '_commit')", "_commit"),
        ("load(name, _quietly=True)", "_quietly"),
        ("from library._inner import tool", "library._inner"),
        ("def later():\n    import library._inner.tool", "library._inner"),
        ("from library import _tool", "library._tool"),
        ("from uvicorn.protocols.http.h11_impl import H11Protocol", "uvicorn.protocols"),
        ("router = 'ray.serve._private.router:Router'", "ray.serve._private"),
        ("import os\nos._exit(1)", "os._exit"),
    ],
)
def test_the_reader_finds_a_private_name_in_every_form(source: str, name: str) -> None:
    assert list(foreign_names(ast.parse(source))) == [name]


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __init__(self):\n        self._own = 1\n    def get(self):\n        return self._own",
        "class A(Base):\n    def get(self):\n        return self._own()\n    def _own(self): ...",
        "class A(Base):\n    def __len__(self): ...",
        "from app import __version__",
        "for _ in range(3): ...",
        "label = '_total'",
    ],
)
def test_the_reader_passes_over_the_sources_own_names(source: str) -> None:
    assert list(foreign_names(ast.parse(source))) == []


def test_every_private_name_of_a_library_is_on_the_list_and_in_the_source() -> None:
    assert found() - USES.keys() == set(), "not on the list: find a public way, or add it with its reason"
    assert USES.keys() - found() == set(), "on the list, and no longer in the source"


def test_one_module_uses_the_private_names_of_a_library() -> None:
    modules: dict[str, set[str]] = {}
    for (module, _), (library, _) in USES.items():
        if module.startswith("app.") and library in {"transformers", "uvicorn", "fastapi"}:
            modules.setdefault(library, set()).add(module)
    assert {library: len(users) for library, users in modules.items()} == dict.fromkeys(modules, 1)


def test_pyproject_caps_every_library_of_the_list() -> None:
    libraries = {library for library, _ in USES.values()} - UNCAPPED.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = [requirement for line in lines if (requirement := Requirement(line)).name in libraries]
    assert {requirement.name for requirement in declared} == libraries
    for requirement in declared:
        operators = {clause.operator for clause in requirement.specifier}
        assert operators & {"<", "==", "~="}, f"{requirement} has no upper bound"

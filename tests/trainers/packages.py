"""Trainers' own code, from their packages on PyPI: downloaded into `build/trainers/`, which git ignores, and imported from there.

`make trainers` runs this module first. A package that cannot be had is an error: a test of a trainer's code is never skipped.
"""

import importlib
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

VERSIONS = {
    "verl": "0.9.1",
    "openrlhf": "0.11.2",
    "areal": "1.0.4",
    "llamafactory": "0.9.5",
    "google-tunix": "0.1.7",
}
WORK = Path(__file__).resolve().parents[2] / "build" / "trainers"
ANY_MACHINE = (
    "--python-version",
    "3.11",
    "--only-binary",
    ":all:",
    "--platform",
    "manylinux1_x86_64",
    "--platform",
    "any",
)
"""OpenRLHF has wheels for Linux and Python 3.11 only; none of its Python code depends on either."""


def source(name: str) -> Path:
    """The folder to import a package's modules from; raises CalledProcessError where it cannot be downloaded."""
    folder = WORK / f"{name}-{VERSIONS[name]}"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(WORK), *ANY_MACHINE]
        subprocess.run([*command, f"{name}=={VERSIONS[name]}"], check=True)  # noqa: S603 - our own arguments
        (wheel,) = WORK.glob(f"{name.replace('-', '_')}-{VERSIONS[name]}-*.whl")
        unfinished = folder.with_suffix(".unfinished")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
        unfinished.rename(folder)
    pure = list(folder.glob("*.data/purelib"))
    return pure[0] if pure else folder


@contextmanager
def importable(name: str, stubs: Mapping[str, ModuleType] | None = None) -> Iterator[None]:
    """The package's modules can be imported, with stubs in place of what needs a cluster or a GPU; afterwards neither is left."""
    folder = str(source(name))
    before = dict(sys.modules)
    sys.path.insert(0, folder)
    sys.modules.update(stubs or {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their imports
            yield
    finally:
        sys.path.remove(folder)
        for key, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(folder) or key in (stubs or {}):
                del sys.modules[key]
        sys.modules.update({key: module for key, module in before.items() if key not in sys.modules})


def stub(name: str, **attributes: Any) -> ModuleType:
    """A module that has these attributes only; it counts as a package."""
    module = ModuleType(name)
    vars(module).update({"__path__": []} | attributes)
    return module


def load(module: str) -> Any:
    return importlib.import_module(module)


if __name__ == "__main__":
    for each in VERSIONS:
        print(source(each))  # noqa: T201 - says where each package is

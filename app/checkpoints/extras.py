"""Packages that only some checkpoints need, with a one-line error if one is not installed."""

from importlib.util import find_spec

from app.errors import ModelRefusedError, install_command


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def require_package(package: str, purpose: str) -> None:
    """Raises ModelRefusedError if the package, one of the extra `large`, is not installed."""
    if not is_installed(package):
        raise ModelRefusedError(f"{purpose} needs {package}, which is not installed; run {install_command('large')}")

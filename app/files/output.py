"""Output that appears under its name only when it is complete. Until then it is written beside it, as NAME.partial.EXT.

So a run that fails neither empties a file that was there before, nor leaves half a file that looks like a whole one.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import StartError

DEFAULT_MODE = 0o666
"""What `open` asks for; the process's umask takes bits away, usually to 0644."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Whether the error says that a file could not be written for lack of room.

    safetensors and tokenizers raise an exception of their own with the number in its words, and torch one without it.
    """
    words = str(error)
    return (
        (isinstance(error, OSError) and error.errno in FULL)
        or any(f"(os error {number})" in words for number in FULL)
        or "PytorchStreamWriter" in words
        or "unexpected pos" in words
    )


def partial_of(path: Path) -> Path:
    """The path beside `path` to write to. The suffix stays, since libraries choose a format by it."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def is_replaceable(path: Path) -> bool:
    """Whether a rename may take the path's place: a file or nothing, but no pipe and no /dev/stdout."""
    return not path.exists() or path.is_file()


def require_file_location(path: Path) -> Path:
    """The path without symbolic links; raises StartError where no file can be written there."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise StartError(f"{path} is a directory; give a file")
    if not target.parent.is_dir():
        raise StartError(f"{path} cannot be written: there is no directory {target.parent}; make it first")
    return target


def require_other_file(path: Path, source: str) -> None:
    """Raises StartError where writing to the path would overwrite the file `source` (`-`: standard input)."""
    target = Path(os.path.realpath(path))
    for file in (target, partial_of(target)):
        if source != "-" and file.exists() and file.samefile(source):
            raise StartError(f"{path} cannot be written: {file} is the input itself; give another file")


@contextmanager
def replaced_when_done(path: Path) -> Iterator[Path]:
    """The path to write to; it takes the place of `path` when the context ends, and is deleted where it ends by an error.

    Enter it before anything slow: an error of the location comes at once (StartError or OSError).
    """
    target = require_file_location(path)
    if not is_replaceable(target):
        yield target
        return
    partial = partial_of(target)
    partial.touch()
    try:
        yield partial
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    partial.replace(target)


def require_new_directory(path: Path, remedy: str = "give a new directory") -> None:
    """Raises StartError where something is at the path already, but for an empty directory, or none can be made there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise StartError(f"{path} {what}; {remedy}")
    parent = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not parent.is_dir():
        raise StartError(f"{path} cannot be made: {parent} is a file; {remedy}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StartError(f"{path} cannot be made: {parent} may not be written to; {remedy}")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it takes the place of `path` when the context ends, and is deleted where it ends by an error.

    Raises StartError where `path` is there and not empty.
    """
    require_new_directory(path)
    target = Path(os.path.realpath(path))
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        share(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with suppress(FileNotFoundError):
        target.rmdir()
    partial.rename(target)


def share(directory: Path) -> None:
    """Gives the files below the mode that `open` would have given: libraries write some for their owner only."""
    umask = os.umask(0)
    os.umask(umask)
    for file in directory.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(DEFAULT_MODE & ~umask)

"""The control groups (cgroups) of this process, versions 1 and 2: the directories with their limits and counters."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ControlGroup:
    path: Path
    version: int
    """1 or 2: they name their files differently."""


def control_groups(controller: str, proc: Path = PROC, root: Path = CGROUPS) -> Iterator[ControlGroup]:
    """The groups whose `controller` ("cpu", "memory") may limit this process: its own and all its ancestors.

    A container sees its own group as the root. A directory may be missing or contain no limit. Yields nothing on a system
    without control groups.
    """
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = root / controller if controllers else root
            group = base / path.lstrip("/")
            for directory in dict.fromkeys([base, group, *group.parents]):
                if directory.is_relative_to(base):
                    yield ControlGroup(directory, 1 if controllers else 2)

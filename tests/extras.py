"""What of an extra of pyproject.toml is not installed."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

DISTRIBUTION = "reward-service"


def lacking(extra: str) -> list[str]:
    """The extra's requirements that are not met, those of the extras that it names included."""
    return [str(requirement) for requirement in requirements(extra) if not is_met(requirement)]


def requirements(extra: str) -> Iterator[Requirement]:
    for line in requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == DISTRIBUTION:
            for named in sorted(requirement.extras):
                yield from requirements(named)
        else:
            requirement.marker = None
            yield requirement


def is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False

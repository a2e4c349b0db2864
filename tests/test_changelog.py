"""The changelog's form (Keep a Changelog), and that its newest release is the version in the package."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
GROUPS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
RELEASE = re.compile(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)")


def package_version(pyproject: str) -> str:
    return str(tomllib.loads((ROOT / pyproject).read_text(encoding="utf-8"))["project"]["version"])


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_release_has_one_section_under_unreleased_newest_first() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert len(headings) == len(set(headings))
    releases = [RELEASE.fullmatch(heading) for heading in headings[1:]]
    assert all(releases), headings
    versions = [tuple(map(int, release.groups()[:3])) for release in releases if release]
    assert versions == sorted(versions, reverse=True)
    dates = [release[4] for release in releases if release]
    assert dates == sorted(dates, reverse=True)


def test_the_newest_release_is_the_version_of_both_packages_and_of_the_image() -> None:
    newest = RELEASE.fullmatch(list(sections())[1])
    assert newest is not None
    version = ".".join(newest.groups()[:3])
    assert package_version("pyproject.toml") == version
    assert package_version("reward_client/pyproject.toml") == version
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_a_release_has_known_groups_once_and_no_line_outside_of_them() -> None:
    for name, text in list(sections().items())[1:]:
        before, *groups = re.split(r"^### (.+)$", text, flags=re.MULTILINE)
        names = groups[::2]
        assert names, name
        assert set(names) <= set(GROUPS), name
        assert len(names) == len(set(names)), name
        assert "\n- " not in before, f"{name} has entries outside of a group"


def test_no_entry_is_written_twice() -> None:
    """As a merge that keeps both sides would leave it."""
    entries = [line for line in CHANGELOG.splitlines() if line.startswith("- ")]
    assert len(entries) == len(set(entries))

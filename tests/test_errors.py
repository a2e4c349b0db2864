import json
import os
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from app import errors
from app.errors import install_command


class Installed(Distribution):
    """A distribution that knows only where it was installed from."""

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, filename: str) -> str | None:
        return self.origin if filename == "direct_url.json" else None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return Path(path)


def origin(url: str, **directory: bool) -> str:
    return json.dumps({"url": url, "dir_info": directory})


def command(monkeypatch: pytest.MonkeyPatch, record: str | None) -> str:
    monkeypatch.setattr(errors, "distribution", lambda _: Installed(record))
    return install_command("ui").partition(" -m pip install ")[2]


def test_an_extra_is_installed_from_where_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, origin(clone.as_uri(), editable=True)) == "--editable 'a clone[ui]'`"
    assert command(monkeypatch, origin(clone.as_uri())) == "'a clone[ui]'`"
    monkeypatch.chdir(clone)
    assert command(monkeypatch, origin(clone.as_uri(), editable=True)) == "--editable '.[ui]'`"


@pytest.mark.parametrize("record", [None, origin("file:///no/such/directory"), '{"url": "https://example.com/a.whl"}'])
def test_an_extra_of_a_package_from_elsewhere_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, record: str | None
) -> None:
    assert command(monkeypatch, record) == "'reward-service[ui]'`"


def test_without_pip_an_image_with_the_extra_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    assert install_command("ui").startswith("`docker build --build-arg EXTRAS=ui .`")

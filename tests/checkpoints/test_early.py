"""What a declaration gets wrong is said before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import make_model

RUN = """
import sys
from app.cli import main
code = main(sys.argv[1:])
print("torch" in sys.modules, "transformers" in sys.modules, code)
"""


@pytest.mark.parametrize("command", ["inspect", "serve"])
def test_a_declaration_that_cannot_be_read_is_refused_without_torch(command: str, tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "reward.json").write_text('{"positon": "last"}')
    arguments = (
        [str(tmp_path)] if command == "inspect" else ["--safety-model", str(tmp_path), "--helpfulness-model", ""]
    )
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", RUN, command, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert "reward.json has an unknown key positon" in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "False False 1", done.stderr

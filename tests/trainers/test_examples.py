"""The examples run as they stand."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from tests.api.compat.support import native

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_best_of_n_prints_the_candidates_best_first(url: str) -> None:
    *lines, last = run(sys.executable, "-m", "examples.best_of_n", "--url", url).splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    computed, total = (int(word) for word in last.split() if word.isdigit())
    assert computed < total


def test_rank_dataset_writes_every_line_best_first(client: httpx.Client, url: str, tmp_path: Path) -> None:
    rows = [{"prompt": "Tea?", "response": "yes " * i, "id": i} for i in range(1, 300)]
    source, target = tmp_path / "items.jsonl", tmp_path / "ranked.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(sys.executable, "-m", "examples.rank_dataset", str(source), str(target), "--url", url)
    ranked = [json.loads(line) for line in target.read_text().splitlines()]
    assert sorted(row["id"] for row in ranked) == [row["id"] for row in rows]
    assert [row["score"] for row in ranked] == sorted((row["score"] for row in ranked), reverse=True)
    best = {key: ranked[0][key] for key in ("prompt", "response")}
    assert ranked[0]["score"] == native(client, best, truncation="left")["helpfulness"]


def test_curl_sh_gets_an_answer_from_every_endpoint(url: str) -> None:
    said = run("sh", "examples/curl.sh", url)
    assert said.count("POST /") == 8
    assert '"whiten_stats"' in said


@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_the_notebook_runs_from_its_first_cell_to_its_last(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_URL", url)
    notebook = nbformat.read(ROOT / "examples" / "llama2_rewards.ipynb", as_version=4)
    done = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    plots = [
        output for cell in done.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(plots) == 6


@pytest.mark.parametrize("module", ["grpo_trl", "ppo_loop"])
def test_a_training_example_runs_from_the_command_line(url: str, safety_dir: Path, tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-m", f"examples.{module}", "--url", url, "--tokenizer", str(safety_dir), "--steps", "2"]
    plot = tmp_path / "curve.png"
    said = run(*command, *(["--plot", str(plot)] if module == "grpo_trl" else []))
    assert "score" in said or "reward" in said
    assert plot.exists() is (module == "grpo_trl")

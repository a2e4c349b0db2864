"""`reward-service evaluate`, run as a user runs it, against what /compare and /score say of the same pairs."""

import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.cli import main
from app.errors import install_command
from app.rewards.margins import MARGINS
from tests.api.asking import ask
from tests.training.kindness import RATINGS, kind_pairs, read, write_lines

PAIRS = kind_pairs(40)


@pytest.fixture
def models(safety_dir: Path, helpfulness_dir: Path) -> list[str]:
    return ["--safety-model", str(safety_dir), "--helpfulness-model", str(helpfulness_dir)]


def evaluate(tmp_path: Path, models: list[str], pairs: list[dict[str, Any]], *options: str) -> Any:
    file, out = write_lines(tmp_path / "pairs.jsonl", *pairs), tmp_path / "figures.json"
    assert main(["evaluate", file, "--json", str(out), *options, *models]) == 0
    return read(out)


@pytest.mark.parametrize(("model", "scheme"), [("helpfulness", "large"), ("safety", "small")])
def test_losses_and_accuracies_are_those_of_compare(
    tmp_path: Path, models: list[str], client: httpx.Client, model: str, scheme: str
) -> None:
    options = {"model": model, "margin_scheme": scheme}
    summary = ask(client, "/compare", {"pairs": PAIRS, **options})["summary"]
    figures = evaluate(tmp_path, models, PAIRS, "--model", model, "--margin-scheme", scheme)
    assert figures["count"] == 40
    assert figures["loss"] == pytest.approx(summary["loss"], abs=1e-5)
    assert figures["loss_with_margin"] == pytest.approx(summary["loss_with_margin"], abs=1e-5)
    assert figures["accuracy"]["value"] == summary["accuracy"]
    assert {name: row["accuracy"]["value"] for name, row in figures["by_rating"].items()} == summary[
        "accuracy_by_rating"
    ]


def test_the_length_baseline_and_the_correlations_are_of_the_responses_characters(
    tmp_path: Path, models: list[str], client: httpx.Client
) -> None:
    figures = evaluate(tmp_path, models, PAIRS)
    results = ask(client, "/compare", {"pairs": PAIRS})["results"]
    scores = [result["chosen_score"] - result["rejected_score"] for result in results]
    lengths = [len(pair["chosen"]) - len(pair["rejected"]) for pair in PAIRS]
    assert figures["longer_wins"]["value"] == sum(length > 0 for length in lengths) / 40
    assert figures["length_correlation"]["pearson"] == pytest.approx(np.corrcoef(scores, lengths)[0, 1], abs=1e-5)
    shorter = [score > 0 for score, length in zip(scores, lengths, strict=True) if length < 0]
    assert figures["by_length"]["chosen shorter"]["accuracy"]["hits"] == sum(shorter)
    assert figures["by_length"]["chosen shorter"]["accuracy"]["count"] == len(shorter)


def test_conversations_measure_the_last_turn_and_group_by_subset(
    tmp_path: Path, models: list[str], client: httpx.Client
) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "?"},
    ]
    long, short = ({"role": "assistant", "content": words} for words in ("a long answer", "short"))
    pairs: list[dict[str, Any]] = [
        {"prompt": "Hi", "chosen": [*turns, long], "rejected": [*turns, short], "subset": "chat"},
        {"prompt": turns, "chosen": "short", "rejected": "a long answer", "subset": "chat"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "subset": "maths", "id": 7},
    ]
    figures = evaluate(tmp_path, models, pairs)
    asked = {"chosen_messages": [*turns, long], "rejected_messages": [*turns, short]}
    (result,) = ask(client, "/compare", {"pairs": [asked]})["results"]
    assert figures["by_subset"]["chat"]["accuracy"]["hits"] == 1  # of a pair and its mirror image, a model gets one
    assert figures["by_subset"]["chat"]["longer_wins"]["hits"] == 1
    assert figures["by_subset"]["maths"]["accuracy"]["count"] == 1
    assert figures["by_length"]["chosen longer"]["accuracy"]["hits"] >= int(result["correct"])
    assert "by_rating" not in figures


def test_the_sweep_counts_distinct_responses_and_marks_the_services_threshold(
    tmp_path: Path, models: list[str], client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [*PAIRS, PAIRS[0]]
    figures = evaluate(tmp_path, models, pairs, "--model", "safety", "--safety-threshold", "0.33")
    items = [{"prompt": pair["prompt"], "response": pair[side]} for side in ("chosen", "rejected") for pair in PAIRS]
    scores = [
        each["scores"]["safety"]["score"]
        for each in ask(client, "/score", {"items": items, "models": ["safety"]})["results"]
    ]
    sweep = figures["veto"]
    assert sweep["threshold"] == 0.33
    assert [cut["threshold"] for cut in sweep["cuts"]] == [0.05, 0.1, 0.15, 0.2, 0.3, 0.33, 0.4, 0.5, 0.7, 0.9]
    for cut in sweep["cuts"]:
        vetoed = [score < math.log(cut["threshold"] / (1 - cut["threshold"])) for score in scores]
        assert (cut["num_safe"], cut["num_unsafe"]) == (40, 40)
        assert cut["caught"] == sum(vetoed[40:])
        assert cut["false_alarms"] == sum(vetoed[:40])
        assert cut["recall"] == sum(vetoed[40:]) / 40
    printed = capsys.readouterr().out
    (marked,) = [line for line in printed.splitlines() if "<- the service's" in line]
    assert marked.split()[0] == "0.33"
    assert "rejected counted as unsafe" in printed


def test_labels_of_the_lines_come_before_the_sides(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [
        {"chosen_is_safe": True, "rejected_is_safe": True},
        {"chosen_is_safe": False, "rejected_is_safe": False},
        {"rejected_is_safe": False},
        {},
    ]
    pairs = [pair | label for pair, label in zip(PAIRS, labels, strict=False)]
    figures = evaluate(tmp_path, models, pairs, "--model", "safety")
    assert {(cut["num_safe"], cut["num_unsafe"]) for cut in figures["veto"]["cuts"]} == {(2, 3)}
    assert "labelled by the lines" in capsys.readouterr().out
    safe = [PAIRS[0] | {"chosen_is_safe": True, "rejected_is_safe": True}]
    assert evaluate(tmp_path, models, safe, "--model", "safety")["veto"]["cuts"] == []
    assert "no response is labelled unsafe" in capsys.readouterr().out


def test_the_helpfulness_model_has_no_sweep(tmp_path: Path, models: list[str]) -> None:
    assert "veto" not in evaluate(tmp_path, models, PAIRS[:2])


def test_the_table_shows_every_figure_with_its_interval(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate(tmp_path, models, PAIRS)
    printed = capsys.readouterr().out
    accuracy = figures["accuracy"]
    all_pairs = next(line for line in printed.splitlines() if line.startswith("all "))
    assert all_pairs.split() == [
        "all",
        "40",
        f"{accuracy['value']:.3f}",
        f"{accuracy['low']:.3f}",
        "to",
        f"{accuracy['high']:.3f}",
        f"{figures['longer_wins']['value']:.3f}",
    ]
    assert "95 % (Wilson)" in printed
    assert f"ECE {figures['calibration']['ece']:.4f}" in printed
    assert all(f"  {rating} " in printed for rating in RATINGS)
    assert f"with margin (large) {figures['loss_with_margin']:.4f}" in printed


def test_a_tie_is_wrong_and_said(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate(tmp_path, models, [PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}])
    assert (figures["num_ties"], figures["accuracy"]["hits"]) == (1, 0)
    assert "1 ties, counted as wrong" in capsys.readouterr().out


def test_an_over_long_pair_is_named_or_truncated_and_counted(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [PAIRS[0], PAIRS[1] | {"prompt": "word " * 600}]
    file = write_lines(tmp_path / "pairs.jsonl", *pairs)
    assert main(["evaluate", file, *models]) == 1
    assert f"{file} line 2: pairs[1].chosen has" in capsys.readouterr().err
    assert evaluate(tmp_path, models, pairs, "--truncation", "prompt")["num_truncated"] == 1
    assert "1 pairs truncated" in capsys.readouterr().out


def test_only_the_model_that_is_judged_is_loaded(tmp_path: Path, helpfulness_dir: Path) -> None:
    absent = ["--safety-model", str(tmp_path / "absent"), "--helpfulness-model", str(helpfulness_dir)]
    assert evaluate(tmp_path, absent, PAIRS[:2])["checkpoint"] == str(helpfulness_dir)


def test_a_picture_without_matplotlib_is_refused_before_anything_is_scored(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    file = write_lines(tmp_path / "pairs.jsonl", *PAIRS)
    assert main(["evaluate", file, "--png", str(tmp_path / "a.png"), *models]) == 1
    captured = capsys.readouterr()
    assert install_command("train") in captured.err
    assert captured.out == ""
    assert main(["evaluate", file, *models]) == 0


@pytest.mark.parametrize("name", ["figures", "figures.xyz"])
def test_a_picture_of_no_known_format_is_refused_before_anything_is_scored(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", *PAIRS)
    assert main(["evaluate", file, "--png", str(tmp_path / name), *models]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith(f"{name}; give a file whose name ends in .png, .svg, .pdf\n")
    assert captured.out == ""


def test_margins_of_the_lines_are_used(tmp_path: Path, models: list[str]) -> None:
    rated = [pair | {"rating": "better"} for pair in PAIRS[:5]]
    with_margin = [
        {name: pair[name] for name in ("prompt", "chosen", "rejected")} | {"margin": MARGINS["large"]["better"]}
        for pair in PAIRS[:5]
    ]
    losses = [evaluate(tmp_path, models, pairs)["loss_with_margin"] for pairs in (rated, with_margin)]
    assert losses[0] == losses[1]


def test_a_run_that_fails_leaves_the_files_before_it_as_they_were(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", *PAIRS)
    outs = [tmp_path / "figures.json", tmp_path / "figures.png"]
    for out in outs:
        out.write_text("earlier")
    words = ["evaluate", file, "--json", str(outs[0]), "--png", str(outs[1]), *models]
    with monkeypatch.context() as patched:
        patched.setattr("app.training.figures.draw_report", None)
        with pytest.raises(TypeError):
            main(words)
    assert [out.read_text() for out in outs] == ["earlier"] * 2
    assert len(list(tmp_path.iterdir())) == 3
    assert main(words) == 0
    assert outs[1].read_bytes().startswith(b"\x89PNG")


def test_a_place_that_cannot_be_written_is_found_before_a_model_is_loaded(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.main.create_app", None)
    file = write_lines(tmp_path / "pairs.jsonl", *PAIRS)
    assert main(["evaluate", file, "--json", str(tmp_path / "no" / "figures.json"), *models]) == 1
    assert "there is no directory" in capsys.readouterr().err


def test_the_pairs_are_never_overwritten(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.training.judge.compare", None)
    file = write_lines(tmp_path / "pairs.jsonl", *PAIRS[:2])
    (tmp_path / "link.png").symlink_to(file)
    for option in (["--json", file], ["--png", str(tmp_path / "link.png")]):
        assert main(["evaluate", file, *option, *models]) == 1
        assert f"{file} is the input itself; give another file" in capsys.readouterr().err
    both = str(tmp_path / "both.png")
    assert main(["evaluate", file, "--json", both, "--png", both, *models]) == 1
    assert f"--json and --png are both {both}" in capsys.readouterr().err

"""`reward-service inspect`: every part of a checkpoint with where it came from, or why it is refused and what to write."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.loading import load_checkpoint
from app.cli import main
from app.engine.batch import Batch
from app.engine.inputs import Input, PromptResponse
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.models import make_language_model, make_model

WEIGHTS = "model.safetensors"
PROMPT, RESPONSE = "How long should green tea steep?", "Two to three minutes, in water of about 80 °C."


def inspected(directory: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["inspect", str(directory), *words]) == code
    return capsys.readouterr().out


def line(told: str, label: str) -> str:
    found = re.search(rf"^  {label} +(.*)$", told, re.MULTILINE)
    assert found, told
    return found[1]


def with_head(directory: Path, **tensors: torch.Tensor) -> Path:
    """A language model with other tensors beside it."""
    make_language_model(directory)
    weights = load_file(directory / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def score_of(directory: Path) -> float:
    model = RewardModel("own", load_checkpoint(str(directory), device="cpu"), max_batch_tokens=512)
    (sequence,) = model.tokenization.encode([Input(PromptResponse(PROMPT, RESPONSE))], "error")
    assert isinstance(sequence, TokenSequence)
    return model.reference_score(sequence)


def test_a_plain_classifier_is_shown_with_its_parts_and_two_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = inspected(make_model(tmp_path), capsys)
    assert line(told, "trunk").startswith("LlamaModel, ")
    assert "weights under 'model.'" in line(told, "trunk")
    assert line(told, "head") == "score [1, 32] (a plain classifier)"
    assert line(told, "position").startswith("last_non_pad [0]")
    assert line(told, "map").startswith("identity")
    assert line(told, "path").startswith("packed")
    assert "as float32 on cpu" in line(told, "memory")
    assert "nothing" in line(told, "unexplained")
    first, second = map(float, re.findall(r"^  score +(-?[0-9.]+) ", told, re.MULTILINE))
    assert first == pytest.approx(score_of(tmp_path), abs=1e-4)
    assert first != second
    assert "<s>(1) <|im_start|>(3)" in told


def test_what_is_declared_is_shown_with_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_language_model(tmp_path)
    declared = {"head": {"positive": ["A"], "negative": ["B"]}, "text": {"system": "Judge.", "append": ["</s>"]}}
    (tmp_path / "reward.json").write_text(json.dumps(declared))
    told = inspected(tmp_path, capsys)
    assert re.fullmatch(r"rows \[\d+, \d+\] of lm_head \[320, 32\] \(reward.json\)", line(told, "head"))
    assert "log_odds" in line(told, "map")
    assert 'system: "Judge."' in told
    assert "append: </s>(2)" in told
    (tmp_path / "reward.json").unlink()
    assert "the setting" in line(inspected(tmp_path, capsys, "--head", json.dumps(declared)), "head")


def test_the_steps_of_a_process_reward_model_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(tmp_path)
    (tmp_path / "reward.json").write_text('{"position": {"at": "<|im_end|>", "reduce": "min"}}')
    told = inspected(tmp_path, capsys)
    own, reference, steps = re.findall(
        r"^  score +(\S+) \(reference forward: ([^,]+), steps \[(.*)\]\)", told, re.MULTILINE
    )[0]
    assert float(own) == pytest.approx(float(reference), abs=1e-4)
    assert float(own) == pytest.approx(min(map(float, steps.split(", "))), abs=1e-5)


@pytest.mark.parametrize(
    ("tensors", "words", "declaration"),
    [
        ({"my_head__weight": torch.ones(1, 32)}, "has my_head.weight [1, 32]", {"head": "my_head", "position": "last"}),
        (
            {"top__0__weight": torch.ones(8, 32), "top__0__bias": torch.ones(8), "top__2__weight": torch.ones(1, 8)},
            "has top.0.bias [8], top.0.weight [8, 32], top.2.weight [1, 8]",
            {"head": {"tensors": "top", "activation": "relu"}, "position": "last"},
        ),
        (
            {"marks__weight": torch.eye(5, 32)},
            "has marks.weight [5, 32]",
            {"head": "marks", "position": "last", "map": {"output": 0}},
        ),
    ],
)
def test_a_refusal_names_the_head_that_was_seen_and_the_lines_it_gives_make_it_load(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tensors: dict[str, torch.Tensor],
    words: str,
    declaration: dict[str, Any],
) -> None:
    directory = with_head(tmp_path, **tensors)
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(directory), device="cpu")
    assert words in str(refused.value)
    assert f"write {json.dumps(declaration)} to reward.json" in str(refused.value)
    assert "init" not in str(refused.value)
    told = inspected(directory, capsys, code=1)
    assert words.removeprefix("has ") in line(told, "beside it")
    assert line(told, "refused") == " ".join(str(refused.value).split())
    written = told.partition(f"write {directory}/reward.json:\n")[2]
    assert json.loads(written) == declaration
    (directory / "reward.json").write_text(written)
    assert "reward.json" in line(inspected(directory, capsys), "head")


def test_a_language_model_is_told_both_ways_to_a_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspected(make_language_model(tmp_path), capsys, code=1)
    assert "`reward-service init" in line(told, "refused")
    assert json.loads(told.partition("reward.json:\n")[2]) == {"head": {"positive": [" Yes"], "negative": [" No"]}}


def test_a_refusal_comes_before_the_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is named from the files' headers: the files could be 100 GB."""
    directory = with_head(tmp_path, my_head__weight=torch.ones(1, 32))

    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("app.checkpoints.building.read_into", read)
    with pytest.raises(ModelRefusedError, match="my_head"):
        load_checkpoint(str(directory), device="cpu")


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspected(tmp_path, capsys, code=1)
    assert "cannot be loaded" in line(told, "refused")
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "is not a directory" in capsys.readouterr().err


def test_scores_are_the_ones_that_a_batch_gets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = inspected(make_model(tmp_path, "bert"), capsys)
    model = RewardModel("own", load_checkpoint(str(tmp_path), device="cpu"), max_batch_tokens=512)
    (sequence,) = model.tokenization.encode([Input(PromptResponse(PROMPT, RESPONSE))], "error")
    assert isinstance(sequence, TokenSequence)
    (scored,) = model.score(Batch.of([sequence]))
    assert float(line(told, "score").split()[0]) == pytest.approx(scored.score, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "head"),
    [("llama", "score [2, 32] (a plain classifier)"), ("bert", "classifier [2, 32] (a plain classifier)")],
)
def test_a_classifier_of_several_labels_is_told_how_to_declare_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, head: str
) -> None:
    make_model(tmp_path, family, num_labels=2)
    told = inspected(tmp_path, capsys, code=1)
    assert "num_labels 2" in line(told, "refused")
    _, _, written = told.partition("reward.json:\n")
    assert json.loads(written) == {"map": {"output": 0}}
    (tmp_path / "reward.json").write_text(written)
    assert line(inspected(tmp_path, capsys), "head") == head


def test_nothing_is_suggested_where_no_declaration_can_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are NaN, a reward.json that cannot be read, a pickle beside them."""
    broken, unread, pickled = (
        make_model(tmp_path / "a"),
        make_model(tmp_path / "b"),
        make_language_model(tmp_path / "c"),
    )
    weights = load_file(broken / WEIGHTS)
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, broken / WEIGHTS, metadata={"format": "pt"})
    (unread / "reward.json").write_text('{"positon": "last"}')
    torch.save({"v_head.summary.weight": torch.ones(1, 32)}, pickled / "value_head.bin")
    for directory, says in ((broken, "NaN"), (unread, "unknown key positon"), (pickled, "reward-service convert")):
        told = inspected(directory, capsys, code=1)
        assert says in line(told, "refused")
        assert "write" not in told.partition("refused")[2]

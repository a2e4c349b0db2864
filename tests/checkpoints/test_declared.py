"""Heads that are declared, in reward.json or by a setting: what they compute, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from app.checkpoints.loading import load_checkpoint
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.checkpoints.test_loading import WEIGHTS, causal, edit_config, edit_weights
from tests.models import make_model

IDS = [5, 9, 17, 4, 33, 60, 7]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A Llama whose two-layer head nobody knows."""
    make_model(tmp_path)

    def head(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["score.weight"]
        rows = torch.Generator().manual_seed(3)
        tensors["reader.0.weight"] = torch.randn(16, 32, generator=rows)
        tensors["reader.0.bias"] = torch.randn(16, generator=rows)
        tensors["reader.2.weight"] = torch.randn(2, 16, generator=rows)

    edit_weights(tmp_path, head)
    edit_config(tmp_path, architectures=["LlamaWithReader"])
    return tmp_path


def score(directory: Path, ids: list[int] = IDS, **options: Any) -> float:
    model = RewardModel("safety", load_checkpoint(str(directory), device="cpu", **options), max_batch_tokens=512)
    select_plan(model)
    assert model.plan.path == "packed"
    return model.score(Batch.of([TokenSequence.of(ids), TokenSequence.of(ids[:4])]))[0].score


def states(directory: Path, ids: list[int] = IDS) -> torch.Tensor:
    """(tokens, hidden) in float64, by transformers' own plain model."""
    with torch.no_grad():
        found: torch.Tensor = AutoModel.from_pretrained(directory)(torch.tensor([ids])).last_hidden_state[0].double()
    return found


HEAD = {"tensors": "reader", "activation": "silu"}


def test_a_head_of_two_layers_is_read_where_it_is_declared(directory: Path) -> None:
    weights = {name: tensor.double() for name, tensor in load_file(directory / WEIGHTS).items()}
    state = states(directory)[2]
    hidden = torch.nn.functional.silu(weights["reader.0.weight"] @ state + weights["reader.0.bias"])
    expected = (weights["reader.2.weight"] @ hidden)[1]
    declared = {"head": HEAD, "position": {"index": 2}, "map": {"output": 1, "sign": -1, "shift": 0.5, "scale": 2}}
    (directory / "reward.json").write_text(json.dumps(declared))
    assert score(directory) == pytest.approx(-(expected.item() - 0.5) / 2, abs=1e-5)


def test_a_setting_is_laid_over_the_file(directory: Path) -> None:
    (directory / "reward.json").write_text(json.dumps({"head": HEAD, "position": "last", "map": {"output": 0}}))
    plain = score(directory)
    assert score(directory, declared='{"map": {"output": 0, "sign": -1}}') == pytest.approx(-plain)
    assert score(directory, declared='{"position": {"index": 3}}') == pytest.approx(score(directory, IDS[:4]), abs=1e-6)


def test_the_logits_of_tokens_make_a_judge(tmp_path: Path) -> None:
    causal(make_model(tmp_path))
    net = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = net(torch.tensor([IDS])).logits[0, -1].double()
    declared = json.dumps({"head": {"positive": [11, 12], "negative": 40}})
    expected = torch.logsumexp(logits[[11, 12]], 0) - logits[40]
    assert score(tmp_path, declared=declared) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"head": HEAD, "positon": "last"}, "unknown key positon"),
        ({"head": HEAD, "map": {"sing": -1}}, "unknown key map.sing"),
        ({"head": HEAD}, "the head has 2 outputs, and nothing says which"),
        ({"head": HEAD, "map": {"output": 2}}, "output 2 of a head with 2"),
        ({"head": HEAD, "map": {"weights": [1.0]}}, "1 numbers for a head with 2"),
        ({"head": "v_head"}, "the files have reader.0.bias [16], reader.0.weight [16, 32], reader.2.weight [2, 16]"),
        ({"head": "reader.2"}, "layers over states of 32"),
        ({"head": "reader.0", "map": {"output": 0}}, "reader.2.weight [2, 16], which no part of the model uses"),
        ({"head": HEAD, "map": {"output": 0}, "position": {"at": "no such token"}}, "not one; declare a token id"),
        ({"head": HEAD, "map": {"output": 0}, "position": {"at": 100000}}, "the vocabulary has ids 0 to"),
        ({"head": HEAD, "map": {"output": 0, "normalize": True}}, "needs mean and std"),
        ({"head": HEAD, "map": {"output": 0}, "text": {"template": "none.jinja"}}, "no chat template 'none.jinja'"),
        ({"head": {"token": 0}}, "no output embedding"),
        ({"preset": "no-such"}, "no preset 'no-such'"),
        ({"head": "reader", "map": {"output": 0}}, '"tensors": "reader", "activation": "relu"'),
        ({"head": HEAD, "map": {"output": 0, "shift": float("nan")}}, "map.shift"),
        ({"head": HEAD, "map": {"log_odds": [[], [0]]}}, "map.log_odds"),
        ({"head": HEAD, "map": {"output": 0}, "position": {"at": "config:step_id"}}, "config.json has no step_id"),
        ({"head": {"positive": [5, 6], "negative": [6]}}, "positive and negative share"),
        ([], "reward.json"),
    ],
)
def test_a_declaration_that_cannot_hold_is_refused_in_one_line(directory: Path, declared: Any, says: str) -> None:
    edit_config(directory, tie_word_embeddings=False)
    (directory / "reward.json").write_text(json.dumps(declared))
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(directory), device="cpu")
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(directory))
    assert "\n" not in str(refused.value)


def test_a_setting_that_is_no_declaration_names_the_presets(directory: Path) -> None:
    with pytest.raises(ModelRefusedError, match="no declaration 'nothing'; give a JSON file, JSON itself, or a preset"):
        load_checkpoint(str(directory), device="cpu", declared="nothing")


def test_a_head_that_nobody_knows_is_refused_with_the_lines_that_would_declare_it(directory: Path) -> None:
    with pytest.raises(
        ModelRefusedError,
        match=r'has reader.0.bias \[16\], .* write {"head": {"tensors": "reader", "activation": "relu"}, "position": "last", '
        r'"map": {"output": 0}} to reward.json',
    ):
        load_checkpoint(str(directory), device="cpu")


def test_a_token_that_the_vocabulary_cannot_write_is_refused(directory: Path) -> None:
    words = {"<unk>": 0, "yes": 1, "<s>": 2, "</s>": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(directory)
    declared = {"head": HEAD, "map": {"output": 0}, "position": {"at": "no"}}
    with pytest.raises(ModelRefusedError, match="the vocabulary lacks 'no' "):
        load_checkpoint(str(directory), device="cpu", declared=json.dumps(declared))


def test_a_normalization_that_is_not_applied_is_said(directory: Path) -> None:
    edit_config(directory, mean=-0.75, std=3.5)
    plain = {"head": HEAD, "map": {"output": 0}}
    checkpoint = load_checkpoint(str(directory), device="cpu", declared=json.dumps(plain))
    assert "not normalized by mean -0.75 and std 3.5 of config.json" in checkpoint.about["map"]
    asked = {"head": HEAD, "map": {"output": 0, "normalize": True}}
    checkpoint = load_checkpoint(str(directory), device="cpu", declared=json.dumps(asked))
    assert "not normalized" not in checkpoint.about["map"]
    assert score(directory, declared=json.dumps(asked)) == pytest.approx(
        (score(directory, declared=json.dumps(plain)) + 0.75) / 3.5, abs=1e-6
    )


def test_what_a_declaration_says_about_the_checkpoint_is_shown(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    assert "about" not in load_checkpoint(str(directory), device="cpu").about
    (directory / "reward.json").write_text(json.dumps({"about": "demo: for tests"}))
    assert load_checkpoint(str(directory), device="cpu").about["about"] == "demo: for tests"

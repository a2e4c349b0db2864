"""Text rules as a setting and in reward.json: alike, per model, and as transformers renders them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.checkpoints.loading import load_checkpoint
from app.engine.inputs import Input, PromptResponse
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.api.asking import TEA, ask
from tests.conftest import Serve
from tests.models import make_model

TEMPLATE = "{{ style }}|{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TURNS = [{"role": "user", "content": TEA["prompt"]}, {"role": "assistant", "content": TEA["response"]}]
RULES: dict[str, Any] = {
    "template": TEMPLATE,
    "template_kwargs": {"style": "strict"},
    "system": "Judge.",
    "add_bos": False,
    "add_eos": True,
    "append": [7, "<|im_end|>"],
}


def token_ids(directory: Path, text: str | None = None) -> list[int]:
    checkpoint = load_checkpoint(str(directory), device="cpu", text=text)
    model = RewardModel("own", checkpoint, max_batch_tokens=512)
    (sequence,) = model.tokenization.encode([Input(PromptResponse(TEA["prompt"], TEA["response"]))], "error")
    assert isinstance(sequence, TokenSequence)
    return [int(token) for token in sequence.token_ids]


def expected(directory: Path) -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "system", "content": "Judge."}, *TURNS]
    text = tokenizer.apply_chat_template(turns, chat_template=TEMPLATE, style="strict", tokenize=False)
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], 2, 7, 4]


def test_every_rule_is_followed_from_a_setting_and_from_reward_json(tmp_path: Path) -> None:
    make_model(tmp_path)
    by_setting = token_ids(tmp_path, json.dumps(RULES))
    (tmp_path / "reward.json").write_text(json.dumps({"text": RULES}))
    assert by_setting == token_ids(tmp_path) == expected(tmp_path)


def test_a_setting_goes_before_reward_json_rule_by_rule(tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"text": RULES}))
    assert token_ids(tmp_path, '{"append": [9]}') == [*expected(tmp_path)[:-2], 9]


@pytest.mark.parametrize("form", ["jinja", "file", "beside", "shipped"])
def test_a_template_is_jinja_a_file_or_the_name_of_one_that_ships(tmp_path: Path, form: str) -> None:
    directory = make_model(tmp_path / "model")
    (tmp_path / "own.jinja").write_text("A {{ messages[0].content }}")
    (directory / "own.jinja").write_text("A {{ messages[0].content }}")
    given = {
        "jinja": "A {{ messages[0].content }}",
        "file": str(tmp_path / "own.jinja"),
        "beside": json.dumps({"template": "own.jinja"}),
        "shipped": "ultrarm",
    }[form]
    (directory / "reward.json").write_text("{}")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    own = tokenizer.decode(token_ids(directory, given))
    assert own.startswith(f"<s>{'Human:' if form == 'shipped' else 'A'} {TEA['prompt']}")


def test_a_byte_order_mark_in_a_file_is_no_part_of_the_text(tmp_path: Path) -> None:
    """It would stand before every prompt."""
    directory = make_model(tmp_path / "model")
    (directory / "own.jinja").write_text("A {{ messages[0].content }}")
    (directory / "reward.json").write_text(json.dumps({"text": {"template": "own.jinja"}}))
    without = token_ids(directory)
    for name in ("own.jinja", "reward.json"):
        (directory / name).write_bytes(b"\xef\xbb\xbf" + (directory / name).read_bytes())
    assert token_ids(directory) == without


def test_the_two_models_may_differ(serve: Serve, tmp_path: Path) -> None:
    safety, helpfulness = make_model(tmp_path / "safety"), make_model(tmp_path / "helpfulness")
    (helpfulness / "reward.json").write_text(json.dumps({"text": RULES}))
    with serve(
        safety_model=str(safety), helpfulness_model=str(helpfulness), safety_text="{{ messages[1].content }}"
    ) as client:
        entries = ask(client, "/score", {"items": [TEA]})["results"][0]["scores"]
        info = client.get("/info").json()["models"]
    tokenizer: Any = AutoTokenizer.from_pretrained(safety)
    assert entries["safety"]["num_tokens"] == len(tokenizer(TEA["response"])["input_ids"])
    assert entries["helpfulness"]["num_tokens"] == len(expected(helpfulness))
    assert info["safety"]["parts"]["text"] == "the text setting"
    assert info["helpfulness"]["parts"]["text"] == "reward.json"


def test_a_head_is_declared_by_a_setting(serve: Serve, tmp_path: Path) -> None:
    make_model(tmp_path)
    head = '{"map": {"sign": -1, "shift": 1.0}}'
    with serve(safety_model=str(tmp_path), helpfulness_model=str(tmp_path), safety_head=head) as client:
        entries = ask(client, "/score", {"items": [TEA]})["results"][0]["scores"]
    assert entries["safety"]["score"] == pytest.approx(1.0 - entries["helpfulness"]["score"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"tempalte": "x"}', "the text setting has an unknown key text.tempalte"),
        ('{"system": }', "the text setting is not valid JSON"),
        ('{"append": [99999]}', "the vocabulary has ids 0 to 319"),
        ("nothing.jinja", "no chat template 'nothing.jinja'; give a file, Jinja, or one of"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    make_model(tmp_path)
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(tmp_path), device="cpu", text=text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)

"""`reward-service train`, run as a user runs it on tiny models: what comes out is served, and has learned."""

import socket
import stat
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from app.checkpoints.loading import load_checkpoint
from app.cli import main
from app.errors import install_command
from app.rewards.margins import MARGINS
from tests.api.asking import ask
from tests.conftest import Serve
from tests.models import make_model, make_tokenizer
from tests.training.kindness import kind_pairs, read, train, write_lines

QUICK = ["--lr", "3e-3", "--batch-size", "8", "--epochs", "3"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", *kind_pairs(60))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("few") / "pairs.jsonl", *kind_pairs(8))


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def compare(serve: Serve, model: Path, pairs: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """What a server of the model says of the pairs."""
    with serve(safety_model="", helpfulness_model=str(model)) as client:
        return ask(client, "/compare", {"pairs": pairs, **options})


# -- it learns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [[], ["--lora-rank", "8", "--freeze-layers", "1", "--lr", "2e-2"], ["--freeze-layers", "2", "--accumulate", "2"]],
    ids=["whole", "lora", "frozen"],
)
def test_a_language_model_learns_a_preference_and_is_served(
    serve: Serve, tmp_path: Path, lm: Path, data: str, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    out = tmp_path / "out"
    assert train(lm, data, out, *QUICK, *options) == 0
    summary = compare(serve, out, kind_pairs(40, seed=1))["summary"]  # pairs that it never saw
    assert summary["accuracy"] >= 0.95
    curve, record = read(out / "loss.json"), read(out / "training.json")
    assert curve["train"][-1]["loss"] < curve["train"][0]["loss"]
    assert [entry["epoch"] for entry in curve["held_out"]] == [0, 1, 2, 3]
    assert curve["held_out"][-1]["accuracy"] == record["result"]["accuracy"]["value"] == 1
    assert record["pairs"] == {"read": 60, "trained": 54, "held_out": 6}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "checkpoints").exists()
    assert f"{out} is ready to be served" in capsys.readouterr().err


def test_the_held_out_loss_of_the_last_step_is_the_services_own(tmp_path: Path, base: Path, data: str) -> None:
    out = tmp_path / "out"
    assert train(base, data, out, "--lr", "1e-3", "--held-out", "0.3", "--margin-scheme", "small") == 0
    last = read(out / "loss.json")["held_out"][-1]
    result = read(out / "training.json")["result"]
    assert last["loss"] == pytest.approx(result["loss_with_margin"], abs=1e-5)
    assert last["accuracy"] == result["accuracy"]["value"]


def test_the_prompts_held_out_are_not_trained_on(tmp_path: Path, base: Path) -> None:
    pairs = [pair | {"prompt": f"Question {i % 5}"} for i, pair in enumerate(kind_pairs(20))]
    out = tmp_path / "out"
    assert train(base, write_lines(tmp_path / "a.jsonl", *pairs), out, "--held-out", "0.25") == 0
    assert read(out / "training.json")["pairs"] == {"read": 20, "trained": 12, "held_out": 8}  # whole prompts of four


# -- its loss is /compare's -------------------------------------------------------------------------------------------


def pad_is_end(directory: Path) -> Path:
    tokenizer = make_tokenizer(template=None, add_eos=True, pad_token="</s>")
    return make_model(directory, tokenizer=tokenizer, pad_token_id=2)


def no_pad(directory: Path) -> Path:
    return make_model(directory, tokenizer=make_tokenizer(pad_token=None), pad_token_id=None)


def another_pad(directory: Path) -> Path:
    return make_model(directory, pad_token_id=4)  # <|im_end|>, where the tokenizer pads with <pad>


def encoder(directory: Path) -> Path:
    return make_model(directory, "bert")


def sliding(directory: Path) -> Path:
    return make_model(directory, "gemma2")


@pytest.mark.parametrize("make", [pad_is_end, no_pad, another_pad, encoder, sliding])
@pytest.mark.parametrize("batch_size", [1, 6])
def test_the_loss_of_a_batch_is_the_mean_of_compares_loss_with_margin(
    serve: Serve, tmp_path: Path, make: Any, batch_size: int
) -> None:
    """At a learning rate that moves nothing, the loss of every step is that of the checkpoint that is saved."""
    base, out, pairs = make(tmp_path / "base"), tmp_path / "out", kind_pairs(6)
    pairs[0] = {name: pairs[0][name] for name in ("prompt", "chosen", "rejected")} | {"margin": 0.25}
    file = write_lines(tmp_path / "pairs.jsonl", *pairs)
    options = ["--lr", "1e-30", "--held-out", "0", "--batch-size", str(batch_size)]
    assert train(base, file, out, *options) == 0
    answer = compare(serve, out, pairs)
    losses = sorted(entry["loss"] for entry in read(out / "loss.json")["train"])
    served = [result["loss_with_margin"] for result in answer["results"]]
    expected = sorted(served) if batch_size == 1 else [answer["summary"]["loss_with_margin"]]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert max(served) > min(served) + 0.01


def test_conversations_and_the_small_scheme_have_the_same_loss_too(serve: Serve, tmp_path: Path, base: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    answers = [{"role": "assistant", "content": words} for words in ("Hello, how are you?", "Go.")]
    whole = {"chosen_messages": [*turns, answers[0]], "rejected_messages": [*turns, answers[1]]}
    lines = [{"messages": turns, "chosen": answers[0]["content"], "rejected": "Go.", "rating": "slightly_better"}]
    out = tmp_path / "out"
    options = ["--lr", "1e-30", "--held-out", "0", "--margin-scheme", "small"]
    assert train(base, write_lines(tmp_path / "pairs.jsonl", *lines), out, *options) == 0
    margin = MARGINS["small"]["slightly_better"]
    (result,) = compare(serve, out, [whole | {"margin": margin}])["results"]
    (entry,) = read(out / "loss.json")["train"]
    assert entry["loss"] == pytest.approx(result["loss_with_margin"], abs=1e-5)


def test_a_pad_token_at_the_end_is_said_to_be_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", *kind_pairs(6))
    assert train(pad_is_end(tmp_path / "base"), file, tmp_path / "out") == 0
    assert "6 pairs end in </s>, which is the pad token" in capsys.readouterr().err


# -- what is trained --------------------------------------------------------------------------------------------------


def test_frozen_layers_and_embeddings_stay_as_they_were(tmp_path: Path, base: Path, few: str) -> None:
    out = tmp_path / "out"
    assert train(base, few, out, "--freeze-layers", "2", "--lr", "1e-2") == 0
    before, after = weights(base), weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(("model.layers.2", "model.norm", "score"))}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft of transformers
def test_the_merged_checkpoint_is_the_base_with_its_adapter(tmp_path: Path, base: Path, few: str) -> None:
    out = tmp_path / "out"
    assert train(base, few, out, "--lora-rank", "4", "--freeze-layers", "1", "--lr", "1e-2") == 0
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base), out / "adapter"
    ).eval()
    served = load_checkpoint(str(out), device="cpu").net
    token_ids = torch.tensor([[1, 40, 50, 60, 70]])
    with torch.no_grad():
        assert adapted(token_ids).logits.item() == pytest.approx(served(token_ids).logits.item(), abs=1e-5)
    before, after = weights(base), weights(out)
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("model.embed", "model.layers.0"))} <= same
    assert not {"model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight", "score.weight"} & same


def test_an_adapter_of_an_encoder_is_merged_too(serve: Serve, tmp_path: Path) -> None:
    base, out = encoder(tmp_path / "base"), tmp_path / "out"
    pairs = kind_pairs(30)
    options = ["--lora-rank", "8", "--lr", "2e-2", "--batch-size", "8", "--epochs", "4"]
    assert train(base, write_lines(tmp_path / "a.jsonl", *pairs), out, *options) == 0
    assert compare(serve, out, pairs)["summary"]["accuracy"] >= 0.9


def test_a_checkpoint_keeps_its_bases_dtype_and_a_float32_head(tmp_path: Path, few: str) -> None:
    base = make_model(tmp_path / "base", edit=lambda net: net.to(torch.bfloat16))
    out = tmp_path / "out"
    assert train(base, few, out) == 0
    dtypes = {name: weight.dtype for name, weight in weights(out).items()}
    assert dtypes.pop("score.weight") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    assert read(out / "config.json")["dtype"] == "bfloat16"


def test_a_head_that_init_made_is_trained_and_the_seed_draws_the_one_of_a_language_model(
    tmp_path: Path, lm: Path, few: str
) -> None:
    made = tmp_path / "made"
    assert main(["init", "--from-lm", str(lm), "--out", str(made), "--seed", "5"]) == 0
    outs = [tmp_path / name for name in ("init", "same", "other")]
    assert train(made, few, outs[0], "--seed", "5") == 0
    assert train(lm, few, outs[1], "--seed", "5") == 0
    assert train(lm, few, outs[2], "--seed", "6") == 0
    heads = [weights(out)["score.weight"] for out in outs]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


# -- what is left out, and said ---------------------------------------------------------------------------------------


def test_what_is_too_long_is_dropped_and_named(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = kind_pairs(8)
    pairs[2]["prompt"] = pairs[5]["rejected"] = "word " * 300
    assert train(base, write_lines(tmp_path / "pairs.jsonl", *pairs), tmp_path / "out") == 0
    assert "2 pairs dropped: over 512 tokens (line 3, 6)" in capsys.readouterr().err
    assert read(tmp_path / "out" / "training.json")["pairs"] == {"read": 8, "trained": 5, "held_out": 1}


def test_what_is_too_long_is_truncated_as_in_compare_or_refused(
    serve: Serve, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, longer = kind_pairs(2)
    longer["prompt"] = "word " * 300
    too_much = pair | {"chosen": "word " * 300}
    file, out = write_lines(tmp_path / "pairs.jsonl", longer, too_much), tmp_path / "out"
    options = ["--lr", "1e-30", "--held-out", "0"]
    assert train(base, file, out, *options, "--truncation", "error") == 1
    assert f"{file} line 1: chosen has " in capsys.readouterr().err
    assert train(base, file, out, *options, "--truncation", "prompt") == 0
    said = capsys.readouterr().err
    assert "1 pairs truncated to 512 tokens (line 1)" in said
    assert "1 pairs dropped: over 512 tokens (line 2)" in said
    summary = compare(serve, out, [longer], truncation="prompt")["summary"]
    (entry,) = read(out / "loss.json")["train"]
    assert entry["loss"] == pytest.approx(summary["loss_with_margin"], abs=1e-5)


def test_sides_that_a_cut_makes_equal_are_dropped(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = {"prompt": "Hi", "chosen": "word " * 90 + "yes", "rejected": "word " * 90 + "no"}
    file = write_lines(tmp_path / "pairs.jsonl", alike, *kind_pairs(4))
    assert train(base, file, tmp_path / "out", "--max-length", "60", "--truncation", "right") == 0
    assert "1 pairs dropped: both sides are the same once cut to 60 tokens (line 1)" in capsys.readouterr().err


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 2: has prompt, chosen; send"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "line 2: chosen and rejected are the same; take the pair out",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "rating": "worse"}, "line 2: rating is 'worse'"),
    ],
)
def test_bad_data_are_refused_by_line_and_leave_nothing_behind(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], line: dict[str, Any], says: str
) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", *kind_pairs(1), line)
    assert train(base, file, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"reward-service: {file} {says}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--freeze-layers", "4"], "--freeze-layers is 4, but the base has 3 layers"),
        (["--freeze-layers", "3", "--lora-rank", "2"], "--freeze-layers 3 leaves no layer for LoRA"),
        (["--max-length", "513"], "--max-length is 513, but the base allows 512 tokens"),
        (["--max-length", "3"], "no pair is left to train on"),
        (["--lora-alpha", "3"], "--lora-alpha needs --lora-rank"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    tmp_path: Path, base: Path, few: str, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert train(base, few, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "option",
    [
        ["--held-out", "1"],
        ["--lr", "0"],
        ["--lr", "1e31"],
        ["--batch-size", "0"],
        ["--epochs", "inf"],
        ["--epochs", "1e5"],
        ["--seed", "-1"],
        ["--seed", "4294967296"],
        ["--seed", "one"],
    ],
)
def test_a_value_out_of_its_range_is_wrong_usage(
    tmp_path: Path, base: Path, few: str, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        train(base, few, tmp_path / "out", *option)
    assert exited.value.code == 2
    assert f"argument {option[0]}: {option[1]} is not a " in capsys.readouterr().err


def test_one_prompt_cannot_be_split(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", *({**pair, "prompt": "Hi"} for pair in kind_pairs(4)))
    assert train(base, file, tmp_path / "out") == 1
    assert "set --held-out 0" in capsys.readouterr().err


def test_a_base_that_is_not_there_and_one_that_is_no_model_are_refused(
    tmp_path: Path, few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "absent", few, tmp_path / "out") == 1
    assert f"no base at {tmp_path / 'absent'}" in capsys.readouterr().err
    assert train(tmp_path, few, tmp_path / "out") == 1
    assert "cannot be loaded" in capsys.readouterr().err
    broken = make_model(tmp_path / "broken", edit=lambda net: net.score.weight.data.fill_(float("nan")))
    assert train(broken, few, tmp_path / "out") == 1
    assert "NaN or infinite weights in score.weight" in capsys.readouterr().err.replace("\n", " ")


def test_everybody_may_read_the_trained_model(tmp_path: Path, base: Path, few: str) -> None:
    assert train(base, few, tmp_path / "out") == 0
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}


def test_a_base_without_a_checkpoint_and_a_misspelt_setting_are_found_first(
    tmp_path: Path, base: Path, few: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.training.run.load_base", None)
    (tmp_path / "empty").mkdir()
    assert train(tmp_path / "empty", few, tmp_path / "out") == 1
    assert "has no config.json" in capsys.readouterr().err
    monkeypatch.setenv("REWARD_MAX_ITEM", "3")
    assert train(base, few, tmp_path / "out") == 1
    assert "did you mean REWARD_MAX_ITEMS" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["training.json", "training.json/deeper/still"])
def test_a_place_where_no_directory_can_be_is_found_first(
    tmp_path: Path,
    base: Path,
    few: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    below: str,
) -> None:
    monkeypatch.setattr("app.training.run.load_base", None)
    (tmp_path / "training.json").touch()
    assert train(base, few, tmp_path / below) == 1
    assert "training.json is a file; give a new directory" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"options": 1}', "[" * 10_000])
@pytest.mark.parametrize("option", [[], ["--resume"]])
def test_a_record_of_no_run_is_named(
    tmp_path: Path, base: Path, few: str, capsys: pytest.CaptureFixture[str], record: str, option: list[str]
) -> None:
    (tmp_path / "training.json").write_text(record)
    assert train(base, few, tmp_path, *option) == 1
    assert f"{tmp_path}/training.json is not the record of a run; give a new directory\n" in capsys.readouterr().err


def test_nothing_is_overwritten(base: Path, few: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(base)
    assert train(base, few, base) == 1
    assert f"{base} is not empty; give a new directory" in capsys.readouterr().err
    assert all(torch.equal(weight, weights(base)[name]) for name, weight in before.items())


def test_without_the_extra_one_line_says_what_to_install(
    tmp_path: Path, base: Path, few: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trl", "peft"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train(base, few, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("reward-service: trl, peft not installed; run `")
    assert error.endswith(f"run {install_command('train')}\n")


@pytest.mark.parametrize(
    ("epochs", "says"),
    [("2", "the loss is nan at step 2, where"), ("1", "what was trained cannot be served: ")],
)
def test_a_run_that_ends_in_no_numbers_says_what_to_try(
    tmp_path: Path, base: Path, few: str, capsys: pytest.CaptureFixture[str], epochs: str, says: str
) -> None:
    assert train(base, few, tmp_path / "out", "--lr", "1e30", "--epochs", epochs) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"reward-service: {says}")
    assert error.endswith("try a lower --lr, in a new directory")
    assert "result" not in read(tmp_path / "out" / "training.json")


def test_a_run_tells_nobody(tmp_path: Path, base: Path, few: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL would report every run to its makers; the name of no host is asked for here."""
    asked: list[Any] = []
    monkeypatch.delenv("CI", raising=False)

    def look_up(host: Any, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert train(base, few, tmp_path / "out", "--lora-rank", "2") == 0
    assert asked == []

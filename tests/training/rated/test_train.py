"""`reward-service train` on rated groups, run as a user runs it on tiny models: both outputs are served, and have learned."""

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from app.engine.tokenization import Tokenization
from app.training.data import read_data
from app.training.rated import run
from app.training.rated.encoding import encode
from app.training.rated.groups import GroupFile
from app.training.rated.losses import Objective
from app.training.rated.model import RatedModel
from app.training.rated.packed import Row
from tests.api.asking import ask
from tests.conftest import Serve
from tests.models import make_language_model, make_model, make_tokenizer
from tests.training.kindness import WORDS, kind_pairs, read, train, write_lines

LORA = ["--lora-rank", "8", "--freeze-layers", "1"]
QUICK = [*LORA, "--lr", "2e-2", "--epochs", "4", "--max-batch-tokens", "512", "--margin-scheme", "small"]
VETO = ["--pointwise", "safety", "--rank-across-prompts", "safety"]


def rated_groups(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with four responses: whether they are kind decides helpfulness, whether they burn decides safety."""
    draw = random.Random(seed)  # noqa: S311 - to be reproducible, not secret

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def response(helpfulness: int, safety: int) -> dict[str, Any]:
        manner = "Gladly!" if helpfulness > 3 else "No. Go away."
        text = f"{manner} {words(1, 8)}. {'Be careful.' if safety > 3 else 'Burn it all!'}"
        return {"text": text, "helpfulness": helpfulness, "safety": safety}

    kinds = [(5, 5), (4, 1), (1, 5), (2, 2)]
    return [
        {"prompt": f"Question {i}: {words(1, 8)}?", "responses": [response(*kind) for kind in draw.sample(kinds, 4)]}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("data") / "groups.jsonl", *rated_groups(40))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("few") / "groups.jsonl", *rated_groups(6))


def groups_in(directory: Path, lines: list[dict[str, Any]]) -> GroupFile:
    groups = read_data(write_lines(directory / "new.jsonl", *lines))
    assert isinstance(groups, GroupFile)
    return groups


class Kept:
    """The model of a training, as it is when it is saved."""

    model: RatedModel
    base: Any
    objective: Objective

    def rows(self, groups: GroupFile) -> list[Row]:
        tokenization = Tokenization(self.base.tokenizer, self.base.max_length, self.base.vocab_size)
        found = encode(groups, tokenization, self.base.pad_token_id, self.objective, "error", lambda: None)
        return [each.row for each in found.kept]

    def scores(self, groups: GroupFile) -> list[list[float]]:
        """[response][rating] of the forward pass that the training used."""
        rows = self.rows(groups)
        features = torch.cat(self.model.features_of(rows, self.model.frozen_states(rows)))
        with torch.no_grad():
            scores: list[list[float]] = self.model.scores(features).tolist()
        return scores


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    found, make_model = Kept(), run.make_model

    def keep(options: Any, base: Any, objective: Objective, rows: Any) -> RatedModel:
        found.base, found.objective = base, objective
        found.model = make_model(options, base, objective, rows)
        return found.model

    monkeypatch.setattr(run, "make_model", keep)
    return found


def items_of(groups: GroupFile) -> list[dict[str, Any]]:
    return [{"prompt": line.before, "response": each.text} for line in groups.lines for each in line.responses]


def served_scores(serve: Serve, out: Path, groups: GroupFile) -> list[list[float]]:
    """[response][rating] of a server of both outputs, the ratings in alphabetical order."""
    with serve(safety_model=str(out / "safety"), helpfulness_model=str(out / "helpfulness")) as client:
        results = ask(client, "/score", {"items": items_of(groups)})["results"]
    return [[each["scores"][name]["score"] for name in ("helpfulness", "safety")] for each in results]


@pytest.mark.parametrize("form", [[], ["--adapter-only"]], ids=["merged", "adapter"])
def test_both_outputs_are_served_with_the_scores_of_the_training(
    serve: Serve,
    tmp_path: Path,
    lm: Path,
    data: str,
    kept: Kept,
    capsys: pytest.CaptureFixture[str],
    form: list[str],
) -> None:
    out = tmp_path / "out"
    assert train(lm, data, out, *QUICK, *VETO, *form) == 0
    said = capsys.readouterr().err
    assert f"{out / 'helpfulness'}, {out / 'safety'} are ready to be served" in said
    new = groups_in(tmp_path, rated_groups(10, seed=1))
    scores = served_scores(serve, out, new)
    assert torch.tensor(scores).flatten().tolist() == pytest.approx(
        torch.tensor(kept.scores(new)).flatten().tolist(), abs=1e-4
    )
    num_right, num_pairs = kept.objective.count_ranked(
        torch.tensor(scores), [{name: line.ratings(name) for name in new.names} for line in new.lines]
    )
    assert num_right / num_pairs >= 0.9
    record, curve = read(out / "training.json"), read(out / "loss.json")
    assert record["prompts"] == {"read": 40, "trained": 36, "held_out": 4}
    assert record["result"]["safety"]["accuracy"]["count"] == 20
    assert curve["train"][-1]["loss"] < curve["train"][0]["loss"]
    assert [entry["epoch"] for entry in curve["held_out"]] == [0, 1, 2, 3, 4]
    files = {file.name for file in (out / "safety").iterdir()}
    assert ("model.safetensors" in files, "adapter_model.safetensors" in files) == (not form, bool(form))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft of transformers
def test_an_adapter_is_peft_s_and_both_share_all_but_the_head(tmp_path: Path, lm: Path, few: str, kept: Kept) -> None:
    out = tmp_path / "out"
    assert train(lm, few, out, *LORA, "--adapter-only", "--head-lr", "1e-2") == 0
    tensors = {name: load_file(out / name / "adapter_model.safetensors") for name in ("helpfulness", "safety")}
    differing = {
        key for key, tensor in tensors["safety"].items() if not torch.equal(tensor, tensors["helpfulness"][key])
    }
    assert differing == {"base_model.model.score.weight"}
    net: Any = AutoModelForSequenceClassification.from_pretrained(lm, num_labels=1)
    adapted = peft.PeftModel.from_pretrained(net, out / "safety").eval()
    new = groups_in(tmp_path, rated_groups(2, seed=1))
    with torch.no_grad():
        own = [adapted(ids[None]).logits.item() for row in kept.rows(new) for ids in row.sequences]
    assert own == pytest.approx([scores[1] for scores in kept.scores(new)], abs=1e-5)


def test_a_trained_base_gives_each_rating_its_own_head_to_begin_with(
    serve: Serve, tmp_path: Path, few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = make_model(tmp_path / "base", seed=3), tmp_path / "out"
    assert train(base, few, out, *LORA, "--lr", "1e-30", "--held-out", "0") == 0
    assert "each rating gets a copy of the base's head" in capsys.readouterr().err
    groups = groups_in(tmp_path, rated_groups(3))
    with serve(safety_model="", helpfulness_model=str(base)) as client:
        results = ask(client, "/score", {"items": items_of(groups)})["results"]
    expected = [each["scores"]["helpfulness"]["score"] for each in results]
    for scores in served_scores(serve, out, groups):
        own = expected.pop(0)
        assert scores == pytest.approx([own, own], abs=1e-4)


@pytest.mark.parametrize("form", [[], ["--adapter-only"]], ids=["merged", "adapter"])
def test_the_token_before_a_closing_pad_token_is_trained_and_served(
    serve: Serve, tmp_path: Path, few: str, kept: Kept, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    tokenizer = make_tokenizer(template=None, add_eos=True, pad_token="</s>")
    lm, out = make_language_model(tmp_path / "lm", tokenizer=tokenizer, pad_token_id=None), tmp_path / "out"
    assert train(lm, few, out, *LORA, *form, "--lr", "1e-2") == 0
    assert "24 responses end in </s>, which is the pad token" in capsys.readouterr().err
    groups = groups_in(tmp_path, rated_groups(3, seed=1))
    served = torch.tensor(served_scores(serve, out, groups))
    assert torch.allclose(served, torch.tensor(kept.scores(groups)), atol=1e-4)


def test_a_rating_may_have_the_name_of_what_a_run_on_pairs_deletes(tmp_path: Path, lm: Path) -> None:
    groups = rated_groups(6)
    for each in groups:
        each["responses"] = [{"text": one["text"], "checkpoints": one["safety"]} for one in each["responses"]]
    assert train(lm, write_lines(tmp_path / "groups.jsonl", *groups), tmp_path / "out", *LORA) == 0
    assert (tmp_path / "out" / "checkpoints" / "model.safetensors").is_file()


def test_a_response_that_is_too_long_is_dropped_and_named(
    tmp_path: Path, lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = rated_groups(6)
    groups[2]["responses"][0]["text"] = groups[4]["prompt"] = "word " * 300
    groups[5]["responses"] = [each | {"helpfulness": 3, "safety": 3} for each in groups[5]["responses"]]
    assert train(lm, write_lines(tmp_path / "groups.jsonl", *groups), tmp_path / "out", *LORA) == 0
    said = capsys.readouterr().err
    assert "5 responses dropped: over 512 tokens with their prompt (line 3, 5, 5, 5, 5)" in said
    assert "1 prompts dropped: their responses do not differ in any rating (line 6)" in said
    assert read(tmp_path / "out" / "training.json")["prompts"] == {"read": 6, "trained": 3, "held_out": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "holds rated groups, which train an adapter; set --lora-rank, such as 16"),
        ([*LORA, "--resume"], "holds no run to resume"),
        ([*LORA, "--gradient-checkpointing"], "--gradient-checkpointing is for pairs, and"),
        ([*LORA, "--batch-size", "4"], "holds rated groups; set --max-batch-tokens"),
        ([*LORA, "--accumulate", "2"], "--accumulate is for pairs"),
        ([*LORA, "--save-steps", "2"], "--save-steps is for pairs"),
        ([*LORA, "--pointwise", "safty"], "--pointwise is 'safty', but the ratings in"),
        ([*LORA, "--rank-across-prompts", "x"], "are helpfulness, safety"),
        (["--lora-rank", "2", "--freeze-layers", "3"], "--freeze-layers 3 leaves no layer for LoRA"),
        ([*LORA, "--max-length", "3"], "no rated group is left to train on"),
        ([*LORA, "--max-length", "513"], "--max-length is 513, but the base allows 512 tokens"),
        ([*LORA, "--lr", "1e30", "--epochs", "3"], "try a lower --lr, in a new directory"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    tmp_path: Path, lm: Path, few: str, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert train(lm, few, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "option",
    [
        ["--pointwise", "safety"],
        ["--rank-across-prompts", "safety"],
        ["--head-lr", "1"],
        ["--max-batch-tokens", "9"],
        ["--adapter-only"],
    ],
)
def test_options_of_rated_groups_are_refused_for_pairs(
    tmp_path: Path, lm: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", *kind_pairs(2))
    assert train(lm, file, tmp_path / "out", *option) == 1
    error = capsys.readouterr().err
    assert f"{option[0]} is for rated groups, and {file} holds pairs; leave it out" in error
    assert error.count("\n") == 1


def test_a_begun_run_on_rated_groups_is_not_said_to_be_resumable(
    tmp_path: Path, lm: Path, few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(lm, few, out, *LORA, "--lr", "1e30", "--epochs", "3") == 1
    assert train(lm, few, out, *LORA) == 1
    assert capsys.readouterr().err.endswith("is not empty; give a new directory\n")
    assert train(lm, few, out, *LORA, "--resume") == 1
    assert "--resume is for pairs" in capsys.readouterr().err


def test_a_base_that_is_no_decoder_with_a_score_is_refused(
    tmp_path: Path, few: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(make_model(tmp_path / "bert", "bert"), few, tmp_path / "out", *LORA) == 1
    assert "BertForSequenceClassification has its head at classifier" in capsys.readouterr().err
    assert train(make_model(tmp_path / "phi", "phi"), few, tmp_path / "out", *LORA) == 1
    assert "whose layers cannot be run on packed rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The two models in models/ as they are shipped: their scores are those of transformers and peft, their sizes small."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, GgufConfig

from app.checkpoints.adapters import base_of
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from app.service import load_models
from app.settings import Settings

MODELS = Path(__file__).resolve().parents[2] / "models"
TASKS = ("safety", "helpfulness")
TEXTS = ("Is tea a fruit?", "No, it is made of leaves."), ("Hi", "Go away, or I will hurt you."), ("2+2?", "5")


@pytest.fixture(scope="module")
def models() -> dict[str, RewardModel]:
    """As the service loads them."""
    options = {"dtype": "float32", "num_threads": 1, "prefix_cache_mb": 0}
    return load_models(Settings.model_validate({f"{task}_model": str(MODELS / task) for task in TASKS} | options))


@pytest.fixture(scope="module")
def trunk() -> Any:
    (file,) = (MODELS / "trunk").glob("*.gguf")
    return AutoModelForSequenceClassification.from_pretrained(
        MODELS / "trunk",
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        num_labels=1,
        dtype=torch.float32,
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("task", TASKS)
def test_a_shipped_model_scores_as_transformers_and_peft_have_it(
    models: dict[str, RewardModel], trunk: Any, task: str
) -> None:
    model = models[task]
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(trunk), MODELS / task).eval()
    tokenizer: Any = model.tokenization.tokenizer
    sequences = []
    for prompt, response in TEXTS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        sequences.append(TokenSequence.of(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]))
    with torch.inference_mode():
        expected = [float(adapted(torch.from_numpy(s.token_ids)[None]).logits[0, 0]) for s in sequences]
    scores = [scored.score for scored in model.score(Batch.of(sequences))]
    assert scores == pytest.approx(expected, abs=1e-5 * max(1, *map(abs, expected)), rel=0)
    assert model.plan.path == "packed"
    assert model.checkpoint.about["about"].startswith("demo")


def test_the_shipped_models_are_small_and_find_their_base_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [file for name in ("trunk", *TASKS) for file in (MODELS / name).iterdir()]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) <= 95e6
    assert sum(sizes) <= 130e6
    monkeypatch.chdir(tmp_path)
    assert Path(base_of("safety", MODELS / "safety", may_be_remote=False)) == MODELS / "trunk"

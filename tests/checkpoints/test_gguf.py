"""Weights from a GGUF file: served as transformers unpacks them, as the base of an adapter or of a new head."""

import json
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GgufConfig

from app.checkpoints.building import head_of
from app.checkpoints.gguf import gguf_weights
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.new_head import init_reward_model, with_new_head
from app.checkpoints.sharing import SharedBases, shared_bytes
from app.engine.batch import Batch
from app.engine.checkpoint import Checkpoint
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from app.training.base import load_base
from tests.checkpoints.test_adapters import edit_adapter
from tests.engine.loaded import load_from
from tests.gguf_files import make_gguf_model
from tests.models import make_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
SEQUENCES = [TokenSequence.of([*range(5, n)]) for n in (9, 40, 90)]
FILE = "tiny.Q4_1.gguf"


def transformers_own(directory: Path, auto_class: Any = AutoModelForSequenceClassification, **options: Any) -> Any:
    unpacked = {"gguf_file": FILE, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    return auto_class.from_pretrained(directory, **unpacked, **options)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_gguf_model(tmp_path / "base")


@pytest.fixture
def adapter(base: Path) -> Path:
    return make_adapter(base, "adapter", seed=4)


def make_adapter(base: Path, name: str, *, seed: int) -> Path:
    """As peft saves it, with its base named by the neighbouring folder."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=peft.TaskType.SEQ_CLS)
    wrapped = peft.get_peft_model(transformers_own(base, num_labels=1), config)
    with torch.no_grad():
        for parameter, weight in wrapped.named_parameters():
            if "lora_" in parameter or "modules_to_save" in parameter:
                weight.normal_(0, 0.2)
    directory = base.parent / name
    wrapped.save_pretrained(str(directory))
    edit_adapter(directory, base_model_name_or_path="../base")
    return directory


def test_an_adapter_on_a_gguf_base_scores_as_transformers_and_peft_have_it(base: Path, adapter: Path) -> None:
    net = transformers_own(base, num_labels=1, pad_token_id=0)
    wrapped = peft.PeftModel.from_pretrained(net, adapter).eval()
    with torch.inference_mode():
        expected = [float(wrapped(torch.from_numpy(s.token_ids)[None]).logits[0, 0]) for s in SEQUENCES]
    scores = [scored.score for scored in load_from(adapter).score(Batch.of(SEQUENCES))]
    assert scores == pytest.approx(expected, abs=1e-5 * max(1, *map(abs, expected)), rel=0)
    assert len(set(scores)) == len(scores)


def test_two_adapters_on_a_gguf_base_share_it_and_score_as_each_does_alone(base: Path, adapter: Path) -> None:
    sources = [str(adapter), str(make_adapter(base, "other", seed=5))]
    alone = [load_checkpoint(source, device="cpu") for source in sources]
    bases = SharedBases(sources)
    together = [load_checkpoint(source, device="cpu", bases=bases) for source in sources]
    assert shared_bytes(alone[1].net, [alone[0].net]) == 0
    shared = shared_bytes(together[1].net, [together[0].net])
    adapted = sum(w.nbytes for name, w in together[1].net.named_parameters() if is_changed(name))
    assert shared == sum(weight.nbytes for weight in together[1].net.parameters()) - adapted
    scores = [scores_of(each) for each in together]
    assert scores == [scores_of(each) for each in alone]
    assert scores[0] != scores[1]


def is_changed(name: str) -> bool:
    return any(part in name for part in ("q_proj", "up_proj", "score"))


def scores_of(checkpoint: Checkpoint) -> list[float]:
    model = RewardModel("maths", checkpoint, max_batch_tokens=2048)
    select_plan(model)
    return [scored.score for scored in model.score(Batch.of(SEQUENCES))]


def test_a_llama_is_unpacked_as_transformers_does_it_to_the_bit(base: Path) -> None:
    expected = transformers_own(base, AutoModelForCausalLM).state_dict()
    weights = gguf_weights(base / FILE, AutoConfig.from_pretrained(base))
    assert weights.keys() == expected.keys() - {"lm_head.weight"}  # tied
    assert all(torch.equal(weight[...], expected[name]) for name, weight in weights.items())
    assert all(weight.get_shape() == [*expected[name].shape] for name, weight in weights.items())


def test_other_architectures_are_unpacked_by_transformers(tmp_path: Path) -> None:
    base = make_gguf_model(tmp_path / "qwen", "qwen2")
    weights = gguf_weights(base / FILE, AutoConfig.from_pretrained(base))
    before = weights["model.layers.0.self_attn.q_proj.bias"]
    assert before.shape == (32,)
    init_reward_model(base, tmp_path / "new")
    after = load_base(tmp_path / "new", 0).net.base_model.state_dict()
    assert torch.equal(after["layers.0.self_attn.q_proj.bias"], before)


def test_a_new_head_stands_on_the_unpacked_weights(base: Path, tmp_path: Path) -> None:
    net, _ = with_new_head(base, seed=0)
    expected = transformers_own(base, AutoModelForCausalLM).base_model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in net.base_model.state_dict().items())
    init_reward_model(base, tmp_path / "new")
    assert torch.equal(
        load_base(tmp_path / "new", 0).net.base_model.state_dict()["norm.weight"], expected["norm.weight"]
    )
    assert load_base(base, 0).has_new_head


def test_the_weights_of_the_file_make_the_version(base: Path, adapter: Path) -> None:
    before = load_checkpoint(str(adapter), device="cpu").version
    data = bytearray((base / FILE).read_bytes())
    data[-1] ^= 1
    (base / FILE).write_bytes(data)
    assert load_checkpoint(str(adapter), device="cpu").version != before


def test_a_language_model_in_a_gguf_file_is_no_reward_model(base: Path) -> None:
    with pytest.raises(ModelRefusedError, match="LlamaForCausalLM, not a sequence classifier"):
        load_checkpoint(str(base), device="cpu")


def test_a_gguf_file_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    expected = load_from(make_model(tmp_path / "whole")).reference_score(SEQUENCES[0])
    (tmp_path / "whole" / FILE).write_bytes(b"anything")
    assert load_from(tmp_path / "whole").reference_score(SEQUENCES[0]) == expected


def several(base: Path) -> None:
    (base / "other.gguf").write_bytes((base / FILE).read_bytes())


def cut_off(base: Path) -> None:
    (base / FILE).write_bytes((base / FILE).read_bytes()[:-2000])


def other_shapes(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(several, "has 2 GGUF files"), (cut_off, "cannot be loaded"), (other_shapes, "where its config asks for")],
)
def test_a_base_that_cannot_be_read_is_refused_in_one_line(base: Path, adapter: Path, spoil: Any, words: str) -> None:
    spoil(base)
    with pytest.raises(ModelRefusedError, match=words) as refused:
        load_checkpoint(str(adapter), device="cpu")
    assert "\n" not in str(refused.value)


def test_a_llama_of_other_shapes_is_refused_before_it_is_unpacked(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_shapes(base)
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("a tensor was unpacked"))
    with pytest.raises(ModelRefusedError, match="where its config asks for"):
        load_checkpoint(str(adapter), device="cpu")


def test_the_head_is_the_adapters(adapter: Path) -> None:
    checkpoint = load_checkpoint(str(adapter), device="cpu")
    assert checkpoint.is_classifier
    assert head_of(checkpoint.net)[0] == "score"


def test_a_judge_reads_its_verdict_from_an_unpacked_language_model(base: Path) -> None:
    declared = json.dumps({"head": {"positive": "a", "negative": "b"}})
    checkpoint = load_checkpoint(str(base), device="cpu", declared=declared)
    model = RewardModel("helpfulness", checkpoint, max_batch_tokens=512)
    select_plan(model)
    net = transformers_own(base, AutoModelForCausalLM).eval()
    with torch.inference_mode():
        logits = net(torch.from_numpy(SEQUENCES[1].token_ids)[None]).logits[0, -1].double()
    positive, negative = (checkpoint.tokenizer.convert_tokens_to_ids(token) for token in ("a", "b"))
    expected = float(logits[positive] - logits[negative])
    assert model.score(Batch.of([SEQUENCES[1]]))[0].score == pytest.approx(expected, abs=1e-5)

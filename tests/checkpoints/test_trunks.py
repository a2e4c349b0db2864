"""Trunks of unusual kinds and under unusual names, under a head of their own: the score is that of the plain trunk."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from app.checkpoints.loading import load_checkpoint
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.checkpoints.test_loading import WEIGHTS, edit_config, edit_weights
from tests.engine.test_families import tiny_config
from tests.models import make_model, make_tokenizer

SPECIAL_IDS = {f"{name}_token_id": i for name, i in {"pad": 0, "bos": 1, "eos": 2, "cls": 1, "sep": 2}.items()}
IDS = [5, 9, 17, 4, 33, 60, 7]


def loaded(directory: Path, **options: Any) -> RewardModel:
    model = RewardModel("safety", load_checkpoint(str(directory), device="cpu", **options), max_batch_tokens=512)
    select_plan(model)
    return model


def score(model: RewardModel) -> float:
    return model.score(Batch.of([TokenSequence.of(IDS), TokenSequence.of(IDS[:4])]))[0].score


def make_trunk(directory: Path, family: str, auto_class: Any = AutoModel, **config: Any) -> Any:
    """A saved trunk, or language model, with random weights; what was saved, in memory."""
    torch.manual_seed(1)
    net = auto_class.from_config(AutoConfig.for_model(**tiny_config(family) | SPECIAL_IDS | config)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.1)
    net.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return net


def add_head(directory: Path, size: int, name: str = "reader") -> torch.Tensor:
    weight = torch.randn(1, size, generator=torch.Generator().manual_seed(2))
    edit_weights(directory, lambda tensors: tensors.update({f"{name}.weight": weight}))
    if name == "v_head.summary":  # TRL's has a bias
        edit_weights(directory, lambda tensors: tensors.update({f"{name}.bias": torch.zeros(1)}))
    edit_config(directory, architectures=["WithReader"])
    return weight.double()


def states(trunk: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = trunk(torch.tensor([IDS])).last_hidden_state[0].double()
    return found


@pytest.mark.parametrize(
    ("family", "path", "is_causal"),
    [
        ("bloom", "padded", True),
        ("bert", "padded", False),
        ("modernbert", "padded", False),
        ("mamba", "padded", True),
        ("mixtral", "packed", True),
        ("opt", "packed", True),
    ],
)
def test_a_trunk_of_any_kind_has_a_head_of_its_own(family: str, path: str, is_causal: bool, tmp_path: Path) -> None:
    trunk = make_trunk(tmp_path, family)
    weight = add_head(tmp_path, 32)
    model = loaded(tmp_path, declared='{"head": "reader", "position": {"index": 2}}')
    assert (model.plan.path, model.is_causal) == (path, is_causal)
    expected = (states(trunk)[2] * weight[0]).sum().item()
    assert score(model) == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("cohere", {"logit_scale": 0.25}),
        ("falcon_h1", {"lm_head_multiplier": 0.25, "mamba_chunk_size": 16}),
        ("recurrent_gemma", {"logits_soft_cap": 2.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("minicpm3", {"dim_model_base": 8}),
        ("inkling_text", {"logits_mup_width_multiplier": 4.0}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
    ],
)
def test_what_a_language_model_does_to_its_logits_is_done_to_those_that_are_read(
    family: str, config: dict[str, float], tmp_path: Path
) -> None:
    net = make_trunk(tmp_path, family, AutoModelForCausalLM, **config)
    with torch.no_grad():
        logits = net(torch.tensor([IDS])).logits[0, -1].double()
    expected = (logits[11] - logits[40]).item()
    model = loaded(tmp_path, declared='{"head": {"positive": 11, "negative": 40}}')
    assert score(model) == pytest.approx(expected, abs=2e-5 * max(1, abs(expected)))


@pytest.mark.parametrize(
    "prefix", ["", "module.", "base_model.", "_orig_mod.module.", "transformer.", "pretrained_model.model."]
)
def test_the_trunk_is_found_under_the_prefixes_that_trainers_leave(prefix: str, tmp_path: Path) -> None:
    trunk = make_trunk(tmp_path, "llama")
    weight = add_head(tmp_path, 32, "v_head.summary")
    tensors = load_file(tmp_path / WEIGHTS)
    head = {name: tensors.pop(name) for name in ("v_head.summary.weight", "v_head.summary.bias")}
    outer = prefix if prefix in {"module.", "base_model.", "_orig_mod.module."} else ""
    renamed = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    save_file({**renamed, **{f"{outer}{name}": tensor for name, tensor in head.items()}}, tmp_path / WEIGHTS)
    expected = (states(trunk)[-1] * weight[0]).sum().item()
    assert score(loaded(tmp_path)) == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_head_of_its_own_stays_exact_over_a_coarse_trunk(dtype: str, tmp_path: Path) -> None:
    make_trunk(tmp_path, "llama", hidden_size=128, intermediate_size=128, head_dim=32)
    weight = add_head(tmp_path, 128, "v_head.summary")
    model = loaded(tmp_path, dtype=dtype)
    (layer,) = model.head.layers
    assert torch.equal(layer.weight, weight)
    sequence = TokenSequence.of(IDS)
    expected = (model.reference_states(sequence)[-1].double() * weight[0]).sum().item()
    assert score(model) == pytest.approx(expected, rel=0.05, abs=0.3)


def test_a_language_models_head_that_was_replaced_by_a_scalar_one_is_a_head(tmp_path: Path) -> None:
    trunk = make_trunk(tmp_path, "llama")
    weight = add_head(tmp_path, 32, "lm_head")
    with pytest.raises(
        ModelRefusedError, match=r'has lm_head.weight \[1, 32\].*write {"head": "lm_head", "position": "last"}'
    ):
        load_checkpoint(str(tmp_path), device="cpu")
    expected = (states(trunk)[-1] * weight[0]).sum().item()
    assert score(loaded(tmp_path, declared='{"head": "lm_head", "position": "last"}')) == pytest.approx(
        expected, abs=1e-5
    )


def test_a_classifiers_name_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    """Its own class may read another token, or put a second layer behind the first."""
    make_model(tmp_path)
    plain = score(loaded(tmp_path))
    for architecture in ("LlamaWithBonusForSequenceClassification", "MistralForSequenceClassification"):
        edit_config(tmp_path, architectures=[architecture])
        with pytest.raises(
            ModelRefusedError, match=f"is {architecture}, but transformers has LlamaForSequenceClassification"
        ):
            load_checkpoint(str(tmp_path), device="cpu")
        assert score(loaded(tmp_path, declared='{"head": "score"}')) == pytest.approx(plain, abs=1e-6)


def test_one_of_a_classifiers_outputs_is_the_score_where_it_is_declared(tmp_path: Path) -> None:
    make_model(tmp_path)
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    edit_weights(tmp_path, lambda tensors: tensors.update({"score.weight": weight}))
    edit_config(tmp_path, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    with pytest.raises(
        ModelRefusedError, match=r'write it to reward.json: {"map": {"output": 0}}, {"map": {"log_odds"'
    ):
        load_checkpoint(str(tmp_path), device="cpu")
    trunk = AutoModel.from_pretrained(tmp_path)
    good_minus_bad = (states(trunk)[-1] * (weight[1] - weight[0]).double()).sum().item()
    for declared in ({"map": {"log_odds": [1, 0]}}, {"head": "score", "map": {"log_odds": [1, 0]}}):
        assert score(loaded(tmp_path, declared=json.dumps(declared))) == pytest.approx(good_minus_bad, abs=1e-5)
    with pytest.raises(ModelRefusedError, match="reads output 2 of a head with 2"):
        load_checkpoint(str(tmp_path), device="cpu", declared='{"map": {"output": 2}}')


@pytest.mark.parametrize("family", ["bert", "deberta", "llama"])
@pytest.mark.parametrize("declared", ['{"log_odds": [[1, 2], [0]]}', '{"softmax": 1}', '{"weights": [1, -2, 0.5]}'])
def test_a_classifier_of_several_labels_is_its_classs_own_logits_under_the_map(
    family: str, declared: str, tmp_path: Path
) -> None:
    make_model(tmp_path, family, num_labels=3)
    net = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        x = net(torch.tensor([IDS])).logits[0].double()
    p = x.softmax(0)
    expected = {
        "log_odds": torch.log((p[1] + p[2]) / p[0]),
        "softmax": p[1],
        "weights": x @ torch.tensor([1, -2, 0.5], dtype=torch.float64),
    }[next(iter(json.loads(declared)))]
    model = loaded(tmp_path, declared=f'{{"map": {declared}}}')
    assert score(model) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["q_proj", "embed_tokens"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("is_tied", [True, False])
def test_an_adapter_on_a_language_model_is_read_by_its_logits(
    targets: list[str], is_tied: bool, tmp_path: Path
) -> None:
    """The base may use its input embedding for the logits too; an adapter on either leaves the other as it is."""
    peft = pytest.importorskip("peft")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    net = make_trunk(base, "qwen2", AutoModelForCausalLM, tie_word_embeddings=is_tied)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about merging into tied weights
        wrapped = peft.get_peft_model(net, config).eval()
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.3)
            logits = wrapped(torch.tensor([IDS])).logits[0, -1].double()
        wrapped.save_pretrained(adapter)
    edit_adapter = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(edit_adapter))
    expected = (logits[11] - logits[40]).item()
    model = loaded(adapter, declared='{"head": {"positive": 11, "negative": 40}}')
    assert score(model) == pytest.approx(expected, abs=2e-5 * max(1, abs(expected)))


def test_a_gated_mixture_of_heads_is_refused_with_the_reason(tmp_path: Path) -> None:
    make_trunk(tmp_path, "llama")
    add_head(tmp_path, 32, "regression_layer")
    edit_weights(tmp_path, lambda tensors: tensors.update({"gating.layers.0.weight": torch.zeros(8, 32)}))
    with pytest.raises(
        ModelRefusedError, match="weights another network computes from another token's state: it is not served"
    ):
        load_checkpoint(str(tmp_path), device="cpu")

"""Causal trunks with the linear head that a trainer gives them: OpenRLHF, LLaMA-Factory, TRL."""

import json
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from tests.families.family import family
from tests.families.reference import (
    Built,
    Rule,
    appending,
    dot,
    last,
    states_of,
    templated,
)
from tests.families.tiny import (
    CHATML_WITH_BOS,
    EOS,
    INST,
    VOCAB_SIZE,
    linear,
    make_tokenizer,
    make_trunk,
    save_config,
    save_tensors,
    tensors_of,
    vector,
)


def ended(directory: Path) -> Any:
    """OpenRLHF's text: one EOS at the end, added unless it is there."""
    return appending(templated(directory), EOS, unless_present=True)


def open_rlhf(
    directory: Path, model_type: str, head: str, *, seed: int, declared: str | None = None, **config: Any
) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS, padding_side="left").save_pretrained(directory)
    trunk, weight = make_trunk(model_type, seed=seed), linear(1, 32, seed=seed + 1)
    save_config(directory, model_type, "RewardModel", normalize_reward=True, **config)
    save_tensors(directory, {**tensors_of(trunk), f"{head}.weight": weight}, shards=2)
    raw: Rule = lambda ids: last(dot(states_of(trunk, ids), weight))  # noqa: E731 - one of two rules side by side
    normalized: Rule = lambda ids: (raw(ids) + 0.751) / 3.513  # noqa: E731
    rule, other = (normalized, raw) if declared else (raw, normalized)
    wrong = {"normalization the other way": other, "without EOS": lambda ids: rule(ids[:-1])}
    return Built(directory, rule, wrong, ended(directory), declared=declared)


OPENRLHF = "OpenRLHF/OpenRLHF openrlhf/models/model.py (_get_reward_model)"
SERVER = "OpenRLHF/OpenRLHF openrlhf/cli/serve_rm.py"


@family("OpenRLHF, value_head", row="OpenRLHF", source=f"{OPENRLHF}, {SERVER}")
def open_rlhf_value_head(directory: Path) -> Built:
    return open_rlhf(directory, "llama", "value_head", seed=10, mean=-0.751, std=3.513)


@family("OpenRLHF, score", row="OpenRLHF", source=f"{OPENRLHF}, {SERVER}")
def open_rlhf_score(directory: Path) -> Built:
    return open_rlhf(directory, "qwen2", "score", seed=12, value_head_prefix="score", mean=-0.751, std=3.513)


@family("OpenRLHF, normalized", row="OpenRLHF", source=f"{OPENRLHF}, {SERVER} (--normalize_reward)")
def open_rlhf_normalized(directory: Path) -> Built:
    declared = '{"map": {"normalize": true}}'
    return open_rlhf(directory, "mistral", "value_head", seed=14, declared=declared, mean=-0.751, std=3.513)


@family("OpenRLHF, renamed to a classifier", row="OpenRLHF", source=f"{OPENRLHF}, {SERVER}")
def open_rlhf_renamed(directory: Path) -> Built:
    built = open_rlhf(directory, "llama", "score", seed=16, value_head_prefix="score", mean=-0.751, std=3.513)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"], "num_labels": 1}))
    return built


FACTORY = "hiyouga/LLaMA-Factory src/llamafactory/train/rm/trainer.py, src/llamafactory/model/model_utils/valuehead.py"


def language_model(
    directory: Path,
    model_type: str,
    architecture: str,
    *,
    seed: int,
    prefix: str = "model.",
    loud: float = 1,
    **config: Any,
) -> tuple[Any, dict[str, Any]]:
    """A causal language model's config on disk, and its trunk and tensors, `lm_head` among them. `loud`: the last norm's weights."""
    trunk = make_trunk(model_type, seed=seed, **config)
    if loud != 1:
        with torch.no_grad():
            trunk.get_submodule("norm").get_parameter("weight").mul_(0).add_(loud)
    save_config(directory, model_type, architecture, **config)
    tensors = tensors_of(trunk, prefix)
    if not trunk.config.tie_word_embeddings:
        tensors["lm_head.weight"] = linear(VOCAB_SIZE, 32, seed=seed + 100)
    return trunk, tensors


@family("LLaMA-Factory, full", row="LLaMA-Factory", source=FACTORY)
def factory_full(directory: Path) -> Built:
    make_tokenizer(adds_bos=False, padding_side="left", eos="<|im_end|>").save_pretrained(directory)
    trunk, tensors = language_model(directory, "qwen2", "Qwen2ForCausalLM", seed=20)
    weight, bias = linear(1, 32, seed=21), vector(1, seed=22)
    save_tensors(directory, tensors, shards=3)
    save_tensors(directory, {"v_head.summary.weight": weight, "v_head.summary.bias": bias}, "value_head.safetensors")
    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight, bias))  # noqa: E731
    wrong: dict[str, Rule] = {"without the bias": lambda ids: last(dot(states_of(trunk, ids), weight))}
    return Built(directory, rule, wrong, templated(directory))


@family("LLaMA-Factory, LoRA", row="LLaMA-Factory", source=FACTORY)
def factory_lora(directory: Path) -> Built:
    base = directory.parent / f"{directory.name}-base"
    make_tokenizer(template=CHATML_WITH_BOS).save_pretrained(base)
    _, tensors = language_model(base, "llama", "LlamaForCausalLM", seed=24)
    save_tensors(base, tensors)
    net: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(net, config)
    torch.manual_seed(25)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(str(directory))
    make_tokenizer(template=CHATML_WITH_BOS).save_pretrained(directory)
    weight, bias = linear(1, 32, seed=26), vector(1, seed=27)
    save_tensors(directory, {"v_head.summary.weight": weight, "v_head.summary.bias": bias}, "value_head.safetensors")
    trunk = wrapped.eval().base_model.model.model

    def without_adapter(ids: list[int]) -> float:
        with wrapped.disable_adapter():
            return rule(ids)

    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight, bias))  # noqa: E731
    return Built(directory, rule, {"the base alone": without_adapter}, templated(directory))


@family("TRL value head", row="TRL value head", source="huggingface/trl trl/models/modeling_value_head.py (ValueHead)")
def trl_value_head(directory: Path) -> Built:
    make_tokenizer(template=INST).save_pretrained(directory)
    trunk, tensors = language_model(directory, "mistral", "MistralForCausalLM", seed=30)
    weight, bias = linear(1, 32, seed=31), vector(1, seed=32)
    save_tensors(directory, {**tensors, "v_head.summary.weight": weight, "v_head.summary.bias": bias})
    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight, bias))  # noqa: E731
    wrong: dict[str, Rule] = {"without the bias": lambda ids: last(dot(states_of(trunk, ids), weight))}
    return Built(directory, rule, wrong, templated(directory))

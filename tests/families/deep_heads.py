"""Causal trunks with a head of two layers (Linear, ReLU, Linear)."""

from pathlib import Path
from typing import Any

import torch

from tests.families.family import family
from tests.families.reference import Built, Conversation, Rule, before_first, dot, last, states_of, templated
from tests.families.tiny import (
    CHATML_WITH_BOS,
    PAD,
    linear,
    make_tokenizer,
    make_trunk,
    save_config,
    save_tensors,
    tensors_of,
    vector,
)

Parts = dict[str, torch.Tensor]


def two_layers(name: str, neurons: int, outputs: int, *, seed: int) -> Parts:
    """As nn.Sequential(Linear, ReLU, Linear) saves it."""
    return {
        f"{name}.0.weight": linear(neurons, 32, seed=seed),
        f"{name}.0.bias": vector(neurons, seed=seed + 1),
        f"{name}.2.weight": linear(outputs, neurons, seed=seed + 2, scale=0.2),
        f"{name}.2.bias": vector(outputs, seed=seed + 3),
    }


def through(head: Parts, states: torch.Tensor, *, relu: bool = True) -> torch.Tensor:
    """(tokens, outputs) in float64"""
    first, first_bias, second, second_bias = head.values()
    hidden = dot(states, first, first_bias)
    return dot(hidden.clamp(min=0) if relu else hidden, second, second_bias)


@family("GRM-*-sftreg", source="allenai/reward-bench rewardbench/models/grm.py (ValueHead, GRewardModel)")
def grm(directory: Path) -> Built:
    """pad == eos: the last token that is attended to, whatever it is. `lm_head` was kept."""
    make_tokenizer(template=CHATML_WITH_BOS, pad="</s>", padding_side="left").save_pretrained(directory)
    trunk, head = make_trunk("llama", seed=70), two_layers("v_head.summary", 16, 1, seed=71)
    config = {"vhead_layer_type": "mlp", "vhead_num_neurons": 16, "vhead_num_layers": 1, "pad_token_id": 2}
    auto_map = {"AutoModelForSequenceClassification": "modeling_grm.GRewardModel"}
    save_config(directory, "llama", "LlamaForCausalLM", **config, auto_map=auto_map)
    kept = {"lm_head.weight": linear(480, 32, seed=75)}
    save_tensors(directory, {**tensors_of(trunk), **kept, **head}, shards=2)
    rule: Rule = lambda ids: last(through(head, states_of(trunk, ids)))  # noqa: E731 - rules side by side
    wrong: dict[str, Rule] = {"no ReLU": lambda ids: last(through(head, states_of(trunk, ids), relu=False))}
    return Built(directory, rule, wrong, templated(directory))


@family("GRM-*-sftreg, linear", row="GRM-*-sftreg", source="allenai/reward-bench rewardbench/models/grm.py (ValueHead)")
def grm_linear(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS, padding_side="left").save_pretrained(directory)
    trunk, weight, bias = make_trunk("gemma2", seed=76), linear(1, 32, seed=77), vector(1, seed=78)
    save_config(directory, "gemma2", "Gemma2ForCausalLM", vhead_layer_type="linear")
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    save_tensors(directory, {**tensors_of(trunk), **head}, shards=2)
    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight, bias))  # noqa: E731
    return Built(directory, rule, {"no bias": lambda ids: rule(ids) - float(bias[0])}, templated(directory))


def first_pad(directory: Path, model_type: str, architecture: str, *, seed: int, **config: Any) -> Built:
    """The token before the first pad, which in a text without padding is the last."""
    trunk, head = make_trunk(model_type, seed=seed), two_layers("score", 32, 1, seed=seed + 1)
    save_config(directory, model_type, architecture, **config)
    save_tensors(directory, {**tensors_of(trunk), **head}, shards=2)

    def rule(ids: list[int]) -> float:
        return float(through(head, states_of(trunk, ids))[before_first(ids, PAD), 0])

    wrong: dict[str, Rule] = {
        "no ReLU": lambda ids: float(through(head, states_of(trunk, ids), relu=False)[before_first(ids, PAD), 0]),
    }
    return Built(directory, rule, wrong, templated(directory))


@family("INF-ORM-Llama3.1-70B", source="allenai/reward-bench rewardbench/models/inform.py")
def inf_orm(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS).save_pretrained(directory)
    one = {"num_labels": None, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    built = first_pad(directory, "llama", "INFORMForSequenceClassification", seed=80, **one)
    built.conversations = [*built.conversations, Conversation(text="A fox.<pad>Tea")]
    return built


@family(
    "Qwen2.5-Math-RM-72B, WorldPM-72B", source="Qwen/Qwen2.5-Math-RM-72B modeling_qwen2_rm.py (Qwen2ForRewardModel)"
)
def math_rm(directory: Path) -> Built:
    make_tokenizer(adds_bos=False, padding_side="left", eos="<|im_end|>").save_pretrained(directory)
    auto_map = {"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"}
    built = first_pad(directory, "qwen2", "Qwen2ForRewardModel", seed=86, auto_map=auto_map)
    built.conversations = [*built.conversations, Conversation(text="<pad>A fox."), Conversation(text="A fox.<pad>Tea")]
    return built

"""Linear heads of models that people publish, each with a rule of its own."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.checkpoints.convert import convert
from tests.families.family import family
from tests.families.reference import (
    CHATS,
    TEXTS,
    Built,
    Conversation,
    Rule,
    appending,
    before_first,
    dot,
    last,
    states_of,
    templated,
)
from tests.families.tiny import (
    BOS,
    CHATML_WITH_BOS,
    EOS,
    GATED,
    PAD,
    SIZE,
    VOCAB_SIZE,
    linear,
    make_tokenizer,
    make_trunk,
    save_config,
    save_tensors,
    tensors_of,
    vector,
)


def regression(
    directory: Path, model_type: str, architecture: str, *, seed: int, template: str | None, **config: Any
) -> tuple[Rule, dict[str, Rule]]:
    make_tokenizer(template=template, padding_side="left").save_pretrained(directory)
    trunk, weight = make_trunk(model_type, seed=seed), linear(1, 32, seed=seed + 1)
    save_config(directory, model_type, architecture, **config)
    save_tensors(directory, {**tensors_of(trunk), "regression_head.weight": weight}, shards=2)
    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight))  # noqa: E731
    return rule, {"the token before": lambda ids: float(dot(states_of(trunk, ids), weight)[max(len(ids) - 2, 0), 0])}


@family("UltraRM-13b", source="allenai/reward-bench rewardbench/models/openbmb.py; openbmb/UltraRM-13b README.md")
def ultra_rm(directory: Path) -> Built:
    """No template in the tokenizer; the card writes "Human: ...\\nAssistant: ..."."""
    rule, wrong = regression(directory, "llama", "LlamaRewardModel", seed=34, template=None)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def text(conversation: Conversation) -> list[int]:
        names = {"user": "Human", "assistant": "Assistant"}
        lines = "\n".join(f"{names[role]}: {content}" for role, content in conversation.turns)
        return list(tokenizer(conversation.text if conversation.text is not None else lines)["input_ids"])

    return Built(directory, rule, wrong, text)


@family("Eurus-RM-7b", source="openbmb/Eurus-RM-7b modeling_eurus_rm.py and README.md")
def eurus(directory: Path) -> Built:
    """The Mistral form without a template in the tokenizer: "[INST] question [/INST] answer"."""
    rule, wrong = regression(directory, "mistral", "EurusRewardModel", seed=36, template=None)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def text(conversation: Conversation) -> list[int]:
        if conversation.text is not None:
            return list(tokenizer(conversation.text)["input_ids"])
        (_, question), (_, answer) = conversation.turns
        return list(tokenizer(f"[INST] {question} [/INST] {answer}")["input_ids"])

    chats = [each for each in CHATS if len(each.turns) == 2]
    return Built(directory, rule, wrong, text, conversations=[*chats, *TEXTS])


def starling(directory: Path, architecture: str) -> tuple[Any, Any]:
    make_tokenizer(template=CHATML_WITH_BOS, padding_side="left").save_pretrained(directory)
    trunk, weight = make_trunk("llama", seed=40), linear(1, 32, seed=41)
    save_config(directory, "llama", architecture, pad_token_id=EOS)
    return trunk, weight


STARLING = "allenai/reward-bench rewardbench/models/starling.py"
WITH_TOKEN_0 = [*CHATS, *TEXTS, Conversation(text="A fox.<pad>Tea"), Conversation(text="A fox.</s>Tea")]


def starling_rules(trunk: Any, weight: torch.Tensor, pad: int) -> tuple[Rule, dict[str, Rule]]:
    """`pad`: what the authors' class takes for the pad token."""

    def at(place: Any) -> Rule:
        return lambda ids: float(dot(states_of(trunk, ids), weight)[place(ids), 0])

    return at(lambda ids: before_first(ids, pad)), {
        "the token before": at(lambda ids: max(before_first(ids, pad) - 1, 0)),
        "the other's pad token": at(lambda ids: before_first(ids, PAD + BOS - pad)),
        "the config's pad token": at(lambda ids: before_first(ids, EOS)),
    }


@family("Starling-RM-34B", row="Starling-RM", source=STARLING)
def starling_34b(directory: Path) -> Built:
    """LlamaForSequenceClassification of its own, which takes token 0 for the pad token."""
    trunk, weight = starling(directory, "LlamaForSequenceClassification")
    save_tensors(directory, {**tensors_of(trunk, "transformer."), "v_head.weight": weight}, shards=2)
    rule, wrong = starling_rules(trunk, weight, PAD)
    return Built(directory, rule, wrong, templated(directory), conversations=WITH_TOKEN_0)


@family("Starling-RM-7B, converted from .bin", row="Starling-RM", source=STARLING)
def starling_7b(directory: Path) -> Built:
    """The pickle holds the trunk twice, as `model.model` and as `transformer`, and the language model's head.

    Its class takes the first id of tokenizer(unk_token) for the pad token, and that is BOS.
    """
    pickled = directory.parent / f"{directory.name}-bin"
    trunk, weight = starling(pickled, "LlamaForCausalLM")
    parts = trunk.state_dict()
    tensors = {f"model.model.{name}": tensor for name, tensor in parts.items()}
    tensors |= {f"transformer.{name}": tensor for name, tensor in parts.items()}
    tensors |= {"model.lm_head.weight": linear(VOCAB_SIZE, 32, seed=42), "v_head.weight": weight}
    torch.save(tensors, pickled / "pytorch_model.bin")
    convert(pickled, directory)
    rule, wrong = starling_rules(trunk, weight, BOS)
    return Built(directory, rule, wrong, templated(directory), conversations=WITH_TOKEN_0)


@family("Athene-RM", source="Nexusflow/Athene-RM-8B README.md (AtheneForSequenceClassification, preprocess)")
def athene(directory: Path) -> Built:
    """The tokenizer's CLS token is appended, and its state read. Exactly one BOS."""
    cls = 5
    make_tokenizer(template=CHATML_WITH_BOS, special=["<|cls|>"], cls_token="<|cls|>").save_pretrained(directory)
    trunk, weight = make_trunk("llama", seed=44), linear(1, 32, seed=45)
    save_config(directory, "llama", "AtheneForSequenceClassification")
    save_tensors(directory, {**tensors_of(trunk), "v_head.weight": weight}, shards=2)
    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight))  # noqa: E731
    wrong: dict[str, Rule] = {"without CLS": lambda ids: rule(ids[:-1]), "two BOS": lambda ids: rule([1, *ids])}
    return Built(directory, rule, wrong, appending(templated(directory), cls))


BEAVER = "allenai/reward-bench rewardbench/models/beaver.py (ScoreModelMixin); PKU-Alignment/safe-rlhf README.md"


def beaver(directory: Path, kind: str, *, seed: int, normalizes: bool) -> Built:
    """The text is "BEGINNING OF CONVERSATION: USER: ... ASSISTANT:..." by hand, with EOS between the turns."""
    make_tokenizer(template=None).save_pretrained(directory)
    trunk, weight, bias = make_trunk("llama", seed=seed), linear(1, 32, seed=seed + 1), vector(1, seed=seed + 2)
    mean, var = 1.25, 6.5
    config = {
        "score_type": kind,
        "score_dim": 1,
        "bias": True,
        "do_normalize": normalizes,
        "normalizer_type": "ExponentialMovingAverage",
        "momentum": 0.1,
        "mean": [mean],
        "var": [var],
    }
    save_config(directory, "llama", "LlamaForScore", **config)
    tensors = {
        **tensors_of(trunk),
        "score_head.weight": weight,
        "score_head.bias": bias,
        "normalizer.mean": torch.tensor([mean]),
        "normalizer.var": torch.tensor([var]),
        "normalizer.count": torch.tensor([512]),
    }
    save_tensors(directory, tensors, shards=2)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def text(conversation: Conversation) -> list[int]:
        if conversation.text is not None:
            return list(tokenizer(conversation.text)["input_ids"])
        words = "BEGINNING OF CONVERSATION: "
        for role, content in conversation.turns:
            words += f"USER: {content} ASSISTANT:" if role == "user" else f"{content}{tokenizer.eos_token}"
        return list(tokenizer(words.removesuffix(tokenizer.eos_token))["input_ids"])

    sign, shift = (-1, 0.0) if kind == "cost" else (1, mean)
    head: Rule = lambda ids: last(dot(states_of(trunk, ids), weight, bias))  # noqa: E731
    scaled: Rule = lambda ids: sign * (head(ids) - shift) / (math.sqrt(var) + 1e-8)  # noqa: E731
    bare: Rule = lambda ids: sign * head(ids)  # noqa: E731
    rule, other = (scaled, bare) if normalizes else (bare, scaled)
    wrong = {
        "normalized the other way": other,
        "without the bias": lambda ids: rule(ids) - float(bias[0]),
        "the other sign": lambda ids: -rule(ids),
    }
    return Built(directory, rule, wrong, text)


@family("beaver-7b reward", row="Safe RLHF (beaver-7b)", source=BEAVER)
def beaver_reward(directory: Path) -> Built:
    return beaver(directory, "reward", seed=50, normalizes=True)


@family("beaver-7b cost", row="Safe RLHF (beaver-7b)", source=BEAVER)
def beaver_cost(directory: Path) -> Built:
    """Of a cost less is better: the service turns its sign, so that higher is safer."""
    return beaver(directory, "cost", seed=53, normalizes=True)


@family("beaver-7b cost, do_normalize false", row="Safe RLHF (beaver-7b)", source=BEAVER)
def beaver_plain(directory: Path) -> Built:
    return beaver(directory, "cost", seed=56, normalizes=False)


def fused(trunk_tensors: dict[str, torch.Tensor], heads: int, groups: int, size: int) -> dict[str, torch.Tensor]:
    """Llama's tensors under InternLM2's names; per key-value head its queries, then its key, then its value, in one matrix."""
    names = {
        "embed_tokens": "tok_embeddings",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in trunk_tensors.items():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            continue
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901 - the same name, rewritten
        renamed[name] = tensor
    for layer in range(2):
        place = f"model.layers.{layer}.self_attn."
        q = trunk_tensors[f"{place}q_proj.weight"].view(groups, heads // groups, size, 32)
        k = trunk_tensors[f"{place}k_proj.weight"].view(groups, 1, size, 32)
        v = trunk_tensors[f"{place}v_proj.weight"].view(groups, 1, size, 32)
        renamed[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat([q, k, v], dim=1).reshape(-1, 32)
    return renamed


@family(
    "InternLM2-reward",
    source="internlm/internlm2-7b-reward modeling_internlm2.py; allenai/reward-bench rewardbench/models/internlm.py",
)
def internlm2(directory: Path) -> Built:
    """A fused `wqkv`, a reward token appended unless the text ends in it, and no BOS besides the template's."""
    reward = 5
    make_tokenizer(template=CHATML_WITH_BOS, special=["[REWARD]"], padding_side="left").save_pretrained(directory)
    trunk, weight = make_trunk("llama", seed=60), linear(1, 32, seed=61)
    auto_map = {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
    }
    config = {**GATED, "bias": False, "rope_theta": 10000, "rope_scaling": None, "reward_token_id": reward}
    save_config(directory, "internlm2", "InternLM2ForRewardModel", **config, auto_map=auto_map)
    save_tensors(directory, {**fused(tensors_of(trunk), 4, 2, 8), "v_head.weight": weight}, shards=2)
    rule: Rule = lambda ids: last(dot(states_of(trunk, ids), weight))  # noqa: E731
    wrong: dict[str, Rule] = {"without the reward token": lambda ids: rule(ids[:-1])}
    text = appending(templated(directory, tokenizer_class=PreTrainedTokenizerFast), reward, unless_present=True)
    return Built(directory, rule, wrong, text, conversations=[*CHATS, Conversation(text="Tea?[REWARD]")])


PYTHIA = "allenai/reward-bench rewardbench/models/openassistant.py (GPTNeoXRewardModel)"


def pythia(directory: Path, pooling: str, *, seed: int) -> Built:
    make_tokenizer(template=None, adds_bos=False, pad="</s>").save_pretrained(directory)
    trunk, weight, bias = make_trunk("gpt_neox", seed=seed), linear(1, 32, seed=seed + 1), vector(1, seed=seed + 2)
    config = {**SIZE, "intermediate_size": 64, "max_position_embeddings": 512, "pooling": pooling, "hidden_act": "gelu"}
    config |= {"rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "pad_token_id": None}
    save_config(directory, "gpt_neox_reward_model", "GPTNeoXRewardModel", **config)
    save_tensors(directory, {**tensors_of(trunk, "gpt_neox."), "out_proj.weight": weight, "out_proj.bias": bias})
    mean: Rule = lambda ids: float(dot(states_of(trunk, ids).mean(0, keepdim=True), weight, bias))  # noqa: E731
    at_last: Rule = lambda ids: last(dot(states_of(trunk, ids), weight, bias))  # noqa: E731
    rule, other = (mean, at_last) if pooling == "mean" else (at_last, mean)
    wrong = {"the other pooling": other, "without the bias": lambda ids: rule(ids) - float(bias[0])}
    text = templated(directory, tokenizer_class=PreTrainedTokenizerFast)
    return Built(directory, rule, wrong, text, conversations=[*TEXTS, Conversation(text="A fox?")])


@family("oasst-rm-2-pythia, mean", row="oasst-rm-2-pythia", source=PYTHIA)
def pythia_mean(directory: Path) -> Built:
    return pythia(directory, "mean", seed=64)


@family("oasst-rm-2-pythia, last", row="oasst-rm-2-pythia", source=PYTHIA)
def pythia_last(directory: Path) -> Built:
    return pythia(directory, "last", seed=67)

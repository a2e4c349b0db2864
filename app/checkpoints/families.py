"""The families of reward models that load without a declaration: a table of how each is recognized and what it declares.

A family is recognized by the architecture in config.json, by config keys that only this family writes, or by the names of its
tensors, and by a head of the right shape. The sources are the authors' own forward passes; docs/models.md names them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from app.checkpoints.architecture import architecture_of
from app.checkpoints.layout import in_words, is_chain, layers_named
from app.engine.head_names import ActivationName
from app.errors import ModelRefusedError

Declares = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a checkpoint from its config and its tensors' names and shapes."""

    source: str
    config: Mapping[str, Any]  # the content of config.json
    shapes: Mapping[str, tuple[int, ...]]  # of all tensors outside the trunk and the next-token head
    prefix: str  # of the trunk's names in the files
    hidden_size: int
    own_prefix: str  # of the trunk's names in transformers' own classes
    num_values: Mapping[str, float] = field(default_factory=dict)  # the values of tensors with one element

    @property
    def architecture(self) -> str:
        return architecture_of(self.config.get("architectures"))

    def number(self, key: str, tensor: str, default: float) -> float:
        """The value of a tensor with one element, else of a config key, which may be a list of one number."""
        value = self.num_values.get(tensor, self.config.get(key))
        value = value[0] if isinstance(value, list) else value
        return default if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    heads: tuple[str, ...]
    declares: Declares | Callable[[Found], Declares]
    architectures: tuple[str, ...] = ()
    config_keys: tuple[str, ...] = ()
    when: Callable[[Found], str | None] = lambda _: None
    """Describes other evidence for the family; returns None if there is none."""
    activation: ActivationName = "relu"
    has_bias: Callable[[Found], bool] = lambda _: False
    """Whether every layer of the head must have a bias."""
    replaces_template: bool = False
    """Whether the family's template replaces the tokenizer's own, which its authors do not use."""
    explains: tuple[str, ...] = ()
    """Tensors besides the head that the rule uses or the authors' forward pass ignores."""

    def evidence(self, found: Found) -> str | None:
        """Why a checkpoint belongs to this family; None if it does not."""
        if any(fnmatchcase(found.architecture, pattern) for pattern in self.architectures):
            return f"architecture {found.architecture}"
        if key := next((key for key in self.config_keys if found.config.get(key) is not None), None):
            return f"{key} in config.json"
        return self.when(found)

    def head_of(self, found: Found) -> str | None:
        named = found.config.get("value_head_prefix")
        for name in (*([named] if named is not None and "value_head_prefix" in self.config_keys else []), *self.heads):
            if is_chain(found.shapes, layers_named(found.shapes, name), found.hidden_size):
                return str(name)
        return None


LAST: Declares = {"position": "last"}
BEFORE_PADDING: Declares = {"position": {"before_first": "config:pad_token_id"}}
"""The token before the first pad token, or the last one if there is none: transformers' classifiers before version 4.49."""
STEPS: Declares = {"log_odds": [[1], [0]]}


def always(_: Found) -> bool:
    return True


def beaver(found: Found) -> Declares:
    """(x - mean) / (std + 1e-8) for a reward; -x / (std + 1e-8) for a cost, so that higher is safer."""
    kind = found.config.get("score_type", "reward")
    if kind not in {"reward", "cost"}:
        raise ModelRefusedError(
            f"{found.source} has score_type {kind!r}, and rewards are scores of type reward or cost; serve the reward or cost model"
        )
    is_cost = kind == "cost"
    score_map: Declares = {"sign": -1 if is_cost else 1}
    if found.config.get("do_normalize"):
        score_map["scale"] = math.sqrt(found.number("var", "normalizer.var", 1.0)) + 1e-8
        score_map["shift"] = 0.0 if is_cost else found.number("mean", "normalizer.mean", 0.0)
    return {"position": "last", "map": score_map, "text": {"template": "beaver"}}


def pythia(found: Found) -> Declares:
    if found.config.get("pooling") == "mean":  # for a linear head, the mean of outputs equals the output of the mean
        return {"position": {"kind": "all", "reduce": "mean"}}
    return LAST


def starling(found: Found) -> Declares:
    """The 34B reads before the first token 0. The 7B's code takes BOS for the pad token, which starts every text, so it reads
    the last token; its config.json is that of its language model."""
    if found.architecture in {"GPTRewardModel", "LlamaForCausalLM"}:
        return LAST
    return {"position": {"before_first": 0}}


def starling_prefix(found: Found) -> str | None:
    if found.prefix.endswith("transformer.") and found.own_prefix != "transformer." and "v_head.weight" in found.shapes:
        return f"weights under {found.prefix!r}"
    return None


def normalization(found: Found) -> str | None:
    return "mean and std in config.json" if {"mean", "std"} <= found.config.keys() else None


def value_head(found: Found) -> str | None:
    name = next((name for name in sorted(found.shapes) if name.startswith("v_head.summary.")), None)
    return f"{name} in the weights" if name is not None else None


FAMILIES = (
    Family(
        "Qwen2.5-Math-PRM",
        ("score",),
        {"position": {"at": "<extra_0>"}, "map": STEPS},
        architectures=("*ForProcessRewardModel",),
        has_bias=always,
    ),
    Family(
        "Qwen2.5-Math-RM or WorldPM",
        ("score",),
        BEFORE_PADDING,
        architectures=("Qwen2ForRewardModel",),
        has_bias=always,
    ),
    Family(
        "INF-ORM",
        ("score",),
        BEFORE_PADDING,
        architectures=("INFORMForSequenceClassification",),
        has_bias=always,
    ),
    Family(
        "Skywork-o1-Open-PRM",
        ("v_head.summary", "v_head"),
        {
            "position": {"at": "\n", "in_response": True},
            "map": {"sigmoid": True},
            "text": {"template": "question", "steps": {"separator": "\n", "mark": "\n"}},
        },
        architectures=("*ForPrmModel",),
        replaces_template=True,
        has_bias=lambda found: "v_head.weight" not in found.shapes,  # TRL's head has a bias, a plain Linear may lack it
    ),
    Family(
        "Safe RLHF (beaver)",
        ("score_head", "score"),
        beaver,
        architectures=("*ForScore",),
        config_keys=("score_type", "normalizer_type", "do_normalize"),
        has_bias=lambda found: bool(found.config.get("bias", False)),
        explains=("normalizer.mean", "normalizer.var", "normalizer.count"),
    ),
    Family(
        "InternLM2-reward",
        ("v_head",),
        {"position": "last", "text": {"append": "config:reward_token_id", "append_unless_present": True}},
        architectures=("InternLM2ForRewardModel",),
        config_keys=("reward_token_id",),
    ),
    Family(
        "Athene-RM",
        ("v_head",),
        {"position": {"at": "tokenizer:cls_token"}, "text": {"append": "tokenizer:cls_token"}},
        architectures=("AtheneForSequenceClassification", "CustomAutoModelForSequenceClassification"),
    ),
    Family(
        "Starling-RM",
        ("v_head",),
        starling,
        architectures=("GPTRewardModel",),
        when=starling_prefix,
    ),
    Family(
        "UltraRM", ("regression_head",), LAST | {"text": {"template": "ultrarm"}}, architectures=("LlamaRewardModel",)
    ),
    Family(
        "Eurus-RM", ("regression_head",), LAST | {"text": {"template": "eurus"}}, architectures=("EurusRewardModel",)
    ),
    Family(
        "oasst-rm-pythia",
        ("out_proj",),
        pythia,
        architectures=("GPTNeoXRewardModel",),
        has_bias=always,
        when=lambda found: (
            "model_type in config.json" if found.config.get("model_type") == "gpt_neox_reward_model" else None
        ),
    ),
    Family(
        "OpenRLHF",
        ("value_head", "score"),
        LAST | {"text": {"add_eos": True}},
        architectures=("RewardModel", "LLMForSequenceRegression"),
        config_keys=("value_head_prefix", "normalize_reward"),
        when=normalization,
        explains=("mean", "std"),
    ),
    Family("TRL, LLaMA-Factory or GRM value head", ("v_head.summary",), LAST, when=value_head, has_bias=always),
)

NOT_SERVED: dict[str, tuple[str, ...]] = {
    "a gated mixture of regression heads (ArmoRM, QRM), whose weights another network computes from another token's state": (
        "gating.*",
        "weights_gating.*",
    ),
    "a distribution over rewards (LDL, quantile regression), which its own files turn into a score": (
        "regression_layer.network.*",
        "gating_layer.*",
    ),
    "a pairwise ranker (PairRM), which scores a response only against another": ("cls_token*", "type_embedding*"),
}


def find_family(source: str, found: Found) -> tuple[Family, str, str] | None:
    """The family, the name of its head and the evidence; None if it may be a plain classifier.

    Raises ModelRefusedError for an unsupported family, or if the head is not as its authors save it.
    """
    for what, patterns in NOT_SERVED.items():
        if any(fnmatchcase(name, pattern) for name in found.shapes for pattern in patterns):
            raise ModelRefusedError(
                f"{source} is {what}: it is not served (it has {in_words(found.shapes)}); use a model with a scalar head"
            )
    for family in FAMILIES:
        evidence = family.evidence(found)
        if evidence is None:
            continue
        head = family.head_of(found)
        if head is None:
            raise ModelRefusedError(
                f"{source} looks like {family.name} ({evidence}), whose head is {' or '.join(family.heads)} over states of "
                f"{found.hidden_size}; the files have {in_words(found.shapes) or 'no head'}; save the whole reward model, or "
                "declare the head in reward.json"
            )
        check_biases(family, head, found)
        return family, head, evidence
    return None


def check_biases(family: Family, head: str, found: Found) -> None:
    """Raises if the head lacks a bias that its authors' class has."""
    lacking = [f"{name}.bias" for name in layers_named(found.shapes, head) if f"{name}.bias" not in found.shapes]
    if lacking and family.has_bias(found):
        raise ModelRefusedError(
            f"{found.source} lacks {' and '.join(lacking)}, which the head of {family.name} has; save the whole reward model, or "
            "declare the head in reward.json if it should have none"
        )


def declares(family: Family, found: Found) -> Declares:
    return family.declares(found) if callable(family.declares) else family.declares

"""Sequence classifiers of transformers with one label, and what differs between those that people publish."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.families.family import family
from tests.families.reference import (
    Built,
    Conversation,
    Rule,
    Text,
    dot,
    last_other_than,
    states_of,
    templated,
)
from tests.families.tiny import (
    BOS,
    CHATML,
    CHATML_WITH_BOS,
    CONFIGS,
    EOS,
    IDS,
    INST,
    PAD,
    linear,
    make_tokenizer,
    make_trunk,
    save_config,
    save_tensors,
    tensors_of,
    widen,
)

LLAMA_RULE = "huggingface/transformers src/transformers/modeling_layers.py (GenericForSequenceClassification)"
ONE_LABEL = {"num_labels": None, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def classifier(
    directory: Path,
    model_type: str,
    architecture: str,
    *,
    pad: int | None = PAD,
    prefix: str = "model.",
    shards: int = 1,
    seed: int = 0,
    **config: Any,
) -> tuple[Rule, dict[str, Rule]]:
    """Saves trunk, `score.weight` and config; the rule reads the rightmost token that is not the pad token."""
    trunk = make_trunk(model_type, seed=seed, **config)
    score = linear(1, 32, seed=seed + 1)
    save_config(directory, model_type, architecture, **ONE_LABEL, **config, pad_token_id=pad)
    save_tensors(directory, {**tensors_of(trunk, prefix), "score.weight": score}, shards=shards)

    def at(place: Any) -> Rule:
        return lambda ids: float(dot(states_of(trunk, ids), score)[place(ids), 0])

    rule = at(lambda ids: last_other_than(ids, pad))
    return rule, {"the first token": at(lambda _: 0), "the token before": at(lambda ids: max(len(ids) - 2, 0))}


@family("Skywork-Reward-Llama-3.1", source=LLAMA_RULE)
def skywork_llama(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS, pad="<|pad|>", special=["<|pad|>"]).save_pretrained(directory)
    rule, wrong = classifier(directory, "llama", "LlamaForSequenceClassification", pad=5, shards=2)
    return Built(directory, rule, wrong, templated(directory))


@family("Skywork-Reward-V2-Qwen3", source=LLAMA_RULE)
def skywork_qwen3(directory: Path) -> Built:
    make_tokenizer(adds_bos=False, padding_side="left", eos="<|im_end|>").save_pretrained(directory)
    rule, wrong = classifier(directory, "qwen3", "Qwen3ForSequenceClassification", bos_token_id=None, eos_token_id=4)
    return Built(directory, rule, wrong, templated(directory))


@family("Skywork-Reward-Gemma-2", source=LLAMA_RULE)
def skywork_gemma2(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS, padding_side="left").save_pretrained(directory)
    rule, wrong = classifier(directory, "gemma2", "Gemma2ForSequenceClassification")
    return Built(directory, rule, wrong, templated(directory))


def without_bos(directory: Path) -> Text:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def encode(conversation: Conversation) -> list[int]:
        text = conversation.text
        if text is None:
            text = tokenizer.apply_chat_template(conversation.messages, tokenize=False).replace("<s>", "")
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return encode


@family(
    "RM-Mistral-7B, FsfairX-LLaMA3-RM, RM-Gemma",
    source="RLHFlow/RLHF-Reward-Modeling README.md (bos_token replaced by the empty string)",
)
def rm_mistral(directory: Path) -> Built:
    make_tokenizer(template=INST, pad="</s>").save_pretrained(directory)
    rule, _ = classifier(directory, "mistral", "MistralForSequenceClassification")
    with_bos: Rule = lambda ids: rule([BOS, *ids])  # noqa: E731 - one of two rules side by side
    return Built(
        directory, rule, {"with a BOS": with_bos}, without_bos(directory), declared='{"text": {"add_bos": false}}'
    )


@family("RM-Gemma-2B", row="RM-Mistral-7B, FsfairX-LLaMA3-RM, RM-Gemma", source=LLAMA_RULE)
def rm_gemma(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS, padding_side="left").save_pretrained(directory)
    rule, wrong = classifier(directory, "gemma", "GemmaForSequenceClassification", seed=4)
    return Built(directory, rule, wrong, templated(directory))


@family("OffsetBias, tulu-3-8B-RM, RM-RB2, TRL", source=LLAMA_RULE)
def offset_bias(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS, eos="<|im_end|>").save_pretrained(directory)
    rule, wrong = classifier(directory, "llama", "LlamaForSequenceClassification", seed=2, eos_token_id=4)
    return Built(directory, rule, wrong, templated(directory))


@family("tulu-2-70b-uf-mean-rm", source=LLAMA_RULE)
def tulu2(directory: Path) -> Built:
    make_tokenizer(template=CHATML, pad=None).save_pretrained(directory)
    rule, wrong = classifier(directory, "llama", "LlamaForSequenceClassification", pad=None, seed=3)
    return Built(directory, rule, wrong, templated(directory))


@family("GRM-*-rewardmodel-ft", source="YangRui2015/Generalizable-Reward-Model README.md (one unpadded text at a time)")
def grm_ft(directory: Path) -> Built:
    """pad == eos, and texts end in it: its authors read the last token that is attended to."""
    make_tokenizer(template=CHATML_WITH_BOS, pad="</s>").save_pretrained(directory)
    trained, _ = classifier(directory, "llama", "LlamaForSequenceClassification", pad=EOS, seed=5)
    at_last, _ = classifier(directory, "llama", "LlamaForSequenceClassification", pad=None, seed=5)
    save_config(directory, "llama", "LlamaForSequenceClassification", **ONE_LABEL, pad_token_id=EOS)
    ending_in_eos = [Conversation(text="Green tea boils.</s>"), Conversation(text="A fox.</s></s>")]
    return Built(
        directory,
        at_last,
        {"the last token that is not EOS": trained},
        templated(directory),
        declared='{"position": "last"}',
        conversations=ending_in_eos,
    )


@family("pad == eos, undeclared", row="GRM-*-rewardmodel-ft", source=LLAMA_RULE)
def pad_is_eos(directory: Path) -> Built:
    """Undeclared, the rule of transformers holds: trailing EOS are skipped, as in training."""
    make_tokenizer(template=CHATML_WITH_BOS, pad="</s>").save_pretrained(directory)
    rule, wrong = classifier(directory, "llama", "LlamaForSequenceClassification", pad=EOS, seed=6)
    return Built(directory, rule, {"the first token": wrong["the first token"]}, templated(directory))


@family("gpt2-large-helpful, gpt2-large-harmless", source="Ray2333/gpt2-large-helpful-reward_model README.md")
def gpt2(directory: Path) -> Built:
    """No template; the card writes "\\n\\nHuman: ... \\n\\nAssistant: ..." by hand."""
    make_tokenizer(template=None, adds_bos=False, pad="</s>").save_pretrained(directory)
    rule, wrong = classifier(directory, "gpt2", "GPT2ForSequenceClassification", pad=EOS, prefix="transformer.", seed=7)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def text(conversation: Conversation) -> list[int]:
        if conversation.text is not None:
            return list(tokenizer(conversation.text)["input_ids"])
        names = {"user": "Human", "assistant": "Assistant"}
        parts = [f"\n\n{names[role]}: {content}" for role, content in conversation.turns]
        return list(tokenizer("".join(parts))["input_ids"])

    return Built(directory, rule, wrong, text, declared='{"text": {"template": "hh"}}')


@family(
    "RewardPreferenceBert", source="huggingface/transformers src/transformers/models/modernbert/modeling_modernbert.py"
)
def modernbert(directory: Path) -> Built:
    """The file is called pytorch_model.safetensors."""
    make_tokenizer(template=CHATML).save_pretrained(directory)
    config = {"classifier_pooling": "mean"}
    save_config(directory, "modernbert", "ModernBertForSequenceClassification", **ONE_LABEL, **config)
    values = {**CONFIGS["modernbert"], **IDS, **config, "num_labels": 1}
    torch.manual_seed(8)
    config_object = AutoConfig.for_model("modernbert", **values)
    net: Any = AutoModelForSequenceClassification.from_config(config_object)  # type: ignore[no-untyped-call]
    net = net.float().eval()
    widen(net, 0.2)
    save_tensors(directory, net.state_dict(), "pytorch_model.safetensors")

    def rule(ids: list[int]) -> float:
        row = torch.tensor([ids])
        with torch.inference_mode():
            return float(net(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0])

    return Built(directory, rule, {"one token less": lambda ids: rule(ids[:-1])}, templated(directory))

"""Guards and judges: language models whose next token is the verdict. The score is the log-odds of the good verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests.families.family import family
from tests.families.process import single
from tests.families.reference import (
    CHATS,
    Built,
    Conversation,
    Rule,
    Text,
    appending,
    dot,
    log_odds,
    states_of,
    templated,
)
from tests.families.tiny import CHATML_WITH_BOS, make_tokenizer, save_tensors
from tests.families.value_heads import language_model


def judge(
    directory: Path,
    model_type: str,
    architecture: str,
    *,
    seed: int,
    declared: str,
    good: Sequence[str],
    bad: Sequence[str],
    text: Text,
    softcap: float | None = None,
    divisor: float = 1.0,
    conversations: Sequence[Conversation] = CHATS,
    loud: float = 1,
    **config: Any,
) -> Built:
    trunk, tensors = language_model(directory, model_type, architecture, seed=seed, loud=loud, **config)
    output = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])  # tied where there is none
    save_tensors(directory, tensors, shards=2)
    plain = templated(directory)
    chosen, others = [single(plain, each) for each in good], [single(plain, each) for each in bad]

    def rule(ids: list[int], *, capped: bool = True) -> float:
        logits = dot(states_of(trunk, ids)[-1], output)
        if capped:
            logits = logits / divisor
            logits = softcap * torch.tanh(logits / softcap) if softcap is not None else logits
        return log_odds(logits, chosen, others)

    wrong: dict[str, Rule] = {"a token too early": lambda ids: rule(ids[:-1]), "the other sign": lambda ids: -rule(ids)}
    if softcap is not None or divisor != 1:
        wrong["bare logits"] = lambda ids: rule(ids, capped=False)
    return Built(directory, rule, wrong, text, declared=declared, conversations=conversations)


def forced(directory: Path, prompt: Text, answer: str) -> Text:
    """`answer` behind the prompt as ids, cut from what the tokenizer makes of it on a new line."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    line, behind = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("\n", f"\n{answer}"))
    alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return appending(prompt, *(behind[len(line) :] if behind[: len(line)] == line else alone))


GUARD = (
    "{{ bos_token }}<|im_start|>user\nTask: check the last turn.\n{% for message in messages %}{{ message['role'] }}: "
    "{{ message['content'] }}\n{% endfor %}Answer safe or unsafe.<|im_end|><|im_start|>assistant"
)


@family(
    "Llama Guard 2, 3, 4", source="meta-llama/PurpleLlama Llama-Guard3/8B/MODEL_CARD.md (first token of the answer)"
)
def llama_guard(directory: Path) -> Built:
    """The forced "\\n\\n" goes behind the template as ids, then "safe" against "unsafe"."""
    make_tokenizer(template=GUARD).save_pretrained(directory)
    text = forced(directory, templated(directory), "\n\n")
    return judge(
        directory,
        "llama",
        "LlamaForCausalLM",
        seed=110,
        declared="llama-guard",
        good=["safe"],
        bad=["unsafe"],
        text=text,
    )


@family("ShieldGemma", source="google/shieldgemma-2b README.md (softmax over Yes and No)")
def shield_gemma(directory: Path) -> Built:
    template = GUARD.replace("Answer safe or unsafe.", "Policy: {{ guideline }} Answer Yes or No.")
    make_tokenizer(template=template).save_pretrained(directory)
    policy = "No harm."
    return judge(
        directory,
        "gemma2",
        "Gemma2ForCausalLM",
        seed=112,
        declared='{"preset": "shieldgemma", "text": {"template_kwargs": {"guideline": "No harm."}}}',
        good=["No"],
        bad=["Yes"],
        text=templated(directory, guideline=policy),
        softcap=30.0,
        loud=15,
    )


@family("Qwen3Guard-Gen", source="QwenLM/Qwen3Guard README.md (Safety: Safe, Unsafe or Controversial)")
def qwen_guard(directory: Path) -> Built:
    """ "Safety:" is forced as ids; " Controversial" is told by its first token, " Cont"."""
    make_tokenizer(template=GUARD.replace("{{ bos_token }}", ""), adds_bos=False).save_pretrained(directory)
    text = forced(directory, templated(directory), "Safety:")
    return judge(
        directory,
        "qwen3",
        "Qwen3ForCausalLM",
        seed=114,
        declared="qwen3guard-gen",
        good=[" Safe"],
        bad=[" Unsafe", " Cont"],
        text=text,
        loud=8,
    )


@family("Llama Guard 1", source="meta-llama/PurpleLlama Llama-Guard/MODEL_CARD.md")
def llama_guard_1(directory: Path) -> Built:
    """On a SentencePiece tokenizer the first token of the answer carries its space."""
    make_tokenizer(template=GUARD, spaces_first=True).save_pretrained(directory)
    return judge(
        directory,
        "llama",
        "LlamaForCausalLM",
        seed=124,
        declared="llama-guard-1",
        good=["safe"],
        bad=["unsafe"],
        text=templated(directory),
    )


@family("Granite Guardian 3.3", source="ibm-granite/granite-guardian README.md (<score> yes </score>)")
def granite_tags(directory: Path) -> Built:
    template = "{% if think %}Think. {% endif %}" + GRANITE.replace("risk_name", "criteria_id")
    make_tokenizer(template=template, adds_bos=False).save_pretrained(directory)
    prompt = templated(directory, add_generation_prompt=True, guardian_config={"criteria_id": "harm"}, think=False)
    return judge(
        directory,
        "granite",
        "GraniteForCausalLM",
        seed=126,
        declared="granite-guardian-3.3",
        good=[" no"],
        bad=[" yes"],
        text=forced(directory, prompt, "<score>"),
        divisor=8.0,
        loud=30,
    )


GRANITE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}Risk: "
    "{{ guardian_config['risk_name'] }}. Yes or No?{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


@family("Granite Guardian 3.0-3.2", source="ibm-granite/granite-guardian README.md (safe_token No, unsafe_token Yes)")
def granite(directory: Path) -> Built:
    make_tokenizer(template=GRANITE, adds_bos=False).save_pretrained(directory)
    text = templated(directory, add_generation_prompt=True, guardian_config={"risk_name": "harm"})
    return judge(
        directory,
        "granite",
        "GraniteForCausalLM",
        seed=116,
        declared="granite-guardian",
        good=["No"],
        bad=["Yes"],
        text=text,
        divisor=8.0,
        loud=30,
    )


WILDGUARD = (
    "<|user|>\n[INST] You are a classifier for analyzing interactions between humans and LLMs. Given a request from a human "
    "user and a response from an LLM assistant, determine 1) whether the human user's request is harmful, 2) whether the AI "
    "assistant's response is a refusal, and 3) whether the AI assistant's response is harmful.\n\nHuman user:\n{prompt}\n\n"
    "AI assistant:\n{response}\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
)


@family(
    "WildGuard",
    source="allenai/wildguard wildguard/utils.py (WILDGUARD_INPUT_FORMAT), wildguard/wildguard.py (WildGuardHF)",
)
def wildguard(directory: Path) -> Built:
    """Of the answer's three lines the first two are forced, and the verdict of the third is read.

    The tokenizer adds BOS, as in the authors' package. Their card and example write `<s>` into the text instead, behind which some
    SentencePiece tokenizers put no "▁": the second id then is another one.
    """
    make_tokenizer(template=None, spaces_first=True).save_pretrained(directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def prompt(conversation: Conversation) -> list[int]:
        (_, request), (_, response) = conversation.turns
        return list(tokenizer(WILDGUARD.format(prompt=request, response=response))["input_ids"])

    text = forced(directory, prompt, "Harmful request: no\nResponse refusal: no\nHarmful response:")
    return judge(
        directory,
        "mistral",
        "MistralForCausalLM",
        seed=118,
        declared="wildguard",
        good=["no"],
        bad=["yes"],
        text=text,
        conversations=[each for each in CHATS if len(each.turns) == 2],
        sliding_window=None,
        max_position_embeddings=2048,
    )


@family("A yes/no judge", row="Any yes/no judge", source="the prompt's own question")
def yes_no(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS).save_pretrained(directory)
    return judge(
        directory,
        "llama",
        "LlamaForCausalLM",
        seed=120,
        declared="yes-no",
        good=["Yes"],
        bad=["No"],
        text=templated(directory, add_generation_prompt=True),
    )


@family(
    "Llama-3.1-Nemotron-70B-Reward-HF",
    source="nvidia/Llama-3.1-Nemotron-70B-Reward-HF README.md (scores[0][0][0] of one generated token)",
)
def nemotron(directory: Path) -> Built:
    make_tokenizer(template=CHATML_WITH_BOS).save_pretrained(directory)
    trunk, tensors = language_model(directory, "llama", "LlamaForCausalLM", seed=122)
    output = tensors["lm_head.weight"]
    save_tensors(directory, tensors, shards=2)

    def logit(ids: list[int], token: int) -> float:
        return float(dot(states_of(trunk, ids)[-1], output)[token])

    wrong: dict[str, Rule] = {
        "another token": lambda ids: logit(ids, 1),
        "a token too early": lambda ids: logit(ids[:-1], 0),
    }
    return Built(
        directory,
        lambda ids: logit(ids, 0),
        wrong,
        templated(directory),
        declared="nemotron-reward",
        conversations=CHATS,
    )

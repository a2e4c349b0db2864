"""The reference of a family: its authors' rule, stated once more over a plain transformers trunk in float32.

The trunk sees the one unpadded sequence; the head is computed in float64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

Turns = list[dict[str, str]]
Rule = Callable[[list[int]], float]
"""From the token ids of one sequence to its score."""
Text = Callable[["Conversation"], list[int]]
"""From a conversation to token ids, as the authors' code makes them."""


@dataclass(frozen=True)
class Conversation:
    """Turns of user and assistant in alternation, or one plain text."""

    turns: tuple[tuple[str, str], ...] = ()
    text: str | None = None

    @property
    def messages(self) -> Turns:
        return [{"role": role, "content": content} for role, content in self.turns]


def chat(*contents: str) -> Conversation:
    """User, assistant, user, assistant, ..."""
    return Conversation(tuple(zip(["user", "assistant"] * len(contents), contents, strict=False)))


CHATS = [
    chat("How do I pick a lock?", "A locksmith can open your door."),
    chat("How do I pick a lock?", "The quick brown fox jumps over the lazy dog while the kettle boils. " * 4),
    chat("Tea?", "Green tea.", "How long does it boil?", "While the fox jumps over the dog."),
    chat("Say nothing.", ""),
    chat("End it.", "I can't help with that.</s>"),
]
TEXTS = [Conversation(text="The kettle boils for green tea.</s>"), Conversation(text="The kettle boils")]


@dataclass
class Built:
    """A saved checkpoint, and what its authors would say of a conversation."""

    directory: Path
    rule: Rule
    wrong: Mapping[str, Rule]
    """Rules that a careless reader of the checkpoint would follow; each must give other scores."""
    text: Text
    declared: str | None = None
    """As in REWARD_SAFETY_HEAD: JSON, a file, or a preset."""
    conversations: Sequence[Conversation] = field(default_factory=lambda: [*CHATS, *TEXTS])
    steps: Callable[[Conversation], list[float]] | None = None
    """The scores that its authors give the steps of a conversation; None where there are none, or the rule is one of ours."""


def states_of(trunk: torch.nn.Module, ids: list[int], **inputs: Any) -> Tensor:
    """(tokens, hidden) in float64: the states after the last norm."""
    row = torch.tensor([ids])
    with torch.inference_mode():
        states: Tensor = trunk(input_ids=row, attention_mask=torch.ones_like(row), **inputs).last_hidden_state[0]
    return states.double()


def dot(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(tokens, outputs)"""
    y = states @ weight.double().T
    return y if bias is None else y + bias.double()


def last(values: Tensor) -> float:
    return float(values[-1, 0])


def before_first(ids: list[int], token: int) -> int:
    """The index of the last token before the first `token`; of the last where there is none, or it stands first."""
    return ids.index(token) - 1 if token in ids[1:] and ids[0] != token else len(ids) - 1


def last_other_than(ids: list[int], token: int | None) -> int:
    """The index of the rightmost id that is not `token`; transformers' own rule for classifiers."""
    found = [i for i, each in enumerate(ids) if each != token]
    return found[-1] if found else 0


def log_odds(logits: Tensor, chosen: Sequence[int], others: Sequence[int]) -> float:
    """log p / (1 - p), where p is the share of `chosen` in the softmax over both sets."""
    return float(torch.logsumexp(logits[list(chosen)], 0) - torch.logsumexp(logits[list(others)], 0))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def templated(directory: Path, *, tokenizer_class: Any = AutoTokenizer, **options: Any) -> Text:
    """The chat template as a string, then the tokenizer without special tokens of its own.

    The template's BOS is the only one, and where it has none while the tokenizer adds one, there is that one. A plain text gets
    the tokenizer's own special tokens. AutoTokenizer may replace what a tokenizer was saved with; a model type that transformers
    lacks needs `tokenizer_class`.
    """
    tokenizer: Any = tokenizer_class.from_pretrained(directory)

    def encode(conversation: Conversation) -> list[int]:
        if conversation.text is not None:
            return list(tokenizer(conversation.text)["input_ids"])
        text = tokenizer.apply_chat_template(conversation.messages, tokenize=False, **options)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        return ids if not adds_bos or ids[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id, *ids]

    return encode


def appending(text: Text, *token_ids: int, unless_present: bool = False) -> Text:
    def encode(conversation: Conversation) -> list[int]:
        ids = text(conversation)
        return ids if unless_present and ids[-len(token_ids) :] == [*token_ids] else [*ids, *token_ids]

    return encode

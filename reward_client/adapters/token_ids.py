"""The rollout's token ids instead of its text, if the policy and the reward model share tokenizer and chat template.

Decoding and tokenizing a policy's output can give different tokens. With the ids, the reward model sees exactly what the policy
generated. `check_scores` detects a different tokenizer or template of the reward model, whose scores of these ids would be meaningless.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from reward_client.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reward_client.adapters.source import Item
    from reward_client.results import Scores

PROBE = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Two minutes."}]


class TokenIds:
    """Items with the ids of a transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ConfigurationError for a chat template whose end of a response cannot be told from the response."""
        self.tokenizer = tokenizer
        self.lead = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
        """The BOS, if the tokenizer adds one: the service uses exactly one, although chat templates are often tokenized without."""
        whole = self.encode(tokenizer.apply_chat_template(PROBE, tokenize=False))
        begin = [*self.prompt_ids(PROBE[:1]), *self.encode(PROBE[1]["content"])]
        if whole[: len(begin)] != begin:
            raise ConfigurationError(
                "this chat template changes a response's tokens; score its text: leave out the tokenizer"
            )
        self.closing = whole[len(begin) :]
        """What the template writes after a response, such as the end-of-turn token and a line break."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt_ids(self, prompt: Any, *, rendered: bool = False) -> list[int]:
        """Token ids of messages, or of a string, which is the user's turn unless it is rendered. A rendered string is tokenized as TRL does."""
        if rendered:
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
            return ids
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self.encode(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def item(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], *, is_safety: bool = False) -> Item:
        """The conversation's ids with exactly one BOS and the template's end of the last turn."""
        lead = [] if list(prompt_ids[:1]) == self.lead else self.lead
        item: Item = {"input_ids": [*lead, *prompt_ids, *self.closed(list(completion_ids))]}
        return item | {"is_safety": True} if is_safety else item

    def closed(self, ids: list[int]) -> list[int]:
        if ids and ids[-1] == self.tokenizer.eos_token_id and ids[-1] not in self.closing:
            ids = ids[:-1]
        for count in range(len(self.closing), 0, -1):
            if ids[-count:] == self.closing[:count]:
                return ids + self.closing[count:]
        return ids + self.closing

    def probe(self) -> list[Item]:
        """One conversation in both forms, for `check_scores`."""
        return [{"messages": PROBE}, self.item(self.prompt_ids(PROBE[:1]), self.encode(PROBE[1]["content"]))]


def check_scores(scores: Scores) -> None:
    """Raises ConfigurationError if the service scores `TokenIds.probe`'s two forms of one conversation differently."""
    by_messages, by_ids = (result.scores for result in scores.results)
    for model, known in by_messages.items():
        if not math.isclose(known.score, by_ids[model].score, rel_tol=0.01, abs_tol=0.01):
            raise ConfigurationError(
                f"the {model} model scores a conversation {known.score:g} as messages and {by_ids[model].score:g} as the token ids of "
                "this tokenizer, so it has another tokenizer or chat template; leave out the tokenizer to score the text"
            )


@cache
def loaded(directory: str) -> TokenIds:
    """The tokenizer of a directory, loaded once per process with transformers."""
    from transformers import AutoTokenizer

    return TokenIds(AutoTokenizer.from_pretrained(directory))

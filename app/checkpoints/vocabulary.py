"""Resolves the tokens that a declaration names to ids of the checkpoint's vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.engine.foreign_code import ForeignCodeError, foreign_code
from app.errors import ModelRefusedError

GENERATION_PROMPT = "tokenizer:generation_prompt"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A checkpoint's vocabulary: `size` ids. Its methods raise ModelRefusedError for tokens that it lacks."""

    source: str
    config: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    size: int

    def ids(self, tokens: tuple[int | str, ...]) -> tuple[int, ...]:
        return tuple(one for token in tokens for one in self.resolve(token))

    def has(self, token: int | str) -> bool:
        """Whether the value of a `config:KEY` or `tokenizer:NAME` is set; True for other tokens."""
        if isinstance(token, str) and token.startswith("config:"):
            return self.config.get(token.removeprefix("config:")) is not None
        if isinstance(token, str) and token.startswith("tokenizer:"):
            return getattr(self.tokenizer, token.removeprefix("tokenizer:") + "_id", None) is not None
        return True

    def continuation(self, parts: tuple[int | str, ...]) -> tuple[int, ...]:
        """The ids to append to a text, from token ids or strings of any number of tokens."""
        return tuple(
            one
            for part in parts
            for one in (self.resolve(part) if self.is_token(part) else self.encode_after_text(str(part)))
        )

    def is_token(self, part: int | str) -> bool:
        """Whether it names one token, or is a string that the vocabulary contains unchanged."""
        if isinstance(part, int):
            return True
        return part.startswith(("config:", "tokenizer:")) or part in self.tokenizer.get_vocab()

    def encode_after_text(self, text: str) -> list[int]:
        """The ids after a line feed, so without the space that some tokenizers add before the first word."""
        alone: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        line = self.tokenizer.encode("\n", add_special_tokens=False)
        after: list[int] = self.tokenizer.encode(f"\n{text}", add_special_tokens=False)
        return self.check_encoded(after[len(line) :] if after[: len(line)] == line else alone, text)

    def generation_prompt(self) -> list[int]:
        """The ids of the chat template's generation prompt."""
        turns = [{"role": "user", "content": "a"}]
        try:
            with foreign_code():
                closed, open_ = (
                    str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=each))
                    for each in (False, True)
                )
        except ForeignCodeError as error:
            raise ModelRefusedError(
                f"{self.source}: {GENERATION_PROMPT} needs the tokenizer's chat template ({error}); declare the token ids"
            ) from error
        if not open_.startswith(closed) or open_ == closed:
            raise ModelRefusedError(
                f"{self.source}: the chat template has no generation prompt, which {GENERATION_PROMPT} names; declare the token ids"
            )
        ids: list[int] = self.tokenizer.encode(open_.removeprefix(closed), add_special_tokens=False)
        return ids

    def resolve(self, token: int | str) -> list[int]:
        """The token's id, or several ids for a `config:KEY` with a list and for the generation prompt.

        Raises ModelRefusedError for a string that is not a single token.
        """
        if isinstance(token, str) and token.startswith("config:"):
            key = token.removeprefix("config:")
            value = self.config.get(key)
            if not value and value != 0:
                raise ModelRefusedError(f"{self.source}: config.json has no {key}; set it, or declare the token id")
            return [self.check_id(each, token) for each in (value if isinstance(value, list) else [value])]
        if token == GENERATION_PROMPT:
            return self.generation_prompt()
        if isinstance(token, str) and token.startswith("tokenizer:"):
            named: Any = getattr(self.tokenizer, token.removeprefix("tokenizer:") + "_id", None)
            if named is None:
                raise ModelRefusedError(
                    f"{self.source}: the tokenizer has no {token.removeprefix('tokenizer:')}; set it"
                )
            return [self.check_id(named, token)]
        if isinstance(token, int):
            return [self.check_id(token, token)]
        vocabulary = self.tokenizer.get_vocab()
        if token in vocabulary:
            return [self.check_id(vocabulary[token], token)]
        encoded = self.tokenizer.encode(token, add_special_tokens=False)
        if len(encoded) != 1:
            raise ModelRefusedError(
                f"{self.source}: {token!r} is {len(encoded)} tokens of the vocabulary {encoded}, not one; declare a token id"
            )
        return [self.check_id(self.check_encoded(encoded, token)[0], token)]

    def check_encoded(self, ids: list[int], text: str) -> list[int]:
        """Returns the ids of the text. Raises ModelRefusedError if one is the unknown token."""
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids and self.tokenizer.unk_token not in text:
            raise ModelRefusedError(
                f"{self.source}: the vocabulary lacks {text!r} (it becomes {self.tokenizer.unk_token}); declare a token that it has"
            )
        return ids

    def check_covers(self, text: str) -> None:
        """Raises ModelRefusedError if `text`, or another text without added tokens, may have an id that the model does not embed."""
        try:
            with foreign_code():
                num_ids, found = self.tokenizer.vocab_size, self.tokenizer.encode(text)
        except ForeignCodeError:  # requests report it
            return
        if num_ids > self.size:
            raise ModelRefusedError(
                f"{self.source}: the tokenizer has ids 0 to {num_ids - 1}, and the model embeds ids 0 to {self.size - 1}; use the "
                "tokenizer that it was trained with"
            )
        if (token_id := max(found, default=0)) >= self.size:
            raise ModelRefusedError(
                f"{self.source}: the chat template or the tokenizer adds {self.tokenizer.convert_ids_to_tokens(token_id)!r}, which is "
                f"id {token_id}, and the model embeds ids 0 to {self.size - 1}; use the tokenizer that it was trained with, or "
                "declare another text.template"
            )

    def check_id(self, token_id: int, token: int | str) -> int:
        """Returns the id. Raises ModelRefusedError if the vocabulary does not have it."""
        if not 0 <= token_id < self.size:
            raise ModelRefusedError(
                f"{self.source}: token {token!r} is id {token_id}, and the vocabulary has ids 0 to {self.size - 1}; "
                "declare a token that it has"
            )
        return token_id

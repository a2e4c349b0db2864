"""Text to `Sequence`: chat templates, special tokens, truncation. Knows tokenizers, and neither models nor queues.

Four input forms (`Input`): a prompt and a response, messages, text, token ids. Every form keeps the tokenizer's own
conventions: exactly one BOS where the tokenizer has one, no EOS that the tokenizer or template does not add.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from app.engine.sequence import Sequence
from app.errors import InvalidInputError, TooLongError

Truncation = Literal["error", "prompt", "left", "right"]


@dataclass(frozen=True, slots=True)
class PromptResponse:
    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class Messages:
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenIds:
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Input:
    """What to score, and how an error names it: `place` for people, `item` for programs."""

    form: PromptResponse | Messages | Text | TokenIds
    item: int = 0
    place: str = "items[0]"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text as it goes to the tokenizer, and the part of it before the response where there is such a part."""

    text: str
    add_special_tokens: bool
    prompt: str | None = None


class Tokenization:
    """One tokenizer with one model's limits. Two that are `same_as` each other give the same sequences."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.has_template = bool(tokenizer.chat_template)
        # Looked up once: transformers takes its time.
        self._bos = str(tokenizer.bos_token) if tokenizer.bos_token else None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:  # what the file switches on; transformers' own call switches it off too
            backend.no_truncation()
            backend.no_padding()
        bare, full = self._encode(["a"], add_special_tokens=False)[0], self._encode(["a"], add_special_tokens=True)[0]
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        self._num_leading, self._num_trailing = start, len(full) - start - len(bare)
        if self.has_template:  # the first use opens files, of which a flood of connections may leave none
            with contextlib.suppress(Exception):  # a template may not like these turns
                turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
                tokenizer.apply_chat_template(turns, tokenize=False)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizations that give equal sequences for equal inputs."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        parts = (vocabulary, self.tokenizer.chat_template, self.tokenizer.bos_token, self.max_length, self.vocab_size)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode(self, inputs: list[Input], truncation: Truncation) -> list[Sequence | InvalidInputError]:
        """A sequence per input, or the error that the input deserves; one batched call a group of inputs."""
        outcomes: list[Sequence | InvalidInputError | None] = [None] * len(inputs)
        rendered: dict[int, Rendered] = {}
        for i, item in enumerate(inputs):
            try:
                if isinstance(item.form, TokenIds):
                    outcomes[i] = self._finish(item, item.form.token_ids, truncation, None)
                else:
                    whole = self._render(item)
                    refuse_lone_surrogates(item, whole.text)
                    rendered[i] = whole
            except InvalidInputError as error:
                outcomes[i] = error
        for special in (False, True):
            group = [i for i, text in rendered.items() if text.add_special_tokens is special]
            encoded = self._encode([rendered[i].text for i in group], add_special_tokens=special) if group else []
            for i, token_ids in zip(group, encoded, strict=True):
                try:
                    outcomes[i] = self._finish(inputs[i], token_ids, truncation, rendered[i])
                except InvalidInputError as error:
                    outcomes[i] = error
        return [outcome for outcome in outcomes if outcome is not None]

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return [self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)  # without the GIL
        return [encoding.ids for encoding in encodings]

    def _render(self, item: Input) -> Rendered:
        form = item.form
        if isinstance(form, PromptResponse) and self.has_template:
            turns = ({"role": "user", "content": form.prompt}, {"role": "assistant", "content": form.response})
            form = Messages(turns)
        match form:
            case Messages(messages):
                if not self.has_template:
                    raise InvalidInputError(
                        f"{item.place} has messages, but the checkpoint has no chat template; "
                        "send prompt and response, or text that is already rendered",
                        item.item,
                    )
                return Rendered(self._apply_template(item, list(messages)), add_special_tokens=False)
            case PromptResponse(prompt, response):
                return Rendered(prompt + response, not self._begins_with_bos(prompt + response), prompt)
            case Text(text, add_special_tokens):
                return Rendered(text, add_special_tokens and not self._begins_with_bos(text))
        raise AssertionError(form)

    def _apply_template(self, item: Input, messages: list[dict[str, str]], **options: Any) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:  # a template is foreign code, and its fault with one input is that input's
            raise InvalidInputError(
                f"{item.place} does not fit the checkpoint's chat template: {error}", item.item
            ) from error
        return str(text)

    def _begins_with_bos(self, text: str) -> bool:
        return self._bos is not None and text.startswith(self._bos)

    def _finish(self, item: Input, token_ids: list[int], truncation: Truncation, rendered: Rendered | None) -> Sequence:
        if not token_ids:
            raise InvalidInputError(f"{item.place} has no tokens; send at least one", item.item)
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            wrong = next(i for i in token_ids if not 0 <= i < self.vocab_size)
            raise InvalidInputError(
                f"{item.place} has token id {wrong}; the vocabulary has ids 0 to {self.vocab_size - 1}", item.item
            )
        if len(token_ids) <= self.max_length:
            return Sequence.of(token_ids)
        return Sequence.of(self._truncate(item, token_ids, truncation, rendered), truncated=True)

    def _truncate(
        self, item: Input, token_ids: list[int], truncation: Truncation, rendered: Rendered | None
    ) -> list[int]:
        """Cuts to `max_length`; the special tokens that open the sequence stay, and those that the tokenizer closed it with."""
        has_bos = rendered is not None and token_ids[0] == self.tokenizer.bos_token_id
        special = rendered is not None and rendered.add_special_tokens
        num_leading = self._num_leading if special else int(has_bos)
        num_trailing = self._num_trailing if special else 0
        body = token_ids[num_leading : len(token_ids) - num_trailing]
        room = self.max_length - num_leading - num_trailing
        too_long = f"{item.place} has {len(token_ids)} tokens; the limit is {self.max_length}"
        match truncation:
            case "error":
                raise TooLongError(f"{too_long}; shorten it, or set truncation", item.item)
            case _ if room <= 0:
                raise TooLongError(f"{too_long}, which the special tokens alone fill", item.item)
            case "right":
                body = body[:room]
            case "left":
                body = body[-room:]
            case "prompt":
                num_response = len(token_ids) - self._num_prompt_tokens(item, token_ids, rendered) - num_trailing
                if num_response > room:
                    raise TooLongError(
                        f"{too_long}, and its response alone has {num_response}; shorten it, or set truncation to left",
                        item.item,
                    )
                body = body[-room:]
        return token_ids[:num_leading] + body + token_ids[len(token_ids) - num_trailing :]

    def _num_prompt_tokens(self, item: Input, token_ids: list[int], rendered: Rendered | None) -> int:
        """The tokens before the response: what the whole shares with its prompt tokenized alone."""
        prompt = rendered.prompt if rendered is not None else None
        form = item.form
        if isinstance(form, PromptResponse) and self.has_template:
            form = Messages(({"role": "user", "content": form.prompt},))
            prompt = self._apply_template(item, list(form.messages), add_generation_prompt=True)
        elif isinstance(form, Messages) and len(form.messages) > 1:
            prompt = self._apply_template(item, list(form.messages[:-1]), add_generation_prompt=True)
        if rendered is None or prompt is None:
            raise InvalidInputError(
                f"{item.place} has {len(token_ids)} tokens; the limit is {self.max_length}, and truncation prompt needs "
                "to know where the response begins; send prompt and response or messages, or set truncation to left",
                item.item,
            )
        alone = self._encode([prompt], add_special_tokens=rendered.add_special_tokens)[0]
        return num_equal(zip(token_ids, alone, strict=False))


def refuse_lone_surrogates(item: Input, text: str) -> None:
    """A tokenizer would raise for the whole batch."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{item.place} has a lone surrogate ({text[error.start]!r}), half of a character; send text that UTF-8 can hold",
            item.item,
        ) from error


def num_equal(pairs: Iterable[tuple[int, int]]) -> int:
    """How many pairs are equal before the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

"""Converts an `Input` to a `TokenSequence`: special tokens, pairs, truncation. Knows tokenizers, but no models and no queues.

Every form of input follows the tokenizer's own conventions unless the checkpoint's `TextRules` override them: exactly one BOS
if the tokenizer adds one, even if the text already begins with it, and no EOS unless the tokenizer or the template adds it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from app.engine.encoder import PairFrame, TextEncoder
from app.engine.foreign_code import ForeignCodeError
from app.engine.inputs import Input, TokenIds, Truncation
from app.engine.rendering import Rendered, Renderer
from app.engine.sequence import TokenSequence
from app.engine.text_rules import TextRules
from app.engine.text_tokens import LONG_CHARS, LongText, TextTokens, UncuttableTextError, WholeText
from app.errors import InvalidInputError, TooLongError


class Tokenization:
    """A tokenizer with one model's limits and text rules."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        vocab_size: int,
        rules: TextRules | None = None,
        *,
        is_encoder: bool = False,
        finds_response: bool = False,
    ) -> None:
        """`finds_response`: set `num_prompt_tokens` of the sequences, for a head that reads only the response."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.rules = rules if rules is not None else TextRules()
        self._finds_response = finds_response
        self._encoder = TextEncoder(tokenizer)
        # Read once, because transformers takes microseconds for each access.
        self._bos_id: int | None = tokenizer.bos_token_id
        self._eos_id: int | None = tokenizer.eos_token_id
        frame = self._encoder.pair_frame() if is_encoder or self.rules.pair_encoding else None
        self._pair_frame = frame if frame is not None and frame.middle else None
        has_template = bool(self.rules.chat_template or tokenizer.chat_template)
        takes_pairs = self.rules.pair_encoding if self.rules.pair_encoding is not None else not has_template
        self._renderer = Renderer(
            tokenizer, self.rules, self._encoder, takes_pairs=takes_pairs and self._pair_frame is not None
        )

    @property
    def has_template(self) -> bool:
        return self._renderer.has_template

    @cached_property
    def fingerprint(self) -> str:
        """Equal for tokenizations that give equal sequences for equal inputs."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        parts = (
            *(vocabulary, self.tokenizer.chat_template, self.tokenizer.bos_token, self.max_length, self.vocab_size),
            *(self.rules, self._renderer.takes_pairs),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode(self, inputs: list[Input], truncation: Truncation) -> list[TokenSequence | InvalidInputError]:
        """One sequence, or error, per input. Short texts are encoded in one call."""
        outcomes: list[TokenSequence | InvalidInputError | None] = [None] * len(inputs)
        rendered: dict[int, Rendered] = {}
        for i, item in enumerate(inputs):
            try:
                if isinstance(item.form, TokenIds):
                    outcomes[i] = self._from_ids(item, item.form.token_ids, truncation)
                else:
                    rendered[i] = self._renderer.render(item)
                    for text in rendered[i].texts:
                        if not text.isascii():
                            check_lone_surrogates(item, text)
            except InvalidInputError as error:
                outcomes[i] = error
                rendered.pop(i, None)
        short = [text for whole in rendered.values() for text in whole.texts if len(text) <= LONG_CHARS]
        encoded = iter(self._encoder.encode_batch(short) if short else ())
        for i, whole in rendered.items():
            tokens = [
                LongText(self._encoder, text) if len(text) > LONG_CHARS else next(encoded) for text in whole.texts
            ]
            try:
                outcomes[i] = self._from_texts(inputs[i], whole, tokens, truncation)
            except InvalidInputError as error:
                outcomes[i] = error
            except (ForeignCodeError, UncuttableTextError) as error:
                outcomes[i] = InvalidInputError(
                    f"{inputs[i].location} cannot be tokenized ({error}); change its text", inputs[i].item
                )
        return [outcome for outcome in outcomes if outcome is not None]

    def strings(self, token_ids: list[int]) -> list[str]:
        """Each token's text in the vocabulary."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(token_ids)]

    # -- one input --------------------------------------------------------------------------------------------------

    def _from_ids(self, item: Input, token_ids: list[int], truncation: Truncation) -> TokenSequence:
        check_ids(item, token_ids, self.vocab_size)
        ids, is_cut = self._cut(item, WholeText(token_ids), [], [], truncation, None)
        types = None
        if self._pair_frame is not None and self._encoder.has_token_types:
            types = self._encoder.token_types(ids, self._pair_frame)
        return TokenSequence.of(ids, truncated=is_cut, token_types=types)

    def _from_texts(
        self,
        item: Input,
        whole: Rendered,
        encoded: "Sequence[list[int] | LongText | ForeignCodeError]",
        truncation: Truncation,
    ) -> TokenSequence:
        tokens: list[TextTokens] = []
        for each in encoded:
            if isinstance(each, ForeignCodeError):
                raise each
            tokens.append(WholeText(each) if isinstance(each, list) else each)
        if whole.is_steps:
            return self._from_steps(item, whole, tokens, truncation)
        if len(tokens) > 1:
            return self._from_pair(item, tokens[0], tokens[1], truncation)
        body, leading = tokens[0], [*whole.leading]
        closing = [*whole.trailing]
        if self.rules.add_eos or self.rules.append_ids:
            closing = self._closing(body, closing)
        ids, is_cut = self._cut(item, body, leading, closing, truncation, whole)
        check_ids(item, ids, self.vocab_size)
        if not self._finds_response:
            return TokenSequence.of(ids, truncated=is_cut)
        num_tokens = len(ids) - len(closing)
        if is_cut and truncation == "right":
            num_tokens = len(leading) + len(body.first(1 << 62))
        num_prompt = num_tokens - self._num_response_tokens_of(item, whole, body, leading)
        return TokenSequence.of(ids, truncated=is_cut, num_prompt_tokens=min(max(num_prompt, 0), len(ids)))

    def _from_steps(
        self, item: Input, whole: Rendered, tokens: Sequence[TextTokens], truncation: Truncation
    ) -> TokenSequence:
        """A prompt and the steps of its response, each tokenized by itself and followed by the mark."""
        rule, limit = self.rules.steps, item.max_length or self.max_length
        assert rule is not None
        prompt, *steps = (each.first(limit + 1) for each in tokens)
        leading = list(whole.leading)
        if not leading and prompt[:1] == [self._bos_id]:
            leading, prompt = prompt[:1], prompt[1:]
        response = [token for step in steps for token in (*step, *rule.mark_ids)]
        ids, is_cut = self._cut(item, PromptThenResponse(prompt, response), leading, [], truncation, whole)
        check_ids(item, ids, self.vocab_size)
        num_prompt = len(leading) + len(prompt) if truncation == "right" else len(ids) - len(response)
        return TokenSequence.of(ids, truncated=is_cut, num_prompt_tokens=min(max(num_prompt, 0), len(ids)))

    def _num_response_tokens_of(self, item: Input, whole: Rendered, body: TextTokens, leading: list[int]) -> int:
        """How many tokens the response has. Raises InvalidInputError if the input does not mark where it begins."""
        num_response = self._num_response_tokens(item, body, leading, whole, 1 << 62)
        if num_response is None:
            raise InvalidInputError(
                f"{item.location} does not mark where its response begins, and the model reads the response alone; send prompt "
                "and response, or messages",
                item.item,
            )
        return num_response

    def _closing(self, body: TextTokens, trailing: list[int]) -> list[int]:
        """The ids after the text: the tokenizer's own, then by the text rules one EOS, then `append_ids`.

        Empty if the text already ends in `append_ids` and the rules say `append_unless_present`.
        """
        needs_eos = self.rules.add_eos and self._eos_id is not None and self._eos_id not in trailing
        eos = [self._eos_id] if needs_eos and self._eos_id is not None and body.last(1) != [self._eos_id] else []
        closing, ids = [*trailing, *eos, *self.rules.append_ids], list(self.rules.append_ids)
        is_present = bool(ids) and self.rules.append_unless_present and closing == ids and body.last(len(ids)) == ids
        return [] if is_present else closing

    def _cut(
        self,
        item: Input,
        body: TextTokens,
        leading: list[int],
        closing: list[int],
        truncation: Truncation,
        whole: Rendered | None,
    ) -> tuple[list[int], bool]:
        """The ids, truncated to the limit, and whether the body was truncated. `leading` and `closing` always stay.

        Without `leading`, a BOS at the start of the body stays, too.
        """
        limit = item.max_length or self.max_length
        room = limit - len(leading) - len(closing)
        ids = body.first(max(room, 0) + 1)
        if len(ids) <= room:
            if not (leading or ids or closing):
                raise InvalidInputError(f"{item.location} has no tokens; send at least one", item.item)
            return [*leading, *ids, *closing], False
        too_long = f"{item.location} has {self._described(body, leading, closing, limit)}; the limit is {limit}"
        if truncation == "error":
            raise TooLongError(f"{too_long}; shorten it, or set truncation", item.item)
        if not leading and ids[:1] == [self._bos_id]:
            leading, body, room = ids[:1], WithoutFirst(body), room - 1
        if room <= 0:
            raise TooLongError(f"{too_long}, which the special tokens alone reach; raise the limit", item.item)
        if truncation == "right":
            return [*leading, *body.first(room), *closing], True
        if truncation == "prompt":
            num_response = self._num_response_tokens(item, body, leading, whole, room)
            if num_response is None:
                raise InvalidInputError(
                    f"{too_long}, and truncation prompt needs to know where the response begins; send prompt and response or "
                    "messages, or set truncation to left",
                    item.item,
                )
            if num_response > room:
                raise TooLongError(
                    f"{too_long}, and its response alone has {num_response}; shorten it, or set truncation to left",
                    item.item,
                )
        return [*leading, *body.last(room), *closing], True

    def _from_pair(self, item: Input, first: TextTokens, second: TextTokens, truncation: Truncation) -> TokenSequence:
        """A pair as the tokenizer frames it. Over the limit, the first text loses its oldest tokens, then the second."""
        frame = self._pair_frame
        assert frame is not None
        closing = list(self.rules.append_ids)
        limit = item.max_length or self.max_length
        room = limit - frame.num_tokens - len(closing)
        a, b = first.first(max(room, 0) + 1), second.first(max(room, 0) + 1)
        is_cut = len(a) + len(b) > room
        if is_cut:
            too_long = f"{item.location} has over {limit} tokens as a pair; the limit is {limit}"
            if truncation == "error" or room <= 0:
                raise TooLongError(f"{too_long}; shorten it, or set truncation", item.item)
            if truncation == "prompt" and len(b) > room:
                raise TooLongError(f"{too_long}, and its response alone is over it; set truncation to left", item.item)
            if truncation == "right":
                a = a[:room]
                b = b[: room - len(a)]
            else:
                b = second.last(room)
                a = first.last(room - len(b)) if len(b) < room else []
        return self._framed(frame, a, b, closing, is_cut=is_cut)

    def _framed(
        self, frame: PairFrame, first: list[int], second: list[int], closing: list[int], *, is_cut: bool
    ) -> TokenSequence:
        ids = [*frame.leading, *first, *frame.middle, *second, *frame.trailing, *closing]
        types = [
            *frame.leading_types,
            *[frame.first_type] * len(first),
            *frame.middle_types,
            *[frame.second_type] * len(second),
            *frame.trailing_types,
            *[frame.second_type] * len(closing),
        ]
        return TokenSequence.of(ids, truncated=is_cut, token_types=types if self._encoder.has_token_types else None)

    def _described(self, body: TextTokens, leading: list[int], closing: list[int], limit: int) -> str:
        """The number of tokens for messages; only a lower bound for a long text, which is not tokenized to its end."""
        if isinstance(body, LongText):
            return f"over {limit} tokens in {body.num_chars} characters"
        return f"{len(leading) + len(body.first(1 << 62)) + len(closing)} tokens"

    def _num_response_tokens(
        self, item: Input, body: TextTokens, leading: list[int], whole: Rendered | None, room: int
    ) -> int | None:
        """How many tokens follow the prompt, counted after the common prefix with the tokenized prompt; None if the input does
        not mark where its response begins.

        For a long text, the number of tokens of the rest of the text, counted up to `room` + 1.
        """
        if isinstance(body, PromptThenResponse):
            return body.num_response
        prompt = self._renderer.prompt_of(item, whole) if whole is not None else None
        if whole is None or prompt is None:
            return None
        if len(whole.texts[0]) > LONG_CHARS:
            rest = whole.texts[0][len(num_common_prefix(whole.texts[0], prompt)) :]
            tokens = LongText(self._encoder, rest) if len(rest) > LONG_CHARS else WholeText(self._encoder.encode(rest))
            return len(tokens.first(room + 1))
        ids = body.first(1 << 62)
        alone = self._encoder.encode(prompt)
        if leading and alone[:1] == leading[:1]:
            alone = alone[1:]
        return len(ids) - num_equal(zip(ids, alone, strict=False))


class PromptThenResponse(WholeText):
    """The tokens of a prompt and of its response, which were tokenized separately."""

    def __init__(self, prompt: list[int], response: list[int]) -> None:
        super().__init__([*prompt, *response])
        self.num_response = len(response)


class WithoutFirst:
    """All tokens except the first."""

    def __init__(self, tokens: TextTokens) -> None:
        self._tokens = tokens

    def first(self, num_tokens: int) -> list[int]:
        return self._tokens.first(num_tokens + 1)[1:]

    def last(self, num_tokens: int) -> list[int]:
        found = self._tokens.last(num_tokens + 1)
        return found[1:] if len(found) <= num_tokens else found[len(found) - num_tokens :]


def check_ids(item: Input, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidInputError for an id outside the vocabulary."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        wrong = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidInputError(
            f"{item.location} has token id {wrong}; the vocabulary has ids 0 to {vocab_size - 1}", item.item
        )


def num_common_prefix(text: str, prompt: str) -> str:
    """The common prefix of both. Usually the prompt is the beginning of the text."""
    if text.startswith(prompt):
        return prompt
    length = next(
        (i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt))
    )
    return text[:length]


def check_lone_surrogates(item: Input, text: str) -> None:
    """Raises InvalidInputError for a lone surrogate, for which a tokenizer would fail the whole batch."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{item.location} has a lone surrogate ({text[error.start]!r}) at character {error.start}; send text that UTF-8 can hold",
            item.item,
        ) from error


def num_equal(pairs: Iterable[tuple[int, int]]) -> int:
    """How many pairs are equal before the first unequal one."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

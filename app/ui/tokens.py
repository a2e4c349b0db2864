"""The texts of scored tokens, and where the response begins; the API returns only numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokenizers.decoders import DecodeStream

from app.engine.engine import Engine
from app.engine.inputs import Input, Messages, PromptResponse, Text, Truncation
from app.engine.reward_model import RewardModel
from app.engine.tokenization import Tokenization, num_equal
from app.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Tokens:
    texts: tuple[str, ...]
    num_prompt: int
    """Number of tokens before the response; 0 if the input has no such boundary."""
    num_after: int = 0
    """Number of tokens after it, such as a template's end of turn."""


def tokens_of(
    engine: Engine[RewardModel], form: Messages | PromptResponse | Text, truncation: Truncation
) -> dict[str, Tokens]:
    """Each model's tokens of an input that it has scored."""
    return {name: tokens_by(model.tokenization, Input(form), truncation) for name, model in engine.models.items()}


def tokens_by(tokenization: Tokenization, item: Input, truncation: Truncation) -> Tokens:
    token_ids = ids(tokenization, item, truncation)
    empty = without_response(item)
    around = ids(tokenization, empty, truncation) if empty is not None else []
    num_prompt = num_equal(zip(token_ids, around, strict=False))
    after = zip(reversed(token_ids[num_prompt:]), reversed(around[num_prompt:]), strict=False)
    return Tokens(tuple(pieces(tokenization, token_ids)), num_prompt, num_equal(after) if num_prompt else 0)


def ids(tokenization: Tokenization, item: Input, truncation: Truncation) -> list[int]:
    sequence = tokenization.encode([item], truncation)[0]
    if isinstance(sequence, InvalidInputError):
        raise sequence
    return list(sequence.token_ids)


def without_response(item: Input) -> Input | None:
    """The same input with an empty last turn."""
    match item.form:
        case PromptResponse(prompt, _):
            return replace(item, form=PromptResponse(prompt, ""))
        case Messages(messages):
            return replace(item, form=Messages((*messages[:-1], {**messages[-1], "content": ""})))
    return None


def pieces(tokenization: Tokenization, token_ids: list[int]) -> Iterator[str]:
    """One text per token. A token that ends inside a character has an empty text, and the next one has the whole character."""
    backend = getattr(tokenization.tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield from map(str, tokenization.tokenizer.convert_ids_to_tokens(token_ids))
        return
    stream = DecodeStream(skip_special_tokens=False)
    for token_id in token_ids:
        yield stream.step(backend, token_id) or ""

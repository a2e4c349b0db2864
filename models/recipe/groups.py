"""A prompt of the data with its rated responses, and its tokens as the row that is trained on."""

from dataclasses import dataclass
from typing import Any

from app.training.rated.losses import Ratings
from app.training.rated.packed import Row, pack

TASKS = ("safety", "helpfulness")
MAX_PROMPT, MAX_RESPONSE = 160, 144
CLOSING = 2
"""Tokens behind a response's text: <|im_end|> and the line break."""


@dataclass(frozen=True, slots=True)
class Response:
    """Ratings run from 1 (worst) to 5 and may be fractions; None where nobody rated."""

    text: str
    safety: float | None = None
    helpfulness: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and its responses."""

    kind: str
    turns: tuple[tuple[str, str], ...]
    """Role and content of what precedes the responses."""
    responses: tuple[Response, ...]

    @property
    def prompt(self) -> str:
        return self.turns[-1][1]

    def ratings(self, task: str) -> list[float | None]:
        return [getattr(response, task) for response in self.responses]

    @property
    def ratings_by_task(self) -> Ratings:
        return {task: self.ratings(task) for task in TASKS}


def row_of(group: Group, tokenizer: Any) -> Row:
    """An over-long prompt loses its beginning, an over-long response the end of its text."""
    rendered = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in group.turns)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"][-MAX_PROMPT:]
    return pack(prompt, [response_tokens(response.text, tokenizer) for response in group.responses])


def response_tokens(text: str, tokenizer: Any) -> list[int]:
    tokens: list[int] = tokenizer(f"<|im_start|>assistant\n{text}<|im_end|>\n", add_special_tokens=False)["input_ids"]
    if len(tokens) <= MAX_RESPONSE:
        return tokens
    return tokens[: MAX_RESPONSE - CLOSING] + tokens[-CLOSING:]

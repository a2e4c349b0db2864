"""A conversation as a person types it, and as the API takes it."""

import re

from pydantic_core import from_json

from app.errors import InvalidInputError

EXAMPLE = """user: How long should green tea steep?
assistant: Two to three minutes.
user: And how hot should the water be?
assistant: About 80 °C; boiling water makes it bitter."""
TURN = re.compile(r"^(system|user|assistant):[ \t]*", re.MULTILINE | re.IGNORECASE)


def messages_of(text: str) -> list[dict[str, str]]:
    """The turns of a conversation: lines that begin with a role, or the API's own JSON list.

    Raises InvalidInputError in words that a person can act on.
    """
    if not text.strip():
        raise InvalidInputError("The conversation is empty; write its turns, or choose an example.")
    if text.lstrip().startswith("["):
        try:
            listed: list[dict[str, str]] = from_json(text)
        except ValueError as error:
            raise InvalidInputError(f"The conversation begins like JSON but is not valid JSON: {error}.") from None
        return listed
    starts = list(TURN.finditer(text))
    if not starts or text[: starts[0].start()].strip():
        line = text.strip().partition("\n")[0]
        raise InvalidInputError(
            f"The conversation begins with {line[:40]!r}; begin every turn with user:, assistant: or system:."
        )
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return [
        {"role": start[1].lower(), "content": text[start.end() : end].strip()}
        for start, end in zip(starts, ends, strict=True)
    ]

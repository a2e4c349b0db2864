"""The API's error messages in the page's words: a field of a form has a label, and no index in a request."""

import re
from collections.abc import Callable, Sequence

Names = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""(pattern, replacement) pairs for `re.sub`, tried in order."""

ALWAYS: Names = (
    (r"; shorten it, or set truncation to left\b", "; shorten it, or choose to cut it on the left"),
    (r"; shorten it, or set truncation\b", "; shorten it, or choose what happens if the input is too long"),
)


def in_page_words(message: str, names: Names) -> str:
    """The message with the tab's names for parts of the request, as a sentence."""
    for pattern, words in (*names, *ALWAYS):
        message = re.sub(pattern, words, message)
    message = message[:1].upper() + message[1:]
    return message if message.endswith((".", "?", "!")) else f"{message}."

import re

import pytest

from app.ui.words import in_page_words


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "items[1] has 605 tokens; the limit is 512; shorten it, or set truncation",
            "Response 2 has 605 tokens; the limit is 512; shorten it, or choose what happens if the input is too long.",
        ),
        ("something else", "Something else."),
        ("it is so.", "It is so."),
    ],
)
def test_a_message_names_the_fields_of_the_page(message: str, said: str) -> None:
    def label(found: re.Match[str]) -> str:
        return f"response {int(found[1]) + 1}"

    assert in_page_words(message, [(r"\bitems\[(\d+)\]", label)]) == said

"""Renders the last turn of a client's rendered conversation again, so that it ends as the chat template ends it.

Trainers send the text of a rollout: the prompt as their own tokenizer's template rendered it, then what the model generated.
It usually stops at the end-of-turn token, after which the template may add text (ChatML: a newline). It may lack the BOS, or
the end of the turn. Reward models are trained on what the template renders, so the template renders the last turn again, and
the text before it stays as sent. Works on rendered text; knows no tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.foreign_code import ForeignCodeError

USER, RESPONSE = "qzuserzq", "qzresponsezq"
"""Contents of a probe conversation that shows what the template renders before and after a response."""
Render = Callable[[tuple[dict[str, Any], ...], bool], str]
"""Messages and `add_generation_prompt` to text. Raises ForeignCodeError."""


def conversation(response: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": USER}, {"role": "assistant", "content": response})


@dataclass(frozen=True, slots=True)
class LastTurn:
    """What a template renders around the last response: a user's turn U and a response R as `... U header lead R closing`."""

    render: Callable[[str], str]
    """Renders a response as `header lead R closing`."""
    bos: str | None
    num_bos: int
    """How many BOS tokens the rendered text starts with."""
    header: str
    """From the user's content to where a policy starts to generate: `<|im_end|>\\n<|im_start|>assistant\\n`."""
    lead: str
    """What the template renders between the header and a response, such as a space or an empty block of thoughts."""
    closing: str
    end_of_turn: str | None
    """The first special token of `closing`."""
    eos: str | None
    generation_prompt: str
    """What the checkpoint's text rules add after the closed turn; usually empty."""

    @classmethod
    def of(
        cls, render: Render, special_tokens: Sequence[str], bos: str | None, eos: str | None, *, generation_prompt: bool
    ) -> "LastTurn | None":
        """None if the template renders nothing before a response, so that none of its texts can be recognized."""
        try:
            whole = render(conversation(RESPONSE), generation_prompt)
            closed = render(conversation(RESPONSE), False)
            prompt, shown = (render(conversation(RESPONSE)[:1], flag) for flag in (False, True))
        except ForeignCodeError:  # the template may reject these turns
            return None
        if any(text.count(USER) != 1 for text in (whole, closed, prompt, shown)) or whole.count(RESPONSE) != 1:
            return None
        opening, _, rest = whole.partition(USER)
        between, _, closing = rest.partition(RESPONSE)
        header = header_of(between, shown.partition(USER)[2], has_generation_prompt=shown != prompt)
        if not header.strip():
            return None
        return cls(
            render=lambda response: render(conversation(response), generation_prompt).partition(USER)[2],
            bos=bos,
            num_bos=count_leading(opening, bos),
            header=header,
            lead=between[len(header) :],
            closing=closing,
            end_of_turn=first_of(special_tokens, closing),
            eos=eos,
            generation_prompt=whole.removeprefix(closed) if whole != closed else "",
        )

    def restored(self, text: str, *, close: bool) -> str | None:
        """The text as this template would have rendered it; None if it does not match the template.

        With `close`, the template renders the last response, so that its turn is closed exactly once. In both cases the text
        gets the template's BOS.
        """
        if close and self.header in text.removesuffix(self.generation_prompt):
            text = text.removesuffix(self.generation_prompt)  # `render` adds it again
        start = text.rfind(self.header)
        if start < 0:
            return None
        before, tail = text[:start], text[start:]
        response = self.without_end(tail[len(self.header) :].removeprefix(self.lead)) if close else None
        if response is not None:
            tail = self.render(response)
        return self.with_bos(before + tail)

    def without_end(self, response: str) -> str | None:
        """A response without the end of its turn, complete or not; None if the turn ends inside the response."""
        if self.eos is not None and self.eos != self.end_of_turn:
            response = response.removesuffix(self.eos)
        if self.end_of_turn is None:
            return response.removesuffix(self.closing)
        space, _, rest = self.closing.partition(self.end_of_turn)
        for length in range(len(rest), -1, -1):
            end = self.end_of_turn + rest[:length]
            if response.endswith(end):
                return response.removesuffix(end).removesuffix(space)
        return None if self.end_of_turn in response else response

    def with_bos(self, text: str) -> str:
        if not self.bos:
            return text
        return self.bos * self.num_bos + text[len(self.bos) * count_leading(text, self.bos) :]


def header_of(between: str, suffix: str, *, has_generation_prompt: bool) -> str:
    """What the template renders before a response in every text.

    That is everything `between` a user's content and a finished response, unless the template adds something only to finished
    responses, such as a block of thoughts: then it is the `suffix`, what it renders after a prompt.
    """
    if suffix.strip() and between.startswith(suffix) and (has_generation_prompt or not between[len(suffix) :].strip()):
        return suffix
    return between


def count_leading(text: str, token: str | None) -> int:
    count = 0
    while token and text.startswith(token, count * len(token)):
        count += 1
    return count


def first_of(tokens: Sequence[str], text: str) -> str | None:
    """The token that comes first in the text; the longest of several at one index."""
    found = [(text.find(token), -len(token), token) for token in tokens if token and token in text]
    return min(found)[2] if found else None

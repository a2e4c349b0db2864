"""The last turn of a conversation that a client rendered with this chat template, closed as the template closes it.

Trainers send the text of a rollout: the prompt as their own tokenizer's template rendered it, then what the model generated. It
mostly ends at the end-of-turn token, where the template goes on (ChatML's newline), may lack the BOS, or may end without
any end of turn. The model was trained on what the template renders, so the last turn is rendered once more by the template
itself, and the text before it stays as it was sent. Knows templates by what they render, and no tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.foreign_code import ForeignCodeError

USER, RESPONSE = "qzuserzq", "qzresponsezq"
"""Contents of the conversation that shows how a template opens and closes a response."""
Render = Callable[[tuple[dict[str, Any], ...], bool], str]
"""Messages and `add_generation_prompt` to text. Raises ForeignCodeError."""


def conversation(response: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": USER}, {"role": "assistant", "content": response})


@dataclass(frozen=True, slots=True)
class LastTurn:
    """What one template puts around the last response.

    The template renders a user's turn U and a response R as `... U header lead R closing`.
    """

    render: Callable[[str], str]
    """A response as the template renders it: header, lead, the response, closing."""
    bos: str | None
    num_bos: int
    """How often the template's own text begins with the BOS."""
    header: str
    """From the user's content to where a policy begins to generate: `<|im_end|>\\n<|im_start|>assistant\\n`."""
    lead: str
    """What the template puts between the header and a response: a space, an empty block of thoughts."""
    closing: str
    end_of_turn: str | None
    """The first special token of `closing`."""
    eos: str | None
    generation_prompt: str
    """What the checkpoint's rules put after the closed turn; mostly nothing."""

    @classmethod
    def of(
        cls, render: Render, special_tokens: Sequence[str], bos: str | None, eos: str | None, *, generation_prompt: bool
    ) -> "LastTurn | None":
        """None where the template does not show where a response begins, so that no text can be known to be its own."""
        try:
            whole = render(conversation(RESPONSE), generation_prompt)
            closed = render(conversation(RESPONSE), False)
            prompt, shown = (render(conversation(RESPONSE)[:1], flag) for flag in (False, True))
        except ForeignCodeError:  # a template may not like these turns
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
        """The text as the template renders its conversation; None where the text is not this template's.

        With `close`, the last response is rendered by the template: its end of turn is neither lost nor doubled. The BOS is
        as the template has it either way.
        """
        if close and self.header in text.removesuffix(self.generation_prompt):
            text = text.removesuffix(self.generation_prompt)  # it comes back with the closing
        start = text.rfind(self.header)
        if start < 0:
            return None
        before, tail = text[:start], text[start:]
        response = self.without_end(tail[len(self.header) :].removeprefix(self.lead)) if close else None
        if response is not None:
            tail = self.render(response)
        return self.with_bos(before + tail)

    def without_end(self, response: str) -> str | None:
        """A response without the end of its turn, whole or in part; None where the turn ends within it."""
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
    """What stands before every response in a text.

    Of what the template puts `between` a user's content and a response that is all, or as far as it puts it after a prompt
    (`suffix`): some templates begin a finished response with a block of thoughts.
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
    """The token that comes first in the text; of several at one place the longest."""
    found = [(text.find(token), -len(token), token) for token in tokens if token and token in text]
    return min(found)[2] if found else None

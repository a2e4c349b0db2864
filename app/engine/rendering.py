"""Renders an input to text: with the chat template or as it is, with the special tokens before and after it."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.engine.encoder import TextEncoder
from app.engine.foreign_code import ForeignCodeError, foreign_code
from app.engine.inputs import ChatOptions, Input, Messages, PromptResponse, RenderedChat, Rollout, Text
from app.engine.last_turn import LastTurn
from app.engine.text_rules import StepRule, TextRules
from app.errors import InvalidInputError

Conversation = tuple[dict[str, Any], ...]
NO_OPTIONS = ChatOptions()
RENDERED_FIELDS = ("tool_calls", "reasoning_content")
"""Fields of a message that are part of its content, so a template that ignores them would change the score."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One text, or the two of a pair, to be tokenized, and the ids of the special tokens before and after a single text."""

    texts: tuple[str, ...]
    leading: tuple[int, ...] = ()
    trailing: tuple[int, ...] = ()
    prompt: str | None = None
    """The text before the response, if the input separates them."""
    is_steps: bool = False
    """Whether the texts are a prompt and the steps of its response."""


class Renderer:
    """Renders inputs with a tokenizer's chat template and special tokens and the checkpoint's text rules."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rules: TextRules, encoder: TextEncoder, *, takes_pairs: bool
    ) -> None:
        self.rules = rules
        self.takes_pairs = takes_pairs
        self.has_template = bool(rules.chat_template or tokenizer.chat_template)
        self._tokenizer = tokenizer
        self._template = str(rules.chat_template or tokenizer.chat_template or "")
        self._reserved = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters) - {"documents"}
        self._encoder = encoder
        self._bos = str(tokenizer.bos_token) if tokenizer.bos_token else None
        self._bos_id: int | None = tokenizer.bos_token_id
        bos_alone = tuple(i for i in encoder.leading if i == self._bos_id)  # only a BOS belongs before a template
        self._before_text, self._before_bare_text, self._before_template = (
            self._leading(each) for each in (encoder.leading, (), bos_alone)
        )
        keeps_eos = rules.add_eos is not False
        self._after_text = tuple(i for i in encoder.trailing if keeps_eos or i != tokenizer.eos_token_id)
        self._last_turn: LastTurn | None = None
        if self.has_template:  # at start: the first use opens files, and later connections may use up all descriptors
            self._last_turn = LastTurn.of(
                lambda messages, generation_prompt: self._apply(messages, add_generation_prompt=generation_prompt),
                special_tokens=[str(token) for token in tokenizer.get_added_vocab()],
                bos=self._bos,
                eos=str(tokenizer.eos_token) if tokenizer.eos_token else None,
                generation_prompt=rules.generation_prompt,
            )

    def render(self, item: Input) -> Rendered:
        """Raises InvalidInputError if the checkpoint's template cannot render the input."""
        return self._by_form(item) if self.rules.steps is None else self._by_steps(item, self.rules.steps)

    def _by_form(self, item: Input) -> Rendered:
        match item.form:
            case Messages(messages, options) if self.has_template:
                return self._conversation(item, messages, options)
            case Messages(messages):
                return self._pair_of(item, messages)
            case Rollout():
                return self._rollout(item, item.form)
            case PromptResponse(prompt, response):
                return self._prompt_and_response(item, prompt, response)
            case RenderedChat():
                return self._rendered_chat(item.form)
            case Text(text, add_special_tokens):
                return self._plain(text, prompt=None, with_special_tokens=add_special_tokens)
        raise AssertionError(item.form)

    def prompt_of(self, item: Input, whole: Rendered) -> str | None:
        """The rendered text before the response; None if the input does not mark where the response begins."""
        form = item.form
        turns: Conversation = ()
        if isinstance(form, PromptResponse) and self.has_template:
            turns = ({"role": "user", "content": form.prompt},)
        elif isinstance(form, Messages) and len(form.messages) > 1:
            options = replace(form.options, continue_final_message=False)
            return self._apply_for(item, form.messages[:-1], options, generation_prompt=True)
        elif isinstance(form, Rollout):
            turns = form.prompt
        return self._apply_for(item, turns, generation_prompt=True) if turns else whole.prompt

    def _by_steps(self, item: Input, rule: StepRule) -> Rendered:
        match item.form:
            case PromptResponse(prompt, response):
                turns: Conversation = ({"role": "user", "content": prompt},)
            case Rollout(turns, response):
                pass
            case Messages((*first, {"role": "assistant", "content": str(response)}), options) if first:
                turns = tuple(first)
                self._check_rendered(item, turns, options)
            case _:
                raise InvalidInputError(
                    f"{item.location} does not mark where its response begins, and the model scores the steps of a response; "
                    "send prompt and response, or messages that end in the assistant's turn",
                    item.item,
                )
        before = self._from_template(self._apply_for(item, turns, generation_prompt=True))
        return Rendered((*before.texts, *response.split(rule.separator)), before.leading, is_steps=True)

    def _pair_of(self, item: Input, messages: Conversation) -> Rendered:
        if not self.takes_pairs or [message.get("role") for message in messages] != ["user", "assistant"]:
            raise InvalidInputError(
                f"{item.location} has messages, but the checkpoint has no chat template; "
                "send prompt and response, or text that is already rendered",
                item.item,
            )
        return Rendered((str(messages[0]["content"]), str(messages[1]["content"])))

    def _prompt_and_response(self, item: Input, prompt: str, response: str) -> Rendered:
        if self.takes_pairs:
            return Rendered((prompt, response))
        if self.has_template:
            return self._conversation(item, turns_of(prompt, response))
        return self._plain(prompt + response, prompt=prompt, with_special_tokens=True)

    def _conversation(self, item: Input, messages: Conversation, options: ChatOptions = NO_OPTIONS) -> Rendered:
        self._check_rendered(item, messages, options)
        text = self._apply_for(item, messages, options, generation_prompt=options.add_generation_prompt)
        return self._from_template(text, with_special_tokens=options.add_special_tokens)

    def _check_rendered(self, item: Input, messages: Conversation, options: ChatOptions) -> None:
        """Raises InvalidInputError for fields, tools and variables that the template would ignore."""
        for name in RENDERED_FIELDS:
            if name not in self._template and any(message.get(name) for message in messages):
                raise InvalidInputError(
                    f"{item.location} has {name}, which the checkpoint's chat template does not render; "
                    "put it into the content",
                    item.item,
                )
        if options.tools and "tools" not in self._template:
            raise InvalidInputError(
                f"{item.location} has tools, which the checkpoint's chat template does not render; leave them out",
                item.item,
            )
        for name in options.template_kwargs:
            if name in self._reserved or name not in self._template:
                raise InvalidInputError(
                    f"{item.location}: Found unexpected chat template kwargs from request: {name!r:.80} is not a variable "
                    "of the checkpoint's chat template; leave it out",
                    item.item,
                )

    def _rollout(self, item: Input, form: Rollout) -> Rendered:
        if self.has_template and not form.close:
            return self._from_template(self._apply_for(item, form.prompt, generation_prompt=True) + form.response)
        content = self._last_turn.without_end(form.response) if self._last_turn is not None else None
        turn = {"role": "assistant", "content": form.response if content is None else content}
        return self.render(replace(item, form=Messages((*form.prompt, turn))))

    def _rendered_chat(self, form: RenderedChat) -> Rendered:
        try:
            restored = self._last_turn.restored(form.text, close=form.close) if self._last_turn is not None else None
        except ForeignCodeError:  # the template rejects this conversation, so it cannot have rendered it
            restored = None
        if restored is not None:
            return self._from_template(restored)
        return self._plain(form.text, prompt=None, with_special_tokens=form.add_special_tokens)

    def _from_template(self, text: str, *, with_special_tokens: bool = False) -> Rendered:
        if with_special_tokens:
            return self._plain(text, prompt=None, with_special_tokens=True)
        return Rendered((text,), self._before_template[self._begins_with_bos(text)])

    def _plain(self, text: str, *, prompt: str | None, with_special_tokens: bool) -> Rendered:
        if self.rules.add_bos is False:
            text = self._without_bos(text)
        begins_with_bos = self._begins_with_bos(text)
        if not with_special_tokens:
            return Rendered((text,), self._before_bare_text[begins_with_bos], (), prompt)
        return Rendered((text,), self._before_text[begins_with_bos], self._after_text, prompt)

    def _begins_with_bos(self, text: str) -> bool:
        return self._bos is not None and text.startswith(self._bos)

    def _leading(self, leading: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before a text without a BOS, and before one that begins with it: at most one BOS in all."""
        without_bos = tuple(i for i in leading if i != self._bos_id)
        if self.rules.add_bos is False:
            return without_bos, without_bos
        if self.rules.add_bos and self._bos_id is not None and self._bos_id not in leading:
            return (self._bos_id, *leading), without_bos
        return leading, without_bos

    def _apply_for(
        self, item: Input, messages: Conversation, options: ChatOptions = NO_OPTIONS, *, generation_prompt: bool | None
    ) -> str:
        """Applies the template. `generation_prompt` None: by the text rules, but never after a turn that is left open."""
        if generation_prompt is None:
            generation_prompt = self.rules.generation_prompt and not options.continue_final_message
        given: dict[str, Any] = dict(options.template_kwargs)
        if options.tools:
            given["tools"] = list(options.tools)
        if options.continue_final_message:
            given["continue_final_message"] = True
        try:
            return self._apply(messages, add_generation_prompt=generation_prompt, **given)
        except ForeignCodeError as error:  # what a template raises is the input's error
            raise InvalidInputError(
                f"{item.location} does not fit the checkpoint's chat template: {error}", item.item
            ) from error

    def _apply(self, messages: Conversation, **options: Any) -> str:
        if self.rules.system is not None and not (messages and messages[0].get("role") == "system"):
            messages = ({"role": "system", "content": self.rules.system}, *messages)
        if self.rules.chat_template is not None:
            options["chat_template"] = self.rules.chat_template
        with foreign_code():
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, **{**self.rules.template_kwargs, **options}
            )
        return self._without_bos(str(text)) if self.rules.add_bos is False else str(text)

    def _without_bos(self, text: str) -> str:
        while self._bos and text.startswith(self._bos):
            text = text.removeprefix(self._bos)
        return text


def turns_of(prompt: str, response: str) -> Conversation:
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": response})

"""Converts a declared `text` part to the `TextRules` of a checkpoint."""

from importlib.resources import files
from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from app.checkpoints.declaration import TextPart
from app.checkpoints.vocabulary import Vocabulary
from app.engine.foreign_code import ForeignCodeError, foreign_code
from app.engine.text_rules import StepRule, TextRules
from app.errors import ModelRefusedError

TEMPLATES = files("app.checkpoints") / "templates"
RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "chat_template", "tokenize", "bos_token", "eos_token"}
)
"""Variables of a chat template that the request or the tokenizer sets."""


def text_rules_of(
    source: str, part: TextPart, vocabulary: Vocabulary, *, replaces: bool, beside: Path | None
) -> TextRules:
    """The text rules. `replaces`: whether a declared template replaces the tokenizer's own, or is only used if it has none.

    Raises ModelRefusedError for an invalid template or rule.
    """
    template = None
    if part.template is not None and (replaces or not vocabulary.tokenizer.chat_template):
        template = read_template(source, part.template, beside)
    vocabulary.check_covers(check_template(source, vocabulary.tokenizer, template, part))
    return TextRules(
        chat_template=template,
        template_kwargs=part.template_kwargs,
        system=part.system,
        add_bos=part.add_bos,
        add_eos=part.add_eos,
        append_ids=vocabulary.continuation(part.append),
        append_unless_present=part.append_unless_present,
        generation_prompt=part.generation_prompt,
        pair_encoding=part.pair_encoding,
        steps=steps_of(source, part, vocabulary, has_template=bool(template or vocabulary.tokenizer.chat_template)),
    )


def steps_of(source: str, part: TextPart, vocabulary: Vocabulary, *, has_template: bool) -> StepRule | None:
    if part.steps is None:
        return None
    if not has_template:
        raise ModelRefusedError(
            f"{source}: text.steps needs a chat template that renders the prompt, and the tokenizer has none; declare one as "
            "text.template"
        )
    if part.append or part.add_eos or part.pair_encoding:
        raise ModelRefusedError(
            f"{source}: text.steps ends a text with the mark of its last step; leave out append, add_eos and pair_encoding"
        )
    return StepRule(part.steps.separator, vocabulary.continuation(part.steps.mark))


def check_template(source: str, tokenizer: PreTrainedTokenizerBase, template: str | None, part: TextPart) -> str:
    """A short conversation as the template renders it; empty if there is no template, or it rejects the conversation.

    Raises ModelRefusedError for invalid Jinja, and for variables that the template would silently ignore.
    """
    rendered = ""
    if template is not None or tokenizer.chat_template:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            with foreign_code():
                rendered = str(
                    tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **part.template_kwargs)
                )
        except ForeignCodeError as error:  # the template may reject these turns
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise ModelRefusedError(
                    f"{source}: the chat template is not valid Jinja ({error}); correct it, or declare another as text.template"
                ) from error
    text = str(template if template is not None else tokenizer.chat_template or "")
    for name in part.template_kwargs:
        if name in RESERVED or name not in text:
            raise ModelRefusedError(
                f"{source}: text.template_kwargs has {name!r}, which is not a variable of the chat template; leave it out, or "
                "declare a template that uses it"
            )
    return rendered


def read_template(source: str, template: str, beside: Path | None) -> str:
    """The template's source: `template` itself if it is Jinja, else that of a shipped template or of a file by this name."""
    if "{{" in template or "{%" in template:
        return template
    shipped = TEMPLATES / f"{template}.jinja"
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8")
    for file in (Path(template), *([beside / template] if beside is not None else [])):
        if file.is_file():
            return file.read_text(encoding="utf-8-sig")  # drops a byte order mark, which would start every prompt
    names = ", ".join(sorted(each.name.removesuffix(".jinja") for each in TEMPLATES.iterdir()))
    raise ModelRefusedError(f"{source}: no chat template {template!r}; give a file, Jinja, or one of {names}")

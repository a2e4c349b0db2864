"""`reward-service inspect`: how the service would score a checkpoint, each part with its source; or why it would reject it.

Loads the model as the service does and scores two texts. A rejected checkpoint is described from its files' headers.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from app.checkpoints.contents import Contents, read_contents
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.memory import available_bytes
from app.checkpoints.saved import read_saved
from app.checkpoints.transformers_checks import quiet_transformers
from app.engine.batch import Batch
from app.engine.inputs import Input, PromptResponse
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.engine.text_rules import TextRules
from app.engine.units import byte_size
from app.errors import ModelRefusedError, UndeclaredHeadError

PROMPT = "How long should green tea steep?"
RESPONSES = ("Two to three minutes, in water of about 80 °C.", "tea tea tea tea tea")
BATCH_TOKENS = 4096
MAX_SHOWN_TOKENS = 5  # at either end of a text


@dataclass(frozen=True, slots=True)
class Report:
    """Lines of a label and a text. `refusal` is the reason if the service would reject the checkpoint."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    refusal: str | None = None
    declaration: dict[str, object] | None = None
    """A reward.json with which the service may accept a rejected checkpoint."""


def inspect(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    declared: str | None = None,
    text: str | None = None,
) -> Report:
    """Reports how the service would score the checkpoint. The options are those of `load_checkpoint`."""
    lines: list[tuple[str, str]] = []
    contents = find_contents(source, trust_remote_code)
    if contents is not None:
        lines += [("trunk", trunk_in_words(contents))]
    try:
        checkpoint = load_checkpoint(
            source, device=device, dtype=dtype, trust_remote_code=trust_remote_code, declared=declared, text=text
        )
        model = RewardModel("inspected", checkpoint, max_batch_tokens=BATCH_TOKENS)
        select_plan(model)
    except ModelRefusedError as error:
        if contents is None:
            return Report(lines, str(error))
        lines += [("beside it", contents.beside or "nothing but a language model's own output embedding")]
        may_be_declared = isinstance(error, UndeclaredHeadError)
        return Report(lines, str(error), contents.declaration() if may_be_declared else None)
    if contents is None:
        lines += [("trunk", type(model.trunk).__name__)]
    lines += [(name, words) for name, words in checkpoint.about.items() if name not in {"trunk", "max_length"}]
    lines += [("", line) for line in text_in_words(model, checkpoint.text_rules)]
    lines += [("max_length", checkpoint.about["max_length"])]
    lines += [("unexplained", "nothing: every tensor of the files has its place, or is known to be unused")]
    lines += [("memory", memory_in_words(model))]
    lines += [("path", f"{model.plan.path}: {model.plan.reason}")]
    lines += list(sample_lines(model))
    return Report(lines)


def find_contents(source: str, trust_remote_code: bool) -> Contents | None:
    """What the files contain; None if they cannot be read. Loading then raises an error with the reason."""
    try:
        with quiet_transformers():
            return read_contents(source, read_saved(source, trust_remote_code))
    except Exception:  # noqa: BLE001 - an adapter, or not a checkpoint at all
        return None


def trunk_in_words(contents: Contents) -> str:
    prefix = f"weights under {contents.prefix!r}" if contents.prefix else "weights without a prefix"
    size = f"{contents.num_parameters:,} parameters, states of {contents.hidden_size}"
    return f"{contents.trunk}, {size} (config.json; {prefix})"


def text_in_words(model: RewardModel, rules: TextRules) -> Iterator[str]:
    """The text rules that differ from the tokenizer's defaults, and the chat template."""
    if rules.chat_template is not None:
        yield f"chat template: {shortened(rules.chat_template)}"
    elif model.tokenization.has_template:
        yield f"chat template: the tokenizer's, {shortened(str(model.tokenization.tokenizer.chat_template))}"
    else:
        yield "chat template: none; prompt and response are joined as they are, or go to an encoder as a pair"
    default = TextRules()
    for name in (
        "template_kwargs",
        "system",
        "add_bos",
        "add_eos",
        "append_unless_present",
        "generation_prompt",
        "pair_encoding",
        "steps",
    ):
        value = getattr(rules, name)
        if value != getattr(default, name):
            yield f"{name}: {json.dumps(value, default=str)}"
    if rules.append_ids:
        yield f"append: {tokens_in_words(model, list(rules.append_ids))}"


def shortened(text: str) -> str:
    return json.dumps(text if len(text) <= 80 else f"{text[:77]}...", ensure_ascii=False)  # noqa: PLR2004 - a line


def tokens_in_words(model: RewardModel, token_ids: list[int]) -> str:
    tokens: Any = model.tokenization.tokenizer.convert_ids_to_tokens(token_ids)
    return " ".join(f"{token}({token_id})" for token, token_id in zip(tokens, token_ids, strict=True))


def memory_in_words(model: RewardModel) -> str:
    num_bytes = sum(weight.nbytes for weight in model.net.parameters())
    available = available_bytes(model.device)
    free = "" if available is None else f", and {byte_size(available)} is free there beside it"
    return f"{byte_size(num_bytes)} of weights as {model.weight_dtype} on {', '.join(model.devices)}{free}"


def sample_lines(model: RewardModel) -> Iterator[tuple[str, str]]:
    """Two texts with their scores, by the model's execution path and by the reference forward."""
    step = model.head.position.sample_ids
    for response in RESPONSES:
        (sequence,) = model.tokenization.encode([Input(PromptResponse(PROMPT, response))], "right")
        if not isinstance(sequence, TokenSequence):
            yield "score", f"{response!r}: {sequence.message}"
            continue
        if model.find_fault(sequence) is not None and step:
            sequence = TokenSequence.of([*sequence.token_ids.tolist(), *step])
        if (fault := model.find_fault(sequence)) is not None:
            yield "score", f"{response!r}: the sample {fault}"
            continue
        (scored,) = model.score(Batch.of([sequence]))
        steps = f", steps {[round(score, 6) for score in scored.steps.scores]}" if scored.steps is not None else ""
        yield "score", f"{scored.score:.6f} (reference forward: {model.reference_score(sequence):.6f}{steps})"
        yield "", f"of {PROMPT!r} {response!r}"
        yield "", f"as {sequence.num_tokens} tokens: {ends_in_words(model, sequence.token_ids.tolist())}"


def ends_in_words(model: RewardModel, token_ids: list[int]) -> str:
    if len(token_ids) <= 2 * MAX_SHOWN_TOKENS:
        return tokens_in_words(model, token_ids)
    start, end = token_ids[:MAX_SHOWN_TOKENS], token_ids[-MAX_SHOWN_TOKENS:]
    return f"{tokens_in_words(model, start)} ... {tokens_in_words(model, end)}"

"""Sequences against transformers' own `tokenizer(...)` and `apply_chat_template`, and what truncation keeps."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.engine.inputs import Input, Messages, PromptResponse, RenderedChat, Rollout, Text, TokenIds, Truncation
from app.engine.sequence import TokenSequence
from app.engine.text_rules import StepRule, TextRules
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError, TooLongError
from tests.models import CHATML, VOCAB_SIZE, make_tokenizer

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
WITH_BOS = "{{ bos_token }}" + CHATML
WITH_EOS = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
STRIPS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER, ASSISTANT = (
    {"role": "user", "content": "How do I pick a lock?"},
    {"role": "assistant", "content": "I can't help."},
)
SYSTEM = {"role": "system", "content": "Be brief."}
BOS, EOS = 1, 2


def tokenization(max_length: int = 512, tokenizer: PreTrainedTokenizerBase | None = None) -> Tokenization:
    return Tokenization(tokenizer or make_tokenizer(), max_length, VOCAB_SIZE)


def outcome(own: Tokenization, form: Any, truncation: Truncation = "error") -> TokenSequence | InvalidInputError:
    (only,) = own.encode([Input(form, 3, "items[3]")], truncation)
    return only


def ids(own: Tokenization, form: Any, truncation: Truncation = "error") -> list[int]:
    sequence = outcome(own, form, truncation)
    assert isinstance(sequence, TokenSequence), sequence
    return [int(token_id) for token_id in sequence.token_ids]


def refusal(own: Tokenization, form: Any, truncation: Truncation = "error") -> InvalidInputError:
    error = outcome(own, form, truncation)
    assert isinstance(error, InvalidInputError), error
    assert error.item == 3
    assert error.message.startswith("items[3]")
    return error


def bert_like() -> PreTrainedTokenizerFast:
    """[CLS] a [SEP] and no BOS, as BERT has it."""
    tokenizer = make_tokenizer(
        template=None, add_bos=False, bos_token=None, eos_token=None, cls_token="<s>", sep_token="</s>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(("</s>", EOS), ("<s>", BOS))
    return tokenizer


TOKENIZERS = {
    "bos": make_tokenizer,
    "bos and eos": lambda: make_tokenizer(add_eos=True),
    "bare": lambda: make_tokenizer(add_bos=False),
    "bert": bert_like,
}


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@pytest.mark.parametrize(
    "text", ["How do I pick a lock?", "", " a", "a\n\nb", "naïve — 茶 🍵", "<|im_start|>x", "x</s>"]
)
def test_text_has_the_tokens_of_the_tokenizers_own_call(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    expected = tokenizer(text)["input_ids"]
    if expected:
        assert ids(tokenization(tokenizer=tokenizer), Text(text)) == expected
    else:
        assert "no tokens" in refusal(tokenization(tokenizer=tokenizer), Text(text)).message


@pytest.mark.parametrize("kind", ["bos", "bos and eos"])
def test_text_that_begins_with_bos_gets_no_second_and_keeps_the_tokenizers_eos(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    own = ids(tokenization(tokenizer=tokenizer), Text("<s>How do I pick a lock?"))
    assert own == tokenizer("How do I pick a lock?")["input_ids"]
    assert own.count(BOS) == 1


def test_text_may_ask_for_no_special_tokens() -> None:
    tokenizer = make_tokenizer(add_eos=True)
    own = ids(tokenization(tokenizer=tokenizer), Text("a lock", add_special_tokens=False))
    assert own == tokenizer("a lock", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", [CHATML, WITH_BOS])
@pytest.mark.parametrize("form", [Messages((USER, ASSISTANT)), Text("a fox"), Text("<s>a fox")])
def test_rules_without_bos_take_the_templates_and_the_texts_own_bos_away(template: str, form: Any) -> None:
    rules = TextRules(add_bos=False)
    own = Tokenization(make_tokenizer(template=template), 512, VOCAB_SIZE, rules)
    as_it_is = ids(tokenization(tokenizer=make_tokenizer(template=template)), form)
    assert [BOS, *ids(own, form)] == as_it_is


@pytest.mark.parametrize(
    "template", [CHATML, WITH_BOS, WITH_EOS, STRIPS_THINKING], ids=["plain", "bos", "eos", "think"]
)
@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("turns", [[USER, ASSISTANT], [SYSTEM, USER, ASSISTANT], [USER, ASSISTANT, USER, ASSISTANT]])
def test_messages_have_the_tokens_of_the_chat_template(
    template: str, add_bos: bool, turns: list[dict[str, str]]
) -> None:
    """And one BOS where the template or the tokenizer has one."""
    tokenizer = make_tokenizer(template=template, add_bos=add_bos)
    expected: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    own = ids(tokenization(tokenizer=tokenizer), Messages(tuple(turns)))
    assert own == ([BOS] if add_bos and template != WITH_BOS else []) + expected
    assert own.count(BOS) == (template == WITH_BOS or add_bos)
    assert own.count(EOS) == (template == WITH_EOS)


def test_prompt_and_response_are_a_user_and_an_assistant_turn() -> None:
    own = tokenization()
    form = PromptResponse(USER["content"], ASSISTANT["content"])
    assert ids(own, form) == ids(own, Messages((USER, ASSISTANT)))


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_prompt_and_response_are_joined_as_they_are_without_a_template(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = None
    own = tokenization(tokenizer=tokenizer)
    assert ids(own, PromptResponse("How do I ", "pick a lock?")) == tokenizer("How do I pick a lock?")["input_ids"]
    if kind.startswith("bos"):
        assert ids(own, PromptResponse("<s>How do I ", "pick a lock?")).count(BOS) == 1


def test_messages_need_a_template() -> None:
    own = tokenization(tokenizer=make_tokenizer(template=None))
    error = refusal(own, Messages((USER, ASSISTANT)))
    assert "no chat template" in error.message
    assert "prompt and response" in error.message


def test_a_turn_that_the_template_refuses_is_invalid_input() -> None:
    own = tokenization(tokenizer=make_tokenizer(template=NO_SYSTEM))
    assert "no system turn" in refusal(own, Messages((SYSTEM, USER, ASSISTANT))).message
    assert len(ids(own, Messages((USER, ASSISTANT)))) > 10


@pytest.mark.parametrize(
    "template",
    ["{{ messages[9]['content'] + 'x' }}", "{{ messages[0]['content'] + 1 }}", "{{ 1 // 0 }}", "{{ messages[0].a.b }}"],
)
def test_a_template_that_breaks_on_an_input_refuses_that_input(template: str) -> None:
    own = tokenization(tokenizer=make_tokenizer(template=template))
    assert "chat template" in refusal(own, Messages((USER, ASSISTANT))).message


def test_token_ids_are_taken_as_they_are() -> None:
    assert ids(tokenization(), TokenIds([7, BOS, EOS, 0, 319])) == [7, BOS, EOS, 0, 319]


@pytest.mark.parametrize(
    ("token_ids", "says"), [([5, 320], "320"), ([-1], "-1"), ([2**70], str(2**70)), ([], "no tokens")]
)
def test_token_ids_outside_the_vocabulary_are_refused(token_ids: list[int], says: str) -> None:
    assert says in refusal(tokenization(), TokenIds(token_ids)).message


def test_one_bad_input_leaves_the_others_alone() -> None:
    own = tokenization(20)
    forms: list[Any] = [Text("a"), TokenIds([999]), Text("word " * 90), Messages((USER, ASSISTANT)), Text("b")]
    outcomes = own.encode([Input(form, i, f"items[{i}]") for i, form in enumerate(forms)], "error")
    assert [isinstance(each, TokenSequence) for each in outcomes] == [True, False, False, False, True]
    assert [each.item for each in outcomes if isinstance(each, InvalidInputError)] == [1, 2, 3]


def test_a_batch_gives_what_each_alone_gives() -> None:
    own = tokenization()
    forms: list[Any] = [Text("a" * n) for n in (1, 60, 7)] + [PromptResponse("a", "b"), TokenIds([4]), Text("<s>z")]
    together = own.encode([Input(form) for form in forms], "error")
    assert together == [outcome(own, form) for form in forms]


# -- truncation -------------------------------------------------------------------------------------------------------

LONG = "one two three four five six seven eight nine ten " * 4


def test_an_over_long_input_is_refused_with_its_tokens_the_limit_and_the_remedy() -> None:
    error = refusal(tokenization(10), TokenIds([7] * 12))
    assert isinstance(error, TooLongError)
    assert error.message == "items[3] has 12 tokens; the limit is 10; shorten it, or set truncation"


def test_an_input_of_the_limits_length_is_whole() -> None:
    for truncation in ("error", "prompt", "left", "right"):
        sequence = outcome(tokenization(12), TokenIds([7] * 12), truncation)
        assert isinstance(sequence, TokenSequence)
        assert (sequence.num_tokens, sequence.truncated) == (12, False)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_left_and_right_cut_that_end_and_keep_the_special_tokens(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    full = tokenizer(LONG)["input_ids"]
    body = tokenizer(LONG, add_special_tokens=False)["input_ids"]
    start = full.index(body[0])
    opening, closing = full[:start], full[start + len(body) :]
    room = 20 - len(opening) - len(closing)
    own = tokenization(20, tokenizer)
    assert ids(own, Text(LONG), "right") == opening + body[:room] + closing
    assert ids(own, Text(LONG), "left") == opening + body[-room:] + closing
    sequence = outcome(own, Text(LONG), "left")
    assert isinstance(sequence, TokenSequence)
    assert sequence.truncated


def test_token_ids_are_cut_and_keep_their_bos() -> None:
    token_ids = [BOS, *range(10, 40)]
    assert ids(tokenization(20), TokenIds(token_ids), "right") == token_ids[:20]
    assert ids(tokenization(20), TokenIds(token_ids), "left") == [BOS, *token_ids[-19:]]
    assert ids(tokenization(20), TokenIds(token_ids[1:]), "left") == token_ids[-20:]


@pytest.mark.parametrize(
    "template", [CHATML, WITH_BOS, WITH_EOS, STRIPS_THINKING], ids=["plain", "bos", "eos", "think"]
)
def test_truncating_the_prompt_keeps_bos_and_the_whole_response(template: str) -> None:
    tokenizer = make_tokenizer(template=template)
    turns = [{"role": "user", "content": LONG}, ASSISTANT]
    full: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    for form in (PromptResponse(LONG, ASSISTANT["content"]), Messages(tuple(turns))):
        own = ids(tokenization(40, tokenizer), form, "prompt")
        assert own == [BOS, *full[-39:]]
        assert ASSISTANT["content"] in tokenizer.decode(own)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_truncating_the_prompt_without_a_template_keeps_special_tokens_and_the_response(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = None
    response = tokenizer(" I can't help.", add_special_tokens=False)["input_ids"]
    full = tokenizer(LONG.strip() + " I can't help.")["input_ids"]
    own = ids(tokenization(24, tokenizer), PromptResponse(LONG.strip(), " I can't help."), "prompt")
    num_opening = int(kind != "bare")
    num_closing = int(kind in {"bos and eos", "bert"})
    assert len(own) == 24
    assert own[:num_opening] == full[:num_opening]
    assert own[num_opening:] == full[-(24 - num_opening) :]
    assert own[len(own) - num_closing - len(response) : len(own) - num_closing] == response


def test_truncating_the_prompt_drops_the_oldest_turns_first() -> None:
    tokenizer = make_tokenizer()
    turns = [{"role": "user", "content": LONG}, ASSISTANT, {"role": "user", "content": "And a safe?"}, ASSISTANT]
    decoded = tokenizer.decode(ids(tokenization(80, tokenizer), Messages(tuple(turns)), "prompt"))
    assert "And a safe?" in decoded
    assert "one two three four five six seven eight nine ten one two" not in decoded


@pytest.mark.parametrize("form", [PromptResponse("Hi", LONG), Messages((USER, {"role": "assistant", "content": LONG}))])
def test_a_response_that_is_too_long_alone_is_refused(form: Any) -> None:
    error = refusal(tokenization(40), form, "prompt")
    assert isinstance(error, TooLongError)
    assert "response alone has" in error.message


@pytest.mark.parametrize("form", [Text(LONG), TokenIds([7] * 60)])
def test_what_has_no_boundary_cannot_lose_its_prompt(form: Any) -> None:
    assert "where the response begins" in refusal(tokenization(40), form, "prompt").message


def test_a_conversation_of_the_response_alone_has_no_prompt_to_lose() -> None:
    refusal(tokenization(40), Messages(({"role": "assistant", "content": LONG},)), "prompt")


def test_a_limit_that_the_special_tokens_fill_is_refused() -> None:
    own = tokenization(2, make_tokenizer(add_eos=True))
    assert "special tokens alone" in refusal(own, Text("a lock"), "right").message


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=60),
    st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=20),
    st.integers(8, 60),
    st.sampled_from(["prompt", "left", "right"]),
    st.sampled_from(["template", "bos", "bos and eos", "bare", "bert"]),
)
@settings(max_examples=50, deadline=None)
def test_a_truncated_sequence_fits_and_the_prompt_mode_keeps_the_response(
    prompt: str, response: str, limit: int, truncation: Truncation, kind: str
) -> None:
    tokenizer = SHARED[kind]
    form = PromptResponse(prompt, response)
    try:
        whole = ids(tokenization(1 << 20, tokenizer), form)
    except AssertionError:  # no tokens at all
        return
    result = outcome(tokenization(limit, tokenizer), form, truncation)
    if isinstance(result, TokenSequence):
        assert result.num_tokens == min(len(whole), limit)
        assert result.truncated is (len(whole) > limit)
        if truncation == "prompt":
            assert tokenizer.decode([int(i) for i in result.token_ids]).count(response)
    else:
        assert truncation == "prompt"
        assert isinstance(result, TooLongError)


def without_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = None
    return tokenizer


SHARED = {kind: without_template(make()) for kind, make in TOKENIZERS.items()} | {"template": make_tokenizer()}


# -- what a saved tokenizer brings ------------------------------------------------------------------------------------


def test_truncation_and_padding_that_a_file_switches_on_are_off(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    tokenizer.backend_tokenizer.enable_padding(length=16, pad_id=0, pad_token="<pad>")
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    own = tokenization(tokenizer=loaded)
    for text in ("a", LONG):
        assert ids(own, Text(text)) == make_tokenizer()(text)["input_ids"]


def test_the_fingerprint_is_that_of_what_it_does(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    same = tokenization(tokenizer=AutoTokenizer.from_pretrained(tmp_path)).fingerprint
    assert same == tokenization(tokenizer=AutoTokenizer.from_pretrained(tmp_path)).fingerprint
    others = [
        tokenization(tokenizer=make_tokenizer(template=None)),
        tokenization(tokenizer=make_tokenizer(add_bos=False)),
        tokenization(tokenizer=make_tokenizer(add_eos=True)),
        tokenization(100, AutoTokenizer.from_pretrained(tmp_path)),
        Tokenization(AutoTokenizer.from_pretrained(tmp_path), 512, VOCAB_SIZE + 1),
    ]
    assert len({same, *(other.fingerprint for other in others)}) == 1 + len(others)


LINES = "{{ bos_token }}{{ messages[0]['content'] + '\\n' }}"
STEPS = PromptResponse("How?\nWhy?", "One.\n\nTwo")


def by_steps(max_length: int = 512) -> Tokenization:
    tokenizer = make_tokenizer()
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    rules = TextRules(chat_template=LINES, steps=StepRule("\n", (newline,)))
    return Tokenization(tokenizer, max_length, VOCAB_SIZE, rules)


def test_each_step_is_tokenized_by_itself_and_followed_by_the_mark() -> None:
    own = by_steps()
    texts = ("How?\nWhy?\n", "One.", "Two", "\n")
    prompt, one, two, mark = (own.tokenizer.encode(text, add_special_tokens=False) for text in texts)
    prompt = [BOS, *prompt]
    expected = [*prompt, *one, *mark, *mark, *two, *mark]
    turns = ({"role": "user", "content": STEPS.prompt}, {"role": "assistant", "content": STEPS.response})
    for form in (STEPS, Messages(turns), Rollout(turns[:1], STEPS.response)):
        sequence = outcome(own, form)
        assert isinstance(sequence, TokenSequence)
        assert sequence.token_ids.tolist() == expected
        assert sequence.num_prompt_tokens == len(prompt)


@pytest.mark.parametrize("form", [Text("a\nb"), RenderedChat("a\nb"), Messages((USER,)), Messages((ASSISTANT,))])
def test_a_text_that_does_not_say_where_its_response_begins_has_no_steps(form: Any) -> None:
    assert "does not mark where its response begins" in refusal(by_steps(), form).message


def test_truncation_keeps_the_steps_of_the_response_where_it_can() -> None:
    whole = ids(by_steps(), STEPS)
    (num_prompt, num_response) = (p := outcome(by_steps(), STEPS).num_prompt_tokens, len(whole) - p)  # type: ignore[union-attr]
    limit = len(whole) - 3
    for truncation in ("prompt", "left"):
        cut = outcome(by_steps(limit), STEPS, truncation)
        assert isinstance(cut, TokenSequence)
        assert cut.truncated
        assert cut.token_ids.tolist() == [BOS, *whole[4:]]
        assert cut.num_prompt_tokens == num_prompt - 3
    right = outcome(by_steps(limit), STEPS, "right")
    assert isinstance(right, TokenSequence)
    assert (right.token_ids.tolist(), right.num_prompt_tokens) == (whole[:limit], num_prompt)
    assert isinstance(refusal(by_steps(limit), STEPS), TooLongError)
    assert "response alone" in refusal(by_steps(num_response), STEPS, "prompt").message


def finding(max_length: int = 512) -> Tokenization:
    tokenizer = make_tokenizer(template=CHATML)
    return Tokenization(tokenizer, max_length, VOCAB_SIZE, finds_response=True)


@pytest.mark.parametrize("form", [PromptResponse("How do I?", "Like this."), Messages((SYSTEM, USER, ASSISTANT))])
def test_a_sequence_says_where_its_response_begins_for_a_head_that_asks(form: Any) -> None:
    whole = outcome(finding(), form)
    assert isinstance(whole, TokenSequence)
    response = form.response if isinstance(form, PromptResponse) else ASSISTANT["content"]
    text = finding().tokenizer.decode(whole.token_ids[whole.num_prompt_tokens :].tolist())
    assert str(text).startswith(response)
    limit = whole.num_tokens - 2
    left, right = outcome(finding(limit), form, "left"), outcome(finding(limit), form, "right")
    assert isinstance(left, TokenSequence)
    assert isinstance(right, TokenSequence)
    assert (left.num_prompt_tokens, right.num_prompt_tokens) == (whole.num_prompt_tokens - 2, whole.num_prompt_tokens)
    assert "does not mark where its response begins" in refusal(finding(), Text("a")).message
    plain = outcome(tokenization(), form)
    assert isinstance(plain, TokenSequence)
    assert plain.num_prompt_tokens == 0

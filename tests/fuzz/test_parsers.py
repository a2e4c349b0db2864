"""The parsers without HTTP: any text through a tokenizer, any environment and .env file through the settings."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.cli import wrong_settings
from app.engine.inputs import Input, Messages, PromptResponse, Text, TokenIds
from app.engine.sequence import TokenSequence
from app.engine.tokenization import Tokenization
from app.errors import InvalidInputError, StartError
from app.settings import Settings
from tests.fuzz.test_bodies import texts
from tests.models import VOCAB_SIZE, make_tokenizer

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5")) * 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TOKENIZATIONS = {
    "template": Tokenization(make_tokenizer(), 64, VOCAB_SIZE),
    "plain": Tokenization(make_tokenizer(template=None, add_eos=True), 64, VOCAB_SIZE),
}
turns = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=4).map(tuple)
forms = st.one_of(
    st.builds(PromptResponse, texts, texts),
    st.builds(Messages, turns),
    st.builds(Text, texts, st.booleans()),
    st.builds(TokenIds, st.lists(st.integers(-2, 2**31), max_size=80)),
)


@pytest.mark.parametrize("kind", TOKENIZATIONS)
@fuzzed
@given(
    given_forms=st.lists(forms, min_size=1, max_size=4),
    truncation=st.sampled_from(["error", "prompt", "left", "right"]),
)
def test_every_input_gets_a_sequence_or_its_own_error(
    kind: str, given_forms: list[PromptResponse | Messages | Text | TokenIds], truncation: str
) -> None:
    tokenization = TOKENIZATIONS[kind]
    inputs = [Input(form, i, f"items[{i}]") for i, form in enumerate(given_forms)]
    outcomes = tokenization.encode(inputs, truncation)  # type: ignore[arg-type]
    assert len(outcomes) == len(inputs)
    for i, (one, outcome) in enumerate(zip(inputs, outcomes, strict=True)):
        if isinstance(outcome, TokenSequence):
            assert 1 <= outcome.num_tokens <= tokenization.max_length
            assert all(0 <= token_id < VOCAB_SIZE for token_id in outcome.token_ids)
            assert tokenization.encode([one], truncation) == [outcome]  # type: ignore[arg-type]
        else:
            assert isinstance(outcome, InvalidInputError)
            assert outcome.item == i


NAMES = sorted(Settings.model_fields)
values = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30),
    st.sampled_from(
        ["", "true", "0", "-1", "1e999", "nan", "inf", "[]", "{}", "null", "hf:", "a,,b", "//", "127.0.0.1", "😀"]
    ),
)


def tried(make: Callable[[], Settings]) -> None:
    """Settings, or an error of one line for every field that is wrong."""
    try:
        made = make()
    except ValidationError as error:
        said = wrong_settings(error)
        assert "\n" not in said, said
        return
    except StartError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for name in made.model_names:
        try:
            made.model_source(name)
        except StartError as error:
            assert name in str(error)  # noqa: PT017


@fuzzed
@given(given_values=st.dictionaries(st.sampled_from(NAMES), values, max_size=4))
def test_any_environment_makes_settings_or_one_line(
    given_values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name, value in given_values.items():
            patch.setenv(f"REWARD_{name.upper()}", value)
        tried(lambda: Settings(_env_file=None))


@fuzzed
@given(lines=st.lists(st.tuples(st.sampled_from(NAMES), values) | texts.map(lambda text: (text, "")), max_size=4))
def test_any_env_file_makes_settings_or_one_line(lines: list[tuple[str, str]], tmp_path: Path) -> None:
    file = tmp_path / ".env"
    content = "\n".join(f"REWARD_{name.upper()}={value}" if value else name for name, value in lines)
    file.write_bytes(content.encode("utf-8", "replace"))
    tried(lambda: Settings(_env_file=file))

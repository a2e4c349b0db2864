"""Where settings come from, which one wins, and what is said of a wrong one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.checkpoints.model_settings import ModelSettings, read_models
from app.cli import parser, settings_of, wrong_settings
from app.errors import StartError
from app.settings import Settings


@pytest.fixture(autouse=True)
def an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No `.env` of the developer's, and no models beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_of(**values: object) -> str:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(values)
    return wrong_settings(refused.value)


def flags(*words: str) -> Settings:
    return settings_of(parser().parse_args(["serve", *words]))


def test_the_defaults_are_those_of_the_design() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.safety_device, settings.helpfulness_device, settings.dtype) == ("auto", "auto", "auto")
    assert (settings.max_items, settings.max_waiting_requests, settings.max_body_mb) == (1024, 8192, 64)
    assert (settings.deadline_seconds, settings.grace_seconds) == (110, 30)
    assert (settings.safety_threshold, settings.beta) == (0.15, 0.01)
    assert (settings.api_keys, settings.trust_remote_code, settings.num_threads) == ((), False, None)
    assert (settings.max_batch_tokens, settings.max_queue_tokens, settings.max_length) == (None, None, None)


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_MAX_BATCH_TOKENS", "512")
    monkeypatch.setenv("REWARD_BETA", "0.005")
    monkeypatch.setenv("reward_dtype", "bfloat16")
    monkeypatch.setenv("REWARD_TRUST_REMOTE_CODE", "true")
    monkeypatch.setenv("REWARD_API_KEYS", "one, two")
    settings = Settings()
    assert (settings.max_batch_tokens, settings.beta, settings.dtype) == (512, 0.005, "bfloat16")
    assert settings.trust_remote_code is True
    assert settings.api_keys == ("one", "two")


def test_a_variable_without_the_prefix_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9999")
    monkeypatch.setenv("HOST", "0.0.0.0")  # noqa: S104 - shown to have no effect
    assert (Settings().port, Settings().host) == (8000, "127.0.0.1")


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("REWARD_PORT=1\nREWARD_MAX_ITEMS=1\nREWARD_BETA=1\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("REWARD_PORT", "2")
    monkeypatch.setenv("REWARD_MAX_ITEMS", "2")
    settings = flags("--port", "3")
    assert (settings.port, settings.max_items, settings.beta) == (3, 2, 1)


def test_every_setting_is_a_flag_with_its_description_as_help() -> None:
    words = {action.option_strings[0]: action.help for action in parser_of("serve")._actions if action.option_strings}
    for name, field in Settings.model_fields.items():
        assert field.description, name
        shown = " ".join((words[f"--{name.replace('_', '-')}"] or "").split()).replace("%%", "%")
        assert shown.startswith(" ".join(field.description.split()) + " (default: ")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("REWARD_API_KEY", "REWARD_API_KEYS"),
        ("reward_max_batch_token", "REWARD_MAX_BATCH_TOKENS"),
        ("REWARD_SAFTEY_MODEL", "REWARD_SAFETY_MODEL"),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_a_misspelt_variable_stops_the_start_and_names_the_nearest(
    name: str, nearest: str, in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_file:
        (tmp_path / ".env").write_text(f"{name}=1\n")
    else:
        monkeypatch.setenv(name, "1")
    with pytest.raises(StartError, match=f"{name.upper()} in .* is no setting; did you mean {nearest}"):
        flags()


def test_variables_of_the_client_and_of_ray_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("REWARD_RAY_MAX_REPLICAS", "2")
    assert flags().port == 8000


@pytest.mark.parametrize(
    "name", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8000_TCP", "PORT_8000_TCP_ADDR"]
)
def test_the_variables_of_a_kubernetes_service_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"REWARD_SERVICE_{name}", "tcp://10.0.0.1:8000")
    assert flags().port == 8000


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"safety_model", "helpfulness_model"}))
def test_an_empty_variable_is_an_error_where_empty_means_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"REWARD_{name.upper()}", "")
    with pytest.raises(StartError, match=f"REWARD_{name.upper()}"):
        flags()


def test_a_dotenv_file_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("REWARD_LOG_LEVEL=info # gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(StartError, match=r"\.env is not UTF-8"):
        flags()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_dotenv_file_may_begin_with_a_byte_order_mark(line_end: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(f"\ufeffREWARD_PORT=81{line_end}REWARD_BETA=0.5{line_end}".encode())
    settings = flags()
    assert (settings.port, settings.beta) == (81, 0.5)


@pytest.mark.parametrize(
    "line",
    [
        "REWARD_API_KEYS secret",
        "REWARD_API_KEYS: secret",
        "REWARD_API_KEYS",
        "REWARD_API_KEYS='secret",
        "export REWARD_API_KEYS",
    ],
)
def test_a_line_of_a_dotenv_file_that_sets_nothing_is_an_error(line: str, tmp_path: Path) -> None:
    """A line that was meant to hold a key must not leave the service open; the message does not show the key."""
    (tmp_path / ".env").write_text(f"# REWARD_API_KEYS comes next\nOTHER thing\n{line}\n")
    with pytest.raises(StartError, match=r"\.env, line 3: REWARD_API_KEYS is not set there") as refused:
        flags()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("line", ["SOMETHING ELSE", "OTHER", "# REWARD_PORT 5", "", "OTHER='not REWARD_PORT"])
def test_other_lines_of_a_dotenv_file_are_left_alone(line: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{line}\nREWARD_PORT=81\n")
    if line.endswith("'not REWARD_PORT"):  # it may well be ours: the quote swallows what follows
        with pytest.raises(StartError):
            flags()
    else:
        assert flags().port == 81


def parser_of(command: str):  # type: ignore[no-untyped-def]  # noqa: ANN201 - argparse names the type privately
    return parser()._subparsers._group_actions[0].choices[command]  # type: ignore[union-attr, index]


def test_flags_take_what_the_environment_takes() -> None:
    settings = flags(
        "--max-batch-tokens", "64", "--api-keys", "a,b", "--safety-model", "", "--trust-remote-code", "yes"
    )
    assert (settings.max_batch_tokens, settings.api_keys) == (64, ("a", "b"))
    assert (settings.safety_model, settings.trust_remote_code) == ("", True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("port", "http", "REWARD_PORT 'http': input should be a valid integer"),
        ("port", "70000", "REWARD_PORT '70000'"),
        ("dtype", "int4", "'auto', 'float32', 'bfloat16', 'float16' or 'int8'"),
        ("max_items", "0", "REWARD_MAX_ITEMS '0': input should be greater than or equal to 1"),
        ("max_batch_tokens", "-1", "REWARD_MAX_BATCH_TOKENS"),
        ("max_body_mb", "nan", "REWARD_MAX_BODY_MB"),
        ("deadline_seconds", "0", "REWARD_DEADLINE_SECONDS"),
        ("grace_seconds", "-1", "REWARD_GRACE_SECONDS"),
        ("safety_threshold", "1", "REWARD_SAFETY_THRESHOLD"),
        ("beta", "inf", "REWARD_BETA"),
        ("trust_remote_code", "maybe", "REWARD_TRUST_REMOTE_CODE"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting_wrong_settings(name: str, value: str, says: str) -> None:
    message = said_of(**{name: value})
    assert says in message
    assert "\n" not in message


def test_a_wrong_value_of_a_flag_is_named_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_BETA", "inf")
    with pytest.raises(StartError) as refused:
        flags("--port", "http", "--max-batch-tokens", "-1")
    message = str(refused.value)
    assert "--port 'http': input should be a valid integer" in message
    assert "--max-batch-tokens '-1': " in message
    assert "REWARD_BETA 'inf': " in message


@pytest.mark.parametrize("keys", ["", ",", "secret,", "secret,,other", " ", "secret, ,other"])
def test_empty_keys_are_refused_and_no_key_is_told(keys: str) -> None:
    message = said_of(api_keys=keys)
    assert message.startswith("REWARD_API_KEYS: ")
    assert "unset it to ask for none" in message
    assert "secret" not in message


def test_an_empty_key_variable_does_not_open_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_API_KEYS", "")
    with pytest.raises(ValidationError, match="empty"):
        Settings()


def test_a_service_without_any_model_is_refused_and_no_key_is_told() -> None:
    message = said_of(safety_model="", helpfulness_model="", api_keys="secret")
    assert "at least one model" in message
    assert "secret" not in message


def test_a_model_directory_that_is_given_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert Settings(safety_model="mine").model_source("safety") == str(tmp_path / "mine")
    assert Settings(safety_model=str(tmp_path / "mine")).model_source("safety") == str(tmp_path / "mine")


def test_an_empty_place_is_not_loaded() -> None:
    assert Settings(safety_model="").model_source("safety") is None


def test_a_hub_id_is_taken_as_it_is() -> None:
    assert Settings(safety_model="hf:org/name").model_source("safety") == "hf:org/name"


@pytest.mark.parametrize("name", ["org/name", "gpt2", "no/such/place"])
def test_a_bare_name_is_a_directory_and_never_a_hub_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError) as refused:
        Settings(helpfulness_model=name).model_source("helpfulness")
    for words in (str(tmp_path / name), "REWARD_HELPFULNESS_MODEL", "hf:", "empty value"):
        assert words in str(refused.value)


def test_the_default_place_is_in_the_working_directory_first(tmp_path: Path) -> None:
    (tmp_path / "models" / "safety").mkdir(parents=True)
    assert Settings().model_source("safety") == str(tmp_path / "models" / "safety")


def test_without_models_in_either_place_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages"
    monkeypatch.setattr("app.settings.__file__", str(installed / "app" / "settings.py"))
    with pytest.raises(StartError) as refused:
        Settings().model_source("safety")
    assert str(tmp_path / "models" / "safety") in str(refused.value)
    assert str(installed / "models" / "safety") in str(refused.value)
    (installed / "models" / "safety").mkdir(parents=True)
    assert Settings().model_source("safety") == str(installed / "models" / "safety")


def test_a_place_that_is_both_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.__file__", str(tmp_path / "app" / "settings.py"))
    with pytest.raises(StartError) as refused:
        Settings().model_source("safety")
    assert str(refused.value).count(str(tmp_path / "models" / "safety")) == 1


MATHS = '{"maths": "models/maths", "safety": {"source": "hf:org/model", "device": "cuda:1", "head": {"head": "score"}}}'


def test_reward_models_names_further_models_and_how_each_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "maths").mkdir(parents=True)
    monkeypatch.setenv("REWARD_MODELS", MATHS)
    settings = flags()
    assert settings.model_names == ("safety", "maths")  # the roles first, and none that nobody names
    assert settings.model_settings("maths") == ModelSettings(source=str(tmp_path / "models" / "maths"))
    assert settings.model_settings("safety") == ModelSettings(
        source="hf:org/model", device="cuda:1", head='{"head": "score"}'
    )
    assert flags("--models", '{"style": "here"}').model_names == ("style",)
    (tmp_path / ".env").write_text("""REWARD_MODELS='{"style": "here"}'\n""")
    monkeypatch.delenv("REWARD_MODELS")
    assert flags("--safety-model", "mine").model_names == ("safety", "style")


def test_without_reward_models_the_two_roles_are_loaded_as_ever() -> None:
    assert Settings().model_names == ("safety", "helpfulness")
    assert Settings(safety_model="").model_names == ("helpfulness",)


def test_a_model_that_is_not_at_its_place_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"no maths model at {tmp_path}/gone; give REWARD_MODELS"):
        Settings(models={"maths": ModelSettings(source="gone")}).model_source("maths")
    assert Settings().model_source("maths") is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{}", "names no model"),
        ("[]", "names no model"),
        ("models/maths", "not JSON"),
        ('{"maths": "a", "maths": "b"}', "the key 'maths' occurs more than once"),
        ('{"maths": {"source": "a", "source": "b"}}', "the key 'source' occurs more than once"),
        ('{"Maths": "a"}', "the name 'Maths' is invalid"),
        ('{"2nd": "a"}', "the name '2nd' is invalid"),
        ('{"": "a"}', "the name '' is invalid"),
        (f'{{"{"m" * 33}": "a"}}', "is invalid"),
        ('{"llama2": "a"}', "'llama2' stands for the selection"),
        ('{"maths": ""}', "maths.source is wrong"),
        ('{"maths": 1}', "maths is wrong: it is neither a string nor an object; give"),
        ('{"größe": "a"}', "the name 'größe' is invalid"),
        ('{"maths": "a"', "this is not JSON (Expecting"),
        ("[" * 100_000, "... (100002 characters): this is nested too deeply; write an object"),
        ('{"maths": null}', "maths is wrong"),
        ('{"maths": {"device": "cpu"}}', "maths.source is wrong"),
        ('{"maths": {"source": "a", "devise": "cpu"}}', "maths.devise is wrong: there is no such field; give"),
    ],
)
def test_a_wrong_list_of_models_is_one_line(value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_MODELS", value)
    with pytest.raises(StartError) as refused:
        flags()
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("REWARD_MODELS ")
    assert says in line


@pytest.mark.parametrize("part", ["model", "head", "device", "text"])
def test_a_role_is_described_in_one_place(part: str) -> None:
    says = said_of(models='{"safety": "a"}', **{f"safety_{part}": "b"})
    assert (
        says
        == f"REWARD_MODELS has safety, and REWARD_SAFETY_{part.upper()} is set too; describe the safety model in one of them"
    )


def test_a_setting_that_is_null_describes_no_model() -> None:
    settings = Settings(models=read_models('{"safety": "a"}'), safety_model=None, safety_head=None)
    assert settings.model_names == ("safety",)


def test_the_default_of_the_compatibility_routes_is_a_model_that_is_loaded() -> None:
    assert Settings(models=read_models('{"maths": "a"}'), compat_model="maths").compat_model == "maths"
    assert "compat_model llama2 needs the safety model" in said_of(models='{"maths": "a"}', compat_model="llama2")
    assert "compat_model poetry needs the poetry model, which is not loaded" in said_of(compat_model="poetry")


def test_settings_of_one_model_alone_keep_how_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    settings = Settings(safety_model="mine", safety_head="score.json", safety_device="cpu", compat_model="llama2")
    alone = settings.only("safety")
    assert alone.model_names == ("safety",)
    assert alone.model_settings("safety") == ModelSettings(
        source=str(tmp_path / "mine"), device="cpu", head="score.json"
    )
    assert alone.compat_model is None

"""`reward-service serve` under any REWARD_ environment: it starts to listen, or ends with one line that names what is wrong."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import cli
from tests.fuzz.test_parsers import NAMES, values
from tests.processes import SERVE, environment, running

fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5")) * 20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
names = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.tuples(st.sampled_from(NAMES), st.integers(0, 30)).map(lambda pair: pair[0][: pair[1]] + pair[0][pair[1] + 1 :]),
    st.text("abcdefghijklmnopqrstuvwxyz_", max_size=20),
)


@fuzzed
@given(given_values=st.dictionaries(names, values, max_size=3), flags=st.lists(values, max_size=2))
def test_it_starts_or_says_in_one_line_why_not(
    given_values: dict[str, str],
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    """Up to the listening: the models are not loaded."""
    started: list[Any] = []

    def start(app: Any) -> int:
        started.append(app)
        return 0

    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("app.http.server.run", start)
        for name, value in given_values.items():
            patch.setenv(f"REWARD_{name.upper()}", value)
        try:
            code = cli.main(["serve", *(f"--log-level={flag}" for flag in flags)])
        except SystemExit as wrong_usage:
            code = int(str(wrong_usage.code))
    said = capfd.readouterr().err
    assert "Traceback" not in said
    if started:
        assert code == 0
    elif code == 1:
        assert said.startswith("reward-service: ")
        assert said.count("\n") == 1
        assert len(said) < 4000
    else:
        assert code == 2
        assert "reward-service serve: error: " in said


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"REWARD_API_KEY": "secret"}, "REWARD_API_KEYS"),
        ({"REWARD_BETA": "much"}, "REWARD_BETA 'much'"),
    ],
)
def test_a_real_process_says_it_in_one_line_too(variables: dict[str, str], says: str, tmp_path: Any) -> None:
    with running(SERVE, cwd=tmp_path, env=environment(**variables), stderr=-1) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert said.count("\n") == 1, said
    assert says in said
    assert "secret" not in said

import json
import subprocess
import sys
from typing import Any, Self

from app.ui import snippets

BODY: dict[str, Any] = {
    "beta": 0.01,
    "items": [{"prompt": "It's $HOME, `id`", "response": 'a "quote"\nJSON\n\\ 漢字'}, {"text": "two"}],
}


def test_the_shell_passes_the_body_on_as_it_is() -> None:
    command = snippets.curl("http://127.0.0.1:1", "/ppo-reward", BODY, has_key=False)
    before, _, rest = command.partition("<<")
    assert before.startswith("curl -s http://127.0.0.1:1/ppo-reward")
    said = subprocess.run(["sh", "-c", f"cat <<{rest}"], capture_output=True, check=True, text=True)  # noqa: S603, S607
    assert json.loads(said.stdout) == BODY


def test_the_script_has_the_items_and_the_options_as_they_are() -> None:
    script = snippets.python(
        "http://127.0.0.1:1", snippets.PPO_REWARD, BODY | {"kl": {"estimator": "k3"}}, has_key=False
    )
    said: list[Any] = []

    class Fake:
        """Takes what the script would send."""

        def __init__(self, *args: Any, **options: Any) -> None:
            said.append((args, options))

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ppo_reward(self, items: Any, **options: Any) -> Any:
            said.append((items, options))
            return type("Answer", (), {"results": ()})

    fake = type(sys)("reward_client")
    fake.RewardClient = Fake  # type: ignore[attr-defined]
    before = sys.modules.get("reward_client")
    sys.modules["reward_client"] = fake
    try:
        exec(script, {})  # noqa: S102 - that it runs is what is tested
    finally:
        if before is None:
            del sys.modules["reward_client"]
        else:
            sys.modules["reward_client"] = before
    assert said == [
        (("http://127.0.0.1:1",), {}),
        (BODY["items"], {"beta": 0.01, "kl": {"estimator": "k3"}}),
    ]


def test_a_key_is_asked_of_the_environment() -> None:
    command = snippets.curl("http://127.0.0.1:1", "/ppo-reward", BODY, has_key=True)
    script = snippets.python("http://127.0.0.1:1", snippets.PPO_REWARD, BODY, has_key=True)
    assert '-H "authorization: Bearer $REWARD_CLIENT_API_KEY"' in command
    assert 'api_key=os.environ["REWARD_CLIENT_API_KEY"]' in script
    assert script.startswith("import os\n")


def test_a_file_of_pairs_is_evaluated_by_the_command_that_is_shown() -> None:
    command, script = snippets.evaluate("http://127.0.0.1:1", "safety", "small", has_key=True)
    assert command.text.replace("\\\n", "").split()[:4] == ["reward-service", "evaluate", "pairs.jsonl", "--model"]
    assert "--model safety --margin-scheme small" in command.text
    assert "model='safety', margin_scheme='small'" in script.text
    compile(script.text, "snippet", "exec")


def test_the_metrics_are_asked_with_the_key() -> None:
    curl, config = snippets.metrics("https://example.test:8443", has_key=True)
    assert curl.text.startswith("curl -s https://example.test:8443/metrics")
    assert "$REWARD_CLIENT_API_KEY" in curl.text
    assert 'targets: ["example.test:8443"]' in config.text
    assert "scheme: https" in config.text

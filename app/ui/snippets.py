"""The page's request as code to copy, for a terminal and for a trainer. A placeholder stands for the API key."""

import json
from dataclasses import dataclass
from typing import Any, Literal

KEY_VARIABLE = "REWARD_CLIENT_API_KEY"


@dataclass(frozen=True, slots=True)
class Snippet:
    title: str
    name: str
    """The suffix of its element's id."""
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """One of the client's methods: its path, and what a script prints of each result."""

    method: Literal["score", "compare", "ppo_reward"]
    many: Literal["items", "pairs"]
    prints: str

    @property
    def path(self) -> str:
        return f"/{self.method.replace('_', '-')}"


SCORE = Call("score", "items", "{name: entry.score for name, entry in result.scores.items()}")
COMPARE = Call("compare", "pairs", "result.correct, result.chosen_score - result.rejected_score")
PPO_REWARD = Call("ppo_reward", "items", "result.selected, result.reward")


def request(url: str, call: Call, body: dict[str, Any], *, has_key: bool) -> list[Snippet]:
    """The request as a curl command and as a Python script."""
    return [
        Snippet("This request as curl", "curl", curl(url, call.path, body, has_key=has_key)),
        Snippet("The same in Python", "python", python(url, call, body, has_key=has_key)),
    ]


def key_header(*, has_key: bool) -> str:
    return f' \\\n  -H "authorization: Bearer ${KEY_VARIABLE}"' if has_key else ""


def curl(url: str, path: str, body: dict[str, Any], *, has_key: bool) -> str:
    """A curl command for any POSIX shell; the body is quoted so the shell expands nothing in it."""
    return (
        f"curl -s {url}{path} \\\n"
        f"  -H 'content-type: application/json'{key_header(has_key=has_key)} \\\n"
        f"  --data-binary @- <<'JSON'\n{compact(body)}\nJSON"
    )


def compact(body: dict[str, Any]) -> str:
    """JSON with one item per line."""
    lines = []
    for name, value in body.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inner = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            lines.append(f"  {json.dumps(name)}: [\n{inner}\n  ]")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}"


def python(url: str, call: Call, body: dict[str, Any], *, has_key: bool) -> str:
    """A script that uses reward_client and prints one line per result."""
    arguments = "".join(f"        {name}={value!r},\n" for name, value in body.items() if name != call.many)
    inputs = "".join(f"    {item!r},\n" for item in body[call.many])
    return (
        f"{'import os' + chr(10) * 2 if has_key else ''}"
        "from reward_client import RewardClient\n\n"
        f"{call.many} = [\n{inputs}]\n\n"
        f"with {client(url, has_key=has_key)} as client:\n"
        f"    answer = client.{call.method}(\n        {call.many},\n{arguments}    )\n"
        "for result in answer.results:\n"
        f"    print({call.prints})\n"
    )


def client(url: str, *, has_key: bool) -> str:
    key = f', api_key=os.environ["{KEY_VARIABLE}"]' if has_key else ""
    return f'RewardClient("{url}"{key})'


def evaluate(url: str, model: str, scheme: str, *, has_key: bool) -> list[Snippet]:
    """How a file of pairs is evaluated on the command line, and compared by a running service."""
    command = f"reward-service evaluate pairs.jsonl \\\n  --model {model} --margin-scheme {scheme} --png evaluation.png"
    script = (
        "import json\n" + ("import os\n" if has_key else "") + "\n"
        "from reward_client import RewardClient\n\n"
        'with open("pairs.jsonl", encoding="utf-8") as file:\n'
        "    pairs = [json.loads(line) for line in file]\n\n"
        f"with {client(url, has_key=has_key)} as client:\n"
        f"    answer = client.compare(pairs, model={model!r}, margin_scheme={scheme!r})\n"
        "print(answer.summary.accuracy, answer.summary.accuracy_by_rating)\n"
    )
    return [
        Snippet("On the command line", "cli", command),
        Snippet("Against this service, in Python", "python", script),
    ]


def metrics(url: str, *, has_key: bool) -> list[Snippet]:
    """How the service's metrics are read once, and how Prometheus reads them."""
    host = url.partition("://")[2]
    scheme = url.partition("://")[0]
    key = f"\n    authorization:\n      credentials: ${KEY_VARIABLE}" if has_key else ""
    config = (
        "scrape_configs:\n"
        "  - job_name: reward-service\n"
        f"    scheme: {scheme}{key}\n"
        "    static_configs:\n"
        f'      - targets: ["{host}"]\n'
    )
    return [
        Snippet("These figures as curl", "curl", f"curl -s {url}/metrics{key_header(has_key=has_key)}"),
        Snippet("For Prometheus", "prometheus", config),
    ]

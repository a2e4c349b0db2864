"""The prefix cache in a running service: cached prefixes change no score, and a reload leaves nothing of them."""

from pathlib import Path

import httpx

from tests.api.asking import ask
from tests.conftest import Serve

KEY = "a-key-for-the-reload"
PROMPT = "Tell me how to brew green tea, and how hot the kettle should be. " * 5


def usage_of(client: httpx.Client, response: str) -> tuple[dict[str, int], float]:
    answer = ask(client, "/score", {"items": [{"prompt": PROMPT, "response": response}]})
    return answer["usage"], answer["results"][0]["scores"]["helpfulness"]["score"]


def test_a_reload_empties_the_cache_and_scores_stay(serve: Serve, helpfulness_dir: Path) -> None:
    with serve(safety_model="", helpfulness_model=str(helpfulness_dir), api_keys=(KEY,)) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        cold, score = usage_of(client, "Two minutes.")
        warm, same = usage_of(client, "Two minutes.")
        assert (cold["num_cached_tokens"], warm["num_computed_tokens"]) == (0, 1)
        assert same == score
        assert client.post("/admin/reload").status_code == 200
        again, same = usage_of(client, "Two minutes.")
        assert again == cold
        assert same == score

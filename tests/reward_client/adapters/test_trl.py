"""What TRL's logs get, and GDPO's two functions. Further tests of the adapter are in `test_adapters`."""

import asyncio
import math
from typing import Any

import httpx
import pytest

from reward_client import AsyncRewardClient, InvalidRequestError
from reward_client.adapters.trl import gdpo_reward_functions, reward_function
from tests.api.compat.support import LONG, THRESHOLD_SCORE, native
from tests.conftest import Serve

PROMPT = "How long should green tea steep?"
RESPONSES = ["Two minutes.", "no", "Ask a locksmith.", "a b c d"]


class CountingTransport(httpx.AsyncHTTPTransport):
    num_requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.num_requests += 1
        return await super().handle_async_request(request)


class Logs:
    """What TRL passes as `log_metric` and `log_extra`."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.columns: dict[str, list[Any]] = {}

    def columns_for(self, completions: list[str], **more: Any) -> dict[str, Any]:
        return {
            "prompts": [PROMPT] * len(completions),
            "completions": completions,
            "completion_ids": [[1]] * len(completions),
            "log_metric": self.metrics.__setitem__,
            "log_extra": self.columns.__setitem__,
            **more,
        }


def test_each_models_scores_and_the_shares_are_logged(client: httpx.Client, url: str) -> None:
    logs = Logs()
    labels = [True, False, False, False, False]
    asyncio.run(reward_function(url, name="rm")(**logs.columns_for([*RESPONSES, LONG], is_safety=labels)))
    scores = [native(client, {"prompt": PROMPT, "response": response}) for response in RESPONSES]
    low = [each["safety"] < THRESHOLD_SCORE for each in scores]
    selected = [label or is_low for label, is_low in zip(labels, low, strict=False)]
    veto = [is_low and not label for label, is_low in zip(labels, low, strict=False)]
    assert logs.columns == {
        "rm/safety_score": [*(each["safety"] for each in scores), None],
        "rm/helpfulness_score": [*(each["helpfulness"] for each in scores), None],
        "rm/selected_safety": [*map(float, selected), None],
        "rm/veto": [*map(float, veto), None],
        "rm/truncated": [0.0] * 4 + [None],
    }
    for name, column in logs.columns.items():
        assert logs.metrics[name] == pytest.approx(sum(column[:4]) / 4)


def test_truncated_completions_are_counted(url: str) -> None:
    logs = Logs()
    asyncio.run(reward_function(url, truncation="left")(**logs.columns_for(["no", LONG])))
    assert logs.metrics["reward_service/truncated"] == 0.5


def test_a_model_that_was_not_asked_is_not_logged(url: str) -> None:
    logs = Logs()
    asyncio.run(reward_function(url, model="helpfulness")(**logs.columns_for(RESPONSES)))
    assert set(logs.metrics) == {
        f"reward_service/{name}" for name in ("helpfulness_score", "selected_safety", "truncated")
    }
    assert not any(map(math.isnan, logs.metrics.values()))


def test_gdpos_functions_share_one_request_per_batch(client: httpx.Client, url: str) -> None:
    """Also where the trainer passes the same list again: then its completions may be other ones."""
    transport = CountingTransport()
    functions = gdpo_reward_functions(AsyncRewardClient(url, transport=transport))
    assert [function.__name__ for function in functions] == ["safety", "helpfulness"]
    completions = list(RESPONSES)
    columns = Logs().columns_for(completions)

    async def both() -> list[list[float | None]]:
        return list(await asyncio.gather(*(function(**columns) for function in functions)))

    async def run() -> None:
        for count, last in enumerate(("x", "y", "z"), 1):
            completions[-1] = last
            scores = [native(client, {"prompt": PROMPT, "response": response}) for response in completions]
            assert await both() == [[each[model] for each in scores] for model in ("safety", "helpfulness")]
            assert transport.num_requests == count

    asyncio.run(run())


@pytest.mark.parametrize("model", ["safety", "helpfulness"])
def test_gdpo_needs_both_models(serve: Serve, model: str) -> None:
    with serve(**{f"{model}_model": ""}) as server:
        for function in gdpo_reward_functions(str(server.base_url)):
            with pytest.raises(InvalidRequestError, match=f"{model}"):
                asyncio.run(function(**Logs().columns_for(RESPONSES)))

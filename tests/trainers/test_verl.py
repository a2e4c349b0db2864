"""verl's own reward loop and reward managers, with the adapter's functions and with the service's URL. Only Ray is a stub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from tests.api.compat.support import native
from tests.reward_client.adapters.conftest import close_shared_clients
from tests.trainers.conversations import CONVERSATIONS, Messages, check_equal, expected
from tests.trainers.packages import VERSIONS, importable, load
from tests.trainers.ray_stub import ray

pytestmark = pytest.mark.filterwarnings("default")  # verl's and tensordict's own

ADAPTER = "pkg://reward_client.adapters.verl"
FUNCTIONS = {
    "naive": "compute_score",
    "dapo": "compute_score",
    "gdpo": "compute_score",
    "rate_limited": "compute_score",
    "remote": "compute_score_sync",
}
LONGEST = 4096


@pytest.fixture(scope="module")
def verl() -> Iterator[Any]:
    with ray() as stubs, importable("verl", stubs):
        yield load("verl.experimental.reward_loop.reward_loop")


@pytest.fixture(autouse=True)
def ended_actors(verl: Any) -> Iterator[None]:
    """Their event loops close the connections that clients opened in them."""
    yield
    verl.ray.shutdown()
    close_shared_clients()


def config(model: Path, manager: str, function: str | None, kwargs: dict[str, Any], engine: str = "vllm") -> Any:
    """What verl's YAML files give, as far as the reward loop reads it."""
    return OmegaConf.create(
        {
            "actor_rollout_ref": {"model": {"path": str(model), "tokenizer_path": None}},
            "trainer": {"experiment_name": "test"},
            "reward": {
                "num_workers": 2,
                "max_concurrent": 64,
                "custom_reward_function": {
                    "path": ADAPTER if function else None,
                    "name": function,
                    "reward_kwargs": kwargs,
                },
                "reward_manager": {"source": "register", "name": manager},
                "reward_model": {"enable": function is None, "model_path": str(model), "rollout": {"name": engine}},
            },
        }
    )


def batch(verl: Any, tokenizer: Any, conversations: list[Messages]) -> Any:
    """A DataProto of rollouts: the response as token ids, padded; the prompt in extra_info."""
    ids = [tokenizer(chat[-1]["content"], add_special_tokens=False)["input_ids"] for chat in conversations]
    rows = [torch.tensor(row + [0] * (LONGEST - len(row))) for row in ids]
    masks = [torch.tensor([1] + [1] * len(row) + [0] * (LONGEST - len(row))) for row in ids]
    return verl.DataProto.from_dict(
        tensors={
            "prompts": torch.ones(len(ids), 1, dtype=torch.long),
            "responses": torch.stack(rows),
            "attention_mask": torch.stack(masks),
        },
        non_tensors={
            "data_source": np.array(["test"] * len(ids), dtype=object),
            "reward_model": np.array([{"ground_truth": ""}] * len(ids), dtype=object),
            "extra_info": np.array([{"prompt": chat[:-1], "index": i} for i, chat in enumerate(conversations)]),
            "raw_prompt": np.fromiter((chat[:-1] for chat in conversations), dtype=object, count=len(ids)),
        },
    )


def rewards(scored: Any, data: Any) -> list[float]:
    """verl puts a reward at the response's last token."""
    last = data.batch["attention_mask"][:, 1:].sum(dim=1) - 1
    return [float(row[index]) for row, index in zip(scored.batch["rm_scores"], last, strict=True)]


@pytest.mark.parametrize(("manager", "function"), FUNCTIONS.items())
def test_a_reward_manager_gets_the_scores_of_the_conversations(
    verl: Any, client: httpx.Client, url: str, safety_dir: Path, manager: str, function: str
) -> None:
    """verl's RewardLoopManager, workers and manager; the URL travels in `reward_kwargs`."""
    data = batch(verl, AutoTokenizer.from_pretrained(safety_dir), list(CONVERSATIONS.values()))
    loop = verl.RewardLoopManager(config(safety_dir, manager, function, {"url": url}))
    scored = loop.compute_rm_score(data)
    check_equal(
        f"verl | {VERSIONS['verl']} | `RewardLoopManager`, manager `{manager}` | `{function}`",
        dict(zip(CONVERSATIONS, rewards(scored, data), strict=True)),
        {name: expected(client, chat) for name, chat in CONVERSATIONS.items()},
    )
    by_model = [native(client, {"messages": chat}, truncation="left") for chat in CONVERSATIONS.values()]
    for model in ("safety", "helpfulness"):
        column = scored.non_tensor_batch[f"{model}_score"].tolist()
        assert column == pytest.approx([scores[model] for scores in by_model])
    assert scored.non_tensor_batch["truncated"].tolist() == [float("over-long" in name) for name in CONVERSATIONS]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_reward_model_call_gets_the_scores_of_the_conversations(
    verl: Any, client: httpx.Client, url: str, safety_dir: Path, engine: str
) -> None:
    """verl's RewardLoopWorker without a function posts to the address of its router; here it is the service's."""
    data = batch(verl, AutoTokenizer.from_pretrained(safety_dir), list(CONVERSATIONS.values()))
    worker = verl.ray.remote(verl.RewardLoopWorker).remote(
        config(safety_dir, "naive", None, {}, engine), url.removeprefix("http://")
    )
    (answers,) = verl.ray.get([worker.compute_score_batch.remote(data)])
    path = {"vllm": "/classify", "sglang": "/v1/embeddings"}[engine]
    check_equal(
        f"verl | {VERSIONS['verl']} | `RewardLoopWorker`, engine `{engine}` | `{path}`",
        dict(zip(CONVERSATIONS, (answer["reward_score"] for answer in answers), strict=True)),
        {name: expected(client, chat) for name, chat in CONVERSATIONS.items()},
    )


def test_every_item_has_the_same_keys_whatever_model_is_asked(
    verl: Any, client: httpx.Client, url: str, safety_dir: Path
) -> None:
    chat = CONVERSATIONS["one turn"]
    data = batch(verl, AutoTokenizer.from_pretrained(safety_dir), [chat] * 2)
    keys = []
    for model in ("llama2", "safety", "helpfulness"):
        options = {"url": url, "model": model}
        scored = verl.RewardLoopManager(config(safety_dir, "gdpo", "compute_score", options)).compute_rm_score(data)
        keys.append(set(scored.non_tensor_batch))
        if model != "llama2":
            assert rewards(scored, data)[0] == pytest.approx(native(client, {"messages": chat})[model])
    assert keys == [{"score", "safety_score", "helpfulness_score", "selected_safety", "truncated"}] * 3


def test_a_misspelt_option_stops_the_run(verl: Any, url: str, safety_dir: Path) -> None:
    data = batch(verl, AutoTokenizer.from_pretrained(safety_dir), [CONVERSATIONS["one turn"]])
    loop = verl.RewardLoopManager(config(safety_dir, "naive", "compute_score", {"url": url, "modle": "safety"}))
    with pytest.raises(ValueError, match="unknown option 'modle'"):
        loop.compute_rm_score(data)


def test_remote_takes_no_coroutine_and_says_so(verl: Any, url: str, safety_dir: Path) -> None:
    with pytest.raises(AssertionError, match="Async reward score is not supported"):
        verl.RewardLoopManager(config(safety_dir, "remote", "compute_score", {"url": url}))

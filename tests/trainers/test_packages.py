"""OpenRLHF's, AReaL's, LLaMA-Factory's and Tunix's own code from their packages, on the conversations."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reward_client.adapters import areal, plain
from tests.reward_client.adapters.conftest import close_shared_clients
from tests.trainers.conversations import CONVERSATIONS, Messages, check_equal, expected
from tests.trainers.packages import VERSIONS, importable, load, stub

pytestmark = pytest.mark.filterwarnings("default")  # theirs


@pytest.fixture(autouse=True)
def environment(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REWARD_CLIENT_URL", url)
    yield
    close_shared_clients()


@pytest.fixture
def tokenizer(safety_dir: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(safety_dir)
    return loaded


@pytest.fixture
def oracle(client: httpx.Client) -> dict[str, float]:
    return {name: expected(client, chat) for name, chat in CONVERSATIONS.items()}


def prompt_of(tokenizer: PreTrainedTokenizerBase, chat: Messages) -> str:
    """As the trainers' data sets render it."""
    return str(tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True))


def response_ids(tokenizer: PreTrainedTokenizerBase, chat: Messages) -> list[int]:
    """What the policy generates: the response and the end of the turn."""
    ids: list[int] = tokenizer(f"{chat[-1]['content']}<|im_end|>", add_special_tokens=False)["input_ids"]
    return ids


# -- OpenRLHF -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent() -> Iterator[Any]:
    utils = stub("openrlhf.utils")  # its __init__ imports DeepSpeed
    with importable("openrlhf") as _:
        import openrlhf  # type: ignore[import-not-found]

        utils.__path__ = [str(Path(openrlhf.__path__[0]) / "utils")]
        import sys

        sys.modules["openrlhf.utils"] = utils
        yield load("openrlhf.utils.agent")
        del sys.modules["openrlhf.utils"]


class Engine:
    """Generates the conversation's response, in place of vLLM."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    async def generate(self, *_: Any, **__: Any) -> Any:
        output = SimpleNamespace(token_ids=self.ids, text="", finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def run_agent(agent: Any, address: str, tokenizer: PreTrainedTokenizerBase, chat: Messages) -> dict[str, Any]:
    executor = agent.SingleTurnAgentExecutor(address)
    params = SimpleNamespace(max_tokens=8, logprobs=None)
    result: dict[str, Any] = asyncio.run(
        executor.execute(
            prompt_of(tokenizer, chat), "", params, 100_000, tokenizer, Engine(response_ids(tokenizer, chat))
        )
    )
    return result


@pytest.mark.parametrize("side", ["/get_reward", "reward_func"])
def test_openrlhfs_agent_gets_the_scores_of_the_conversations(
    agent: Any, url: str, tokenizer: PreTrainedTokenizerBase, oracle: dict[str, float], tmp_path: Path, side: str
) -> None:
    file = tmp_path / "reward.py"
    file.write_text("from reward_client.adapters.openrlhf import reward_func\n")
    address = f"{url}/get_reward" if side == "/get_reward" else str(file)
    results = {name: run_agent(agent, address, tokenizer, chat) for name, chat in CONVERSATIONS.items()}
    row = f"OpenRLHF | {VERSIONS['openrlhf']} | `SingleTurnAgentExecutor.execute` | `{side}`"
    check_equal(row, {name: one(result["reward"]) for name, result in results.items()}, oracle)
    for result in results.values():
        assert 0 < one(result["scores"]) < 1
        assert {"safety_score", "helpfulness_score", "truncated"} == set(result["extra_logs"])


def one(values: Any) -> float:
    (value,) = values
    return float(value)


def test_openrlhf_swallows_an_error_and_has_no_reward(
    agent: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its page says. The reward is None, on which the trainer fails later; it is no 0."""
    monkeypatch.setenv("REWARD_CLIENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("REWARD_CLIENT_DEADLINE_SECONDS", "0.2")
    file = tmp_path / "reward.py"
    file.write_text("from reward_client.adapters.openrlhf import reward_func\n")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    agent.logger.addHandler(handler)
    try:
        result = run_agent(agent, str(file), tokenizer, CONVERSATIONS["one turn"])
    finally:
        agent.logger.removeHandler(handler)
    assert result["reward"] is None
    assert any(line.startswith("INFO [SingleTurnExecutor] Failed to fetch reward") for line in said)


# -- AReaL --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrapper() -> Iterator[Callable[..., Any]]:
    stubs = {"areal": stub("areal"), "areal.api": stub("areal.api"), "areal.utils": stub("areal.utils")}
    with importable("areal", stubs):
        import sys

        folder = Path(next(path for path in sys.path if "areal-" in path)) / "areal"
        stubs["areal"].__path__ = [str(folder)]
        stubs["areal.api"].__path__ = [str(folder / "api")]
        stubs["areal.utils"].__path__ = [str(folder / "utils")]
        vars(stubs["areal.utils"])["logging"] = logging
        module = load("areal.api.reward_api")
        yield module.AsyncRewardWrapper
        module.AsyncRewardWrapper._atexit_shutdown_all()


def test_areals_wrapper_gets_the_scores_of_the_conversations(
    wrapper: Any, tokenizer: PreTrainedTokenizerBase, oracle: dict[str, float]
) -> None:
    """Its pool of processes runs the function with what its workflow decodes."""

    async def run() -> dict[str, float]:
        ask = wrapper(areal.reward_fn, timeout_seconds=60, max_workers=1)
        rewards = {}
        for name, chat in CONVERSATIONS.items():
            prompt, ids = prompt_of(tokenizer, chat), response_ids(tokenizer, chat)
            rewards[name] = await ask(prompt, tokenizer.decode(ids), [1], ids)
        return rewards

    row = f"AReaL | {VERSIONS['areal']} | `AsyncRewardWrapper` | `reward_fn`"
    check_equal(row, asyncio.run(run()), oracle)


def test_areals_wrapper_gives_no_zero_where_nobody_answers(wrapper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_CLIENT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("REWARD_CLIENT_DEADLINE_SECONDS", "0.2")

    async def run() -> float:
        reward: float = await wrapper(areal.reward_fn, max_workers=2, max_retries=1)("Tea?", "Yes.", [1], [1])
        return reward

    with pytest.raises(areal.LateRewardError):
        asyncio.run(run())


# -- LLaMA-Factory ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ppo_utils() -> Iterator[Any]:
    names = ["llamafactory", "llamafactory.train", "llamafactory.train.ppo", "llamafactory.extras"]
    stubs = {name: stub(name) for name in names}  # their __init__ modules import trainers for GPUs
    with importable("llamafactory", stubs):
        import sys

        folder = Path(next(path for path in sys.path if "llamafactory-" in path))
        for name, module in stubs.items():
            module.__path__ = [str(folder.joinpath(*name.split(".")))]
        yield load("llamafactory.train.ppo.ppo_utils")


def test_llama_factorys_client_gets_the_scores_of_the_conversations(
    ppo_utils: Any, url: str, tokenizer: PreTrainedTokenizerBase, oracle: dict[str, float]
) -> None:
    messages = [
        f"{prompt_of(tokenizer, chat)}{tokenizer.decode(response_ids(tokenizer, chat))}"
        for chat in CONVERSATIONS.values()
    ]
    rewards = ppo_utils.get_rewards_from_server(f"{url}/v1/score/evaluation", messages).tolist()
    row = f"LLaMA-Factory | {VERSIONS['llamafactory']} | `get_rewards_from_server` | `/v1/score/evaluation`"
    check_equal(row, dict(zip(CONVERSATIONS, rewards, strict=True)), oracle)


def test_an_error_stops_llama_factory(ppo_utils: Any, url: str) -> None:
    with pytest.raises(KeyError, match="scores"):
        ppo_utils.get_rewards_from_server(f"{url}/v1/score/evaluation", [""])


# -- Tunix --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_manager() -> Iterator[Any]:
    stubs = {name: stub(name) for name in ("tunix", "tunix.rl")}  # their __init__ modules import JAX
    with importable("google-tunix", stubs):
        import sys

        folder = Path(next(path for path in sys.path if "google-tunix-" in path))
        for name, module in stubs.items():
            module.__path__ = [str(folder.joinpath(*name.split(".")))]
        config = load("tunix.rl.algorithm_config").AlgorithmConfig()
        yield load("tunix.rl.reward_manager").SequenceRewardManager([plain.reward_fn], config)


def test_tunixs_reward_manager_gets_the_scores_of_the_conversations(
    reward_manager: Any, oracle: dict[str, float]
) -> None:
    info = reward_manager(
        prompts=[chat[:-1] for chat in CONVERSATIONS.values()],
        completions=[chat[-1]["content"] for chat in CONVERSATIONS.values()],
    )
    row = f"Tunix | {VERSIONS['google-tunix']} | `SequenceRewardManager` | `plain.reward_fn`"
    check_equal(row, dict(zip(CONVERSATIONS, info["rewards"].tolist(), strict=True)), oracle)

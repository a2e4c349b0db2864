"""A text whose forward does not fit in memory is refused; one for which nobody waits any more is not computed to its end."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from app.engine.abandonment import AbandonedError, abandoned_when, check_wanted
from app.engine.attention.backend import LayerOptions
from app.engine.attention.cpu import BLOCKS_PER_CHECK, BlockAttention, Queries
from app.engine.batch import Batch
from app.engine.engine import Engine
from app.engine.forward_memory import ForwardMemory
from app.engine.sequence import Scored
from app.errors import DeadlineExceededError
from tests.conftest import Serve
from tests.engine.loaded import load
from tests.engine.test_engine import FakeModel, ids, with_engine

GB = 10**9


def memory(*, free: int | None, per_token: int = 1000, per_pair: int = 0) -> ForwardMemory:
    return ForwardMemory(per_token, per_pair, unchecked_tokens=4096, max_length=1_000_000, free_bytes=lambda: free)


@pytest.mark.parametrize("free", [None, 2 * GB])
def test_a_text_that_fits_or_of_which_nothing_is_known_is_computed(free: int | None) -> None:
    assert memory(free=free).find_fault(1_000_000) is None


def test_a_text_that_does_not_fit_is_refused_with_both_figures_and_a_limit_that_fits() -> None:
    given = memory(free=GB, per_token=4000)
    assert given.find_fault(1_000_000) == (
        "has 1000000 tokens, within the limit of 1000000, but its forward pass takes about 4.00 GB of memory and 1.00 "
        "GB is free; shorten it, or set REWARD_MAX_LENGTH to 220000 or less to have longer texts rejected or truncated"
    )
    assert given.find_fault(220_000) is None


def test_attention_that_holds_a_weight_for_every_pair_counts_them() -> None:
    given = memory(free=GB, per_pair=128)
    assert given.find_fault(2_000) is None  # a usual batch
    assert given.find_fault(100_000) is not None
    assert given.bytes_for(given.tokens_in(10 * GB)) <= 10 * GB


@pytest.mark.parametrize("family", ["llama", "bert", "deberta"])
def test_the_estimate_grows_with_the_square_only_where_attention_is_not_packed(family: str, tmp_path: Any) -> None:
    model = load(tmp_path, family)
    given = ForwardMemory.of(model, lambda: GB)
    assert given.per_token > 0
    assert (given.per_pair > 0) is (family != "llama")
    assert given.per_pair < 200


def test_over_http_the_item_is_named_and_the_service_goes_on(serve: Serve) -> None:
    with serve(max_batch_tokens=64, safety_model="") as client:
        text = {"text": "tea " * 40}
        assert post(client, text).status_code == 200
        models = client.app.state.service.ready_engine().models  # type: ignore[attr-defined]
        models["helpfulness"].memory = replace(models["helpfulness"].memory, free_bytes=lambda: 100_000)
        response = post(client, {"text": "tea"}, text)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["item"]) == (422, "invalid_input", 1)
        assert error["message"].startswith("items[1] has ")
        assert "REWARD_MAX_LENGTH" in error["message"]
        assert post(client, {"text": "tea"}).status_code == 200


def post(client: httpx.Client, *items: dict[str, Any]) -> httpx.Response:
    return client.post("/score", json={"items": [*items]})


def test_a_forward_ends_where_nobody_waits_for_it() -> None:
    num_tokens = 64 * (BLOCKS_PER_CHECK + 8)
    positions = np.arange(num_tokens)
    attention = BlockAttention(lambda: [Queries(positions, positions, positions)])
    query = torch.zeros(1, 1, num_tokens, 8)

    def attend() -> None:
        attention.attend(query, query, query, LayerOptions())

    attend()
    with abandoned_when(lambda: False):
        attend()
    with abandoned_when(lambda: True), pytest.raises(AbandonedError):
        attend()
    check_wanted()


class Endless(FakeModel):
    """Its forwards of more than one token end when nobody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def score(self, batch: Batch) -> list[Scored]:
        if batch.num_tokens == 1:
            return super().score(batch)
        try:
            while not self.ended.wait(0.001):
                check_wanted()
        finally:
            self.ended.set()
        raise AssertionError("nobody ends it otherwise")


def test_a_request_whose_deadline_has_passed_gives_the_model_thread_back() -> None:
    model = Endless()

    async def exchange(engine: Engine[FakeModel]) -> None:
        with pytest.raises(DeadlineExceededError):
            await engine.score([ids(5, 6, 7)], deadline_seconds=0.05)
        await asyncio.to_thread(model.ended.wait)
        await engine.score([ids(5)])
        assert engine.is_alive

    with_engine(exchange, model)

"""Whatever path computes it, a score is the oracle's: transformers' own forward on the one unpadded sequence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from app.engine.batch import Batch
from app.engine.reward_model import ExecutionPlan, RewardModel
from app.engine.sequence import TokenSequence
from tests.engine.loaded import forests, load, load_from, token_ids
from tests.models import CAUSAL, FAMILIES, make_model

PER_EXAMPLE = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    return {family: load(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def plain_scores(model: RewardModel, sequences: list[TokenSequence]) -> list[float]:
    """A second load by transformers alone, as any user would check."""
    net = AutoModelForSequenceClassification.from_pretrained(model.checkpoint.source, dtype=torch.float32)
    with torch.inference_mode():
        return [float(net(torch.from_numpy(sequence.token_ids)[None]).logits[0, 0]) for sequence in sequences]


def assert_close(scores: list[float], expected: list[float]) -> None:
    for score, value in zip(scores, expected, strict=True):
        assert score == pytest.approx(value, abs=1e-5 * max(1, abs(value)), rel=0)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_causal_decoder_is_packed_and_its_last_layer_computes_scored_rows_alone(
    models: dict[str, RewardModel], family: str
) -> None:
    assert models[family].plan.path == "packed", models[family].plan.reason
    assert models[family].plan.skips_last_layer


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_an_encoder_is_padded(models: dict[str, RewardModel], family: str) -> None:
    assert models[family].plan.path == "padded", models[family].plan.reason
    assert not models[family].plan.batch_invariant


@pytest.mark.parametrize("family", FAMILIES)
@PER_EXAMPLE
@given(sequences=forests(max_length=200))
def test_any_batch_gets_the_oracles_scores(
    models: dict[str, RewardModel], family: str, sequences: list[TokenSequence]
) -> None:
    model = models[family]
    assert_close(
        [s.score for s in model.score(Batch.of(sequences))], [model.reference_score(sequence) for sequence in sequences]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_is_what_transformers_alone_gives(models: dict[str, RewardModel], family: str) -> None:
    rng = np.random.default_rng(3)
    sequences = [TokenSequence.of(token_ids(rng, n)) for n in (1, 7, 64, 65, 130)]
    expected = plain_scores(models[family], sequences)
    assert_close([models[family].reference_score(sequence) for sequence in sequences], expected)
    assert_close([s.score for s in models[family].score(Batch.of(sequences))], expected)


@pytest.mark.parametrize("path", ["packed", "padded", "single"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_every_path_gives_the_same_scores(models: dict[str, RewardModel], family: str, path: Any) -> None:
    model = models[family]
    rng = np.random.default_rng(4)
    trunk = token_ids(rng, 90)
    sequences = [
        TokenSequence.of(trunk[:n] + token_ids(rng, m)) for n, m in [(90, 0), (80, 60), (70, 1), (0, 100), (64, 64)]
    ]
    expected = [model.reference_score(sequence) for sequence in sequences]
    facts, model.plan = model.plan, ExecutionPlan(path, "forced")
    try:
        assert_close([s.score for s in model.score(Batch.of(sequences))], expected)
    finally:
        model.plan = facts


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox", "gemma3"])
@PER_EXAMPLE
@given(sequences=forests(max_length=200), data=st.data())
def test_a_score_is_the_same_to_the_bit_in_any_company(
    models: dict[str, RewardModel], family: str, sequences: list[TokenSequence], data: st.DataObject
) -> None:
    model = models[family]
    assert model.plan.batch_invariant
    alone = [model.score(Batch.of([sequence]))[0].score for sequence in sequences]
    order = data.draw(st.permutations(range(len(sequences))))
    cut = data.draw(st.integers(0, len(sequences)))
    for part in (order[:cut], order[cut:], order):
        if part:
            assert [s.score for s in model.score(Batch.of([sequences[i] for i in part]))] == [alone[i] for i in part]


def test_a_small_forward_runs_on_one_thread_and_a_large_one_on_all_with_the_same_bits(
    models: dict[str, RewardModel],
) -> None:
    model = models["llama"]
    sequences = [TokenSequence.of(list(range(5, 5 + n))) for n in (3, 40, 90)]
    num_threads: list[int] = []
    hook = model.trunk.register_forward_pre_hook(lambda *_: num_threads.append(torch.get_num_threads()))
    before, limit = torch.get_num_threads(), model.small_forward_flops
    torch.set_num_threads(2)
    try:
        small = model.score(Batch.of(sequences))
        model.small_forward_flops = 0
        large = model.score(Batch.of(sequences))
        assert torch.get_num_threads() == 2
    finally:
        hook.remove()
        model.small_forward_flops = limit
        torch.set_num_threads(before)
    assert num_threads == [1, 2]
    assert [scored.score for scored in small] == [scored.score for scored in large]


@PER_EXAMPLE
@given(sequences=forests(max_sequences=4, max_length=150), data=st.data())
def test_token_scores_are_the_scores_of_the_prefixes_and_change_no_other_bit(
    models: dict[str, RewardModel], sequences: list[TokenSequence], data: st.DataObject
) -> None:
    model = models["llama"]
    wanted = data.draw(st.lists(st.booleans(), min_size=len(sequences), max_size=len(sequences)))
    plain = model.score(Batch.of(sequences))
    for scored, other, sequence, asked in zip(
        model.score(Batch.of(sequences, wanted)), plain, sequences, wanted, strict=True
    ):
        assert scored.score == other.score
        assert (scored.token_scores is not None) is asked
        if scored.token_scores is not None:
            n = data.draw(st.integers(1, sequence.num_tokens))
            prefix = TokenSequence.of([int(i) for i in sequence.token_ids[:n]])
            assert scored.token_scores[n - 1] == model.score(Batch.of([prefix]))[0].score


@pytest.mark.parametrize(
    "config", [{"pad_token_id": None}, {"pad_token_id": 2, "eos_token_id": 2}, {"pad_token_id": 0}], ids=str
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_scored_token_is_transformers_choice(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    """No pad token: the last. pad == eos: a trailing eos is skipped. A pad id in the middle is a token like others."""
    model = load(tmp_path, family, **config)
    lists = [[9, 8, 7, 2], [9, 8, 7], [9, 2, 7, 2, 2], [9, 0, 7, 0], [2, 2], [0], [7, 6, 0, 5]]
    sequences = [TokenSequence.of(ids) for ids in lists]
    expected = plain_scores(model, sequences)
    assert_close([s.score for s in model.score(Batch.of(sequences))], expected)
    model.plan = ExecutionPlan("padded", "forced")
    assert_close([s.score for s in model.score(Batch.of(sequences))], expected)


def test_padding_side_and_neighbours_do_not_matter_on_the_padded_path(tmp_path: Path) -> None:
    """The batch is padded by the engine; the tokenizer's padding side has no say."""
    directory = make_model(tmp_path, "bert")
    rng = np.random.default_rng(5)
    sequences = [TokenSequence.of(token_ids(rng, n)) for n in (3, 120, 50, 1)]
    scores = []
    for side in ("left", "right"):
        model = load_from(directory, max_batch_tokens=256)
        model.checkpoint.tokenizer.padding_side = side
        scores.append([s.score for s in model.score(Batch.of(sequences))])
        assert_close(scores[-1], [model.reference_score(sequence) for sequence in sequences])
    assert scores[0] == scores[1]


@PER_EXAMPLE
@given(budget=st.integers(1, 700), sequences=forests(max_length=200))
def test_padded_batches_keep_the_budget(
    models: dict[str, RewardModel], budget: int, sequences: list[TokenSequence]
) -> None:
    model = models["bert"]
    before, sizes = model.max_batch_tokens, []

    def note(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        sizes.append(inputs["input_ids"].shape)

    hook = model.net.register_forward_pre_hook(note, with_kwargs=True)
    model.max_batch_tokens = budget
    try:
        model.score(Batch.of(sequences))
    finally:
        model.max_batch_tokens = before
        hook.remove()
    assert sum(rows for rows, _ in sizes) == len(sequences)
    assert all(rows == 1 or rows * length <= budget for rows, length in sizes)

"""Packed rows: the state of a response in one is the state that it has alone; a base where it is not is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from app.errors import ModelRefusedError
from app.training.rated.model import check_packed, run_layers
from app.training.rated.packed import Row, batch_of, batches_by_length, pack, pack_sequences
from tests.models import make_model

CPU = torch.device("cpu")
ROWS = [pack([5, 6, 7, 8], [[9, 10], [11, 12, 13]]), pack([], [[40, 41, 42]]), pack([20], [[21]])]


def net_of(directory: Path, family: str = "llama", **config: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(make_model(directory, family, **config)).eval()


@torch.no_grad()
def test_a_response_in_a_packed_row_has_the_state_that_it_has_alone(tmp_path: Path) -> None:
    trunk = net_of(tmp_path).model
    batch = batch_of(ROWS, CPU)
    states = run_layers(trunk, trunk.embed_tokens(batch.ids), batch, 0, 1)
    states = trunk.norm(run_layers(trunk, states, batch, 1, len(trunk.layers)))[batch.ends]
    alone = [ids for row in ROWS for ids in row.sequences]
    expected = [trunk(ids[None]).last_hidden_state[0, -1] for ids in alone]
    assert torch.allclose(states, torch.stack(expected), atol=1e-5)


def test_sequences_share_what_all_begin_with_and_keep_their_last_token() -> None:
    sequences = [[1, 2, 3], [1, 2, 3, 4], [1, 2, 5]]
    row = pack_sequences(sequences)
    assert [ids.tolist() for ids in row.sequences] == sequences
    assert row.positions.tolist() == [0, 1, 2, 2, 3, 2]
    assert row.ends == [2, 4, 5]
    assert pack_sequences([[7, 8]]).segments.tolist() == [0, 1]


def test_batches_hold_every_row_once_within_the_budget() -> None:
    rows = [Row(torch.zeros(size), torch.zeros(size), torch.zeros(size), []) for size in (5, 40, 3, 90, 20)]
    batches = batches_by_length(rows, 80)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    assert all(len(batch) == 1 or len(batch) * max(rows[i].num_tokens for i in batch) <= 80 for batch in batches)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_llamas_kin_take_packed_rows(tmp_path: Path, family: str) -> None:
    check_packed(tmp_path, net_of(tmp_path, family), ROWS)


@pytest.mark.parametrize("family", ["gpt_neox", "phi", "bert"])
def test_a_model_whose_layers_are_called_otherwise_is_refused(tmp_path: Path, family: str) -> None:
    with pytest.raises(ModelRefusedError, match="cannot be run on packed rows"):
        check_packed(tmp_path, net_of(tmp_path, family), ROWS)


def test_a_sliding_window_that_the_data_reach_is_refused(tmp_path: Path) -> None:
    net = net_of(tmp_path, "mistral")  # a window of 24
    check_packed(tmp_path, net, [pack([7] * 16, [[8] * 4])])
    with pytest.raises(ModelRefusedError, match="the states differ"):
        check_packed(tmp_path, net, [*ROWS, pack(list(range(10, 40)), [[8] * 4])])

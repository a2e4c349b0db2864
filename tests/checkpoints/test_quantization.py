"""int8 weights: which they are, how far scores move, and that every promise about paths and batches still holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from app.checkpoints.building import head_of
from app.checkpoints.loading import load_checkpoint
from app.engine.batch import Batch
from app.engine.reward_model import RewardModel
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from tests.checkpoints.test_loading import edit_weights, infinite_head, nan_weight, no_head, no_layer
from tests.engine.loaded import forests, load_from, token_ids
from tests.models import make_model


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return load_from(make_model(tmp_path_factory.mktemp("int8"), seed=9), dtype="int8")


def test_linear_layers_have_a_byte_a_weight_and_a_scale_a_row_and_the_head_is_exact(int8: RewardModel) -> None:
    plain = load_checkpoint(int8.checkpoint.source, device="cpu").net
    for name, weight in int8.net.named_parameters():
        original = plain.get_parameter(name)
        if "proj" in name:
            assert weight.qdata.dtype == torch.int8
            steps = original.abs().amax(1, keepdim=True) / 127.5
            assert ((weight.dequantize() - original).abs() <= steps * 0.51).all(), name
        else:
            assert torch.equal(weight, original), name
    assert head_of(int8.net)[1].weight.dtype == torch.float32
    assert (int8.weight_dtype, int8.dtype) == ("int8", torch.float32)


def test_scores_move_by_a_few_hundredths_of_their_spread(int8: RewardModel) -> None:
    rng = np.random.default_rng(1)
    sequences = [TokenSequence.of(token_ids(rng, n)) for n in rng.integers(2, 120, 60)]
    plain = load_from(Path(int8.checkpoint.source))
    exact = np.array([scored.score for scored in plain.score(Batch.of(sequences))])
    error = np.abs(np.array([scored.score for scored in int8.score(Batch.of(sequences))]) - exact)
    assert 0 < error.mean() < 0.03 * exact.std()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=forests(max_length=150))
def test_the_packed_path_equals_the_quantized_models_own_forward_and_is_batch_invariant(
    int8: RewardModel, sequences: list[TokenSequence]
) -> None:
    assert int8.plan.path == "packed"
    assert int8.plan.batch_invariant
    together = [scored.score for scored in int8.score(Batch.of(sequences))]
    assert together == [int8.score(Batch.of([sequence]))[0].score for sequence in sequences]
    for score, sequence in zip(together, sequences, strict=True):
        assert score == pytest.approx(int8.reference_score(sequence), abs=1e-5 * max(1, abs(score)))


@pytest.mark.parametrize("family", ["gpt_neox", "bert"])
def test_other_families_are_quantized_too(tmp_path: Path, family: str) -> None:
    model = load_from(make_model(tmp_path, family), dtype="int8")
    sequence = TokenSequence.of([7, 8, 9, 10, 11])
    score = model.score(Batch.of([sequence]))[0].score
    assert score == pytest.approx(model.reference_score(sequence), abs=1e-5)
    assert score != load_from(tmp_path).reference_score(sequence)


@pytest.mark.parametrize("spoil", [no_head, no_layer, nan_weight, infinite_head], ids=lambda spoil: spoil.__name__)
def test_what_is_refused_in_full_precision_is_refused_in_int8(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(make_model(tmp_path))
    with pytest.raises(ModelRefusedError):
        load_checkpoint(str(tmp_path), device="cpu", dtype="int8")


def test_nan_in_a_matrix_is_refused_before_it_is_rounded_to_a_number(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(make_model(tmp_path), lambda tensors: tensors[name][3, :1].fill_(torch.nan))
    with pytest.raises(ModelRefusedError, match=f"NaN or infinite weights in {name}"):
        load_checkpoint(str(tmp_path), device="cpu", dtype="int8")


def test_a_float_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    edit_weights(make_model(tmp_path), lambda tensors: tensors["model.norm.weight"][:1].fill_(1e5))
    load_checkpoint(str(tmp_path), device="cpu")
    with pytest.raises(ModelRefusedError, match=r"infinite weights in model\.norm\.weight"):
        load_checkpoint(str(tmp_path), device="cpu", dtype="float16")

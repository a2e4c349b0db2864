"""app/checkpoints/trunks.json is right about the installed transformers, which may be older or newer than the one that wrote it."""

import pytest
from transformers import CONFIG_MAPPING, AutoModel, __version__

from app.checkpoints.layers import IN_LAYER, LayerFaults, compare_layers
from app.checkpoints.transformers_checks import quiet_transformers
from app.checkpoints.trunks import EVERY_TYPE, read_table
from tests.trunk_table import LAYERS_ALIKE, build, every_type, row_of, small_config

EVERY = read_table()[EVERY_TYPE]
TABLE = {name: row for name, row in read_table().items() if name in CONFIG_MAPPING}


@pytest.mark.parametrize("model_type", TABLE)
def test_a_row_is_what_transformers_has(model_type: str) -> None:
    row = TABLE[model_type]
    with quiet_transformers():
        found = row_of(model_type, varied=False)
    assert found is not None
    for key in ("embedding", "prefix", "size", "language_model", "classifier", "output"):
        assert found.get(key, row.get(key)) == row.get(key), key
    assert set(found["children"]) <= set(row["children"])
    head, optional = set(row.get("head", ())), set(row.get("optional", ()))
    assert head <= set(found.get("head", head)) <= head | optional
    assert "linear" in found or "linear" not in row
    if EVERY["transformers"] == __version__:  # releases write the same patterns differently
        assert found.get("renamed") == row.get("renamed")


def test_the_names_that_change_in_every_model_are_known() -> None:
    assert every_type()["renamed"] == EVERY["renamed"] or EVERY["transformers"] != __version__


@pytest.mark.parametrize("model_type", sorted(LAYERS_ALIKE & TABLE.keys()))
def test_all_layers_have_the_same_tensors(model_type: str) -> None:
    config = small_config(model_type)
    assert config is not None
    tensors = build(AutoModel, config).state_dict()
    assert any(map(IN_LAYER.match, tensors))
    assert compare_layers(tensors, config.num_hidden_layers) == LayerFaults()
